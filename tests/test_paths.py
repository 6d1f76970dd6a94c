"""Paths and files: the home folder, the rights of what is written, file systems without locks."""

import errno
import fcntl
import os
import pwd
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from configs import config_of, pretrain_config
from run_folders import ARCH, random_run
from sample_images import unpack_sample

import mixco
from mixco.evaluation.protocols import evaluate_knn
from mixco.export.export import export
from mixco.runtime import locks
from mixco.runtime.errors import UserError
from mixco.runtime.files import at_home, new_folder, replacing
from mixco.runtime.locks import LockHeld, locked, one_at_a_time
from mixco.runtime.run_folder import add_result, read_config, read_results, write_json
from mixco.settings.commands import (
    DuplicatesConfig,
    EmbedConfig,
    ExportConfig,
    KNNConfig,
    NeighboursConfig,
    ReportConfig,
)
from mixco.settings.config import PretrainConfig
from mixco.settings.options import parse
from mixco.settings.parse import expanded, load_recipe, to_dict, with_settings
from mixco.training.pretrain import pretrain

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="rights and homes are Unix's")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_sample(tmp_path_factory.mktemp("photos"), train=16, test=2, classes=3)


# The home folder.

COMMANDS: dict[str, tuple[Any, str]] = {
    "pretrain": (
        PretrainConfig,
        "--data=~/photos --data-path=~/sets --out=~/runs/a --cache=~/cache",
    ),
    "knn": (
        KNNConfig,
        "--run=~/a --checkpoint=~/b --data=~/c --labels=~/l.txt --out=~/o --cache=~/k",
    ),
    "embed": (EmbedConfig, "~/a ~/photos --out=~/v.npz --data-path=~/d"),
    "neighbours": (NeighboursConfig, "~/a ~/1.jpg ~/2.jpg --among=~/v.npz --picture=~/p.png"),
    "duplicates": (DuplicatesConfig, "~/a --among=~/v.npz --out=~/g.csv"),
    "export": (ExportConfig, "~/a --out=~/e"),
    "report": (
        ReportConfig,
        "~/a ~/b --out=~/r.html --images ~/1.jpg --data=~/d --collect=~/c.json",
    ),
}


def texts(value: Any) -> Iterator[str]:
    """All texts in nested plain values."""
    if isinstance(value, dict):
        for each in value.values():
            yield from texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from texts(each)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("command", COMMANDS)
def test_a_tilde_is_the_home_folder_in_every_option(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/h")
    kind, line = COMMANDS[command]
    found = list(texts(to_dict(parse(kind, command, line.split()))))
    assert not [text for text in found if "~" in text]
    assert {word.partition("~")[2] for word in line.split() if "~" in word} <= {
        text.removeprefix("/h") for text in found
    }


def test_keywords_recipes_and_defaults_know_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.toml").write_text('[data]\ndata = "~/photos"\n[run]\nout = "~/runs/a"\n')
    config = with_settings(load_recipe("~/my.toml"), {"recipe": "~/my.toml"}, "pretrain")
    assert config.data.data == str(tmp_path / "photos")
    assert config.run.out == tmp_path / "runs" / "a"
    assert config.data.cache == tmp_path / ".cache" / "mixco"
    assert config.recipe == str(tmp_path / "my.toml")
    parsed = parse(PretrainConfig, "pretrain", ["--recipe=~/my.toml"], load_recipe("~/my.toml"))
    assert parsed == config
    assert expanded(config) == config
    assert pretrain_config(out="~/b").run.out == tmp_path / "b"


def test_a_home_that_is_not_there_is_named_with_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"--out ~nobody_here/x: .* user nobody_here .*\./~nobody_here/x"
    ):
        parse(PretrainConfig, "pretrain", ["--out=~nobody_here/x"])
    Path("~draft.jpg").touch()
    assert at_home("~draft.jpg", "images") == "~draft.jpg", "a file that is called so"
    monkeypatch.delenv("HOME", raising=False)

    def unknown(_: object) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(UserError, match=r"--cache ~/.cache/mixco: this user has no home.* --cache"):
        parse(PretrainConfig, "pretrain", [])
    assert parse(PretrainConfig, "pretrain", ["--cache", "c"]).data.cache == Path("c")
    with pytest.raises(SystemExit):
        parse(PretrainConfig, "pretrain", ["--help"])


def test_a_config_of_an_earlier_version_is_read_as_this_one_would_have_written_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/h")
    data = {"data": "~/photos", "data_path": None, "cache": "~/.cache/mixco"}
    write_json(tmp_path / "config.json", {"data": data, "method": {}, "run": {"out": "~/runs/a"}})
    config = read_config(tmp_path)
    assert config["data"] == {"data": "/h/photos", "data_path": None, "cache": "/h/.cache/mixco"}
    assert config["run"] == {"out": "/h/runs/a"}


# The rights of files.


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def write_export(photos: Path, folder: Path) -> None:
    run = random_run(folder / "run", photos)
    for to in ("timm", "safetensors", "hub"):
        export(ExportConfig(run, to=to))  # type: ignore[arg-type]


def write_run(photos: Path, folder: Path) -> None:
    run = pretrain(
        pretrain_config(
            data=str(photos),
            out=folder / "run",
            cache=folder / "cache",
            size=32,
            arch=ARCH,
            stem="standard",
            epochs=1,
            batch_size=16,
        )
    )
    evaluate_knn(config_of(KNNConfig, run=run, cache=folder / "cache"))
    for kind in ("npz", "safetensors", "parquet"):
        mixco.embed(run, photos, out=folder / f"v.{kind}", cache=folder / "cache", device="cpu")
    mixco.duplicates(run, out=folder / "groups.csv", cache=folder / "cache", device="cpu")


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
@pytest.mark.parametrize("write", [write_run, write_export])
def test_what_is_written_has_the_rights_that_the_umask_leaves(
    photos: Path, tmp_path: Path, write: Callable[[Path, Path], None], mask: int
) -> None:
    folder = tmp_path / "new"
    with umask(mask):
        folder.mkdir()
        write(photos, folder)
    for path in folder.rglob("*"):
        usual = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == usual & ~mask, path
    assert len(list(folder.rglob("*.safetensors"))) >= 2


def test_a_replaced_file_has_the_rights_of_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("{}")
    path.chmod(0o600)
    with umask(0o027):
        write_json(path, {})
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_system_without_rights_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    with replacing(tmp_path / "a") as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    with new_folder(tmp_path / "b") as folder:
        os.close(os.open(folder / "c", os.O_CREAT | os.O_WRONLY, 0o600))
    assert (tmp_path / "a").exists() and (tmp_path / "b" / "c").exists()


# Locks.


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A file system that refuses every lock."""

    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_told", set())
    return int(request.param)


def test_without_locks_everything_works_and_it_is_said_once(
    photos: Path, tmp_path: Path, no_locks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(photos, tmp_path)
    said = capsys.readouterr().err
    for folder in (tmp_path / "run", tmp_path / "v.npz.part"):
        warning = f"{folder}: its file system cannot lock files ({os.strerror(no_locks)})"
        assert said.count(warning) == 1, said
    assert {"pretrain", "knn"} <= read_results(tmp_path / "run" / "results.json").keys()
    with one_at_a_time(tmp_path):
        pass


def test_a_lock_is_held_by_one_and_ends_with_it(tmp_path: Path) -> None:
    for place in (tmp_path / "lock", tmp_path):  # a file, and a folder
        with locked(place), pytest.raises(LockHeld), locked(place, seconds=0):
            raise AssertionError
        with locked(place, seconds=0):
            pass


def test_a_lock_of_another_user_can_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may read a file may lock it, as several users of one cache do."""
    lock, usual = tmp_path / "lock", os.open
    lock.touch()

    def only_reading(path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return usual(path, flags, mode)

    monkeypatch.setattr(os, "open", only_reading)
    with locked(lock), pytest.raises(LockHeld), locked(lock, seconds=0):
        raise AssertionError
    with pytest.raises(PermissionError), locked(tmp_path / "new"):
        raise AssertionError
    with one_at_a_time(tmp_path / "new"):  # where nothing can be written, nobody can be met
        pass


def test_other_errors_of_a_lock_stay_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(UserError, match=r"results\.json: cannot be written \(Input/output error\)"):
        add_result(tmp_path, "knn", {})
