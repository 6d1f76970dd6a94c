"""Data sets from a stand-in for the hub: real Parquet files, through the hub's own client."""

import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache as cached
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest
from configs import pretrain_config
from hub_stand_in import TOKEN, StandIn, hub_of_client, point
from huggingface_hub import hf_hub_download, scan_cache_dir

from mixco.cli import main
from mixco.data.datasets import hub_images, is_hub, list_images
from mixco.data.datasets.hub import CONVERTED, HubFiles, fetch, find, parquet_files
from mixco.data.datasets.hub_splits import by_words, own_splits
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import read_json
from mixco.training.pretrain import pretrain

SET = "datasets/me/photos"
CARD = b"""---
license: [mit, CC-BY-4.0]
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train-*}
  - {split: test, path: data/test-*}
---
Photographs.
"""
TRAIN = [f"data/train-{i:05d}-of-00002.parquet" for i in range(2)]
TEST = "data/test-00000-of-00001.parquet"
COMMIT, LATER = "a" * 40, "b" * 40


@cached
def parquet(first: int, rows: int = 8) -> bytes:
    """Images of the sample from the `first` on, as the hub stores them."""
    source = list_images("sample", None, "train")
    assert source.labels is not None
    index = range(first, first + rows)
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(source.classes), "_type": "ClassLabel"},
    }
    kinds = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", kinds), ("label", pyarrow.int64())]).with_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    images = [{"bytes": source.read(i), "path": str(source.files[i])} for i in index]
    labels = [int(source.labels[i]) for i in index]
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table([images, labels], schema=schema), out)
    return out.getvalue()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hub"


@pytest.fixture
def empty_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with hub_of_client(cache, monkeypatch) as server:
        yield server


@pytest.fixture
def hub(empty_hub: StandIn) -> StandIn:
    """A hub with two files of train and one of test."""
    files = {name: parquet(100 * i) for i, name in enumerate([*TRAIN, TEST])}
    others = {"README.md": CARD, ".gitattributes": b"", "photos.py": b"raise SystemExit"}
    empty_hub.repositories[SET] = {"commit": COMMIT, "files": {**files, **others}}
    return empty_hub


def files_of(hub: StandIn, branch: str = "") -> dict[str, bytes]:
    files: dict[str, bytes] = hub.repositories[SET + branch]["files"]
    return files


def with_files(hub: StandIn, *names: str, card: str = "", branch: str = "") -> None:
    """The set's files instead, each with other content; or those of another branch."""
    files = {name: parquet(10 * i, rows=2) for i, name in enumerate(names)}
    readme = {"README.md": f"---\n{card}\n---\n".encode()} if card else {}
    commit = hashlib.sha1(repr((names, card, branch)).encode()).hexdigest()
    hub.repositories[SET + branch] = {"commit": commit, "files": {**files, **readme}}


def get(data: str = "hf:me/photos", **options: Any) -> tuple[HubFiles, str]:
    """What came, and what was told."""
    told: list[str] = []
    return parquet_files(data, tell=told.append, **options), "\n".join(told)


def by_split(found: HubFiles) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for path, split in found.files:
        names.setdefault(split, []).append(path.relative_to(found.folder).as_posix())
    return names


def refusal(data: str = "hf:me/photos", **options: Any) -> str:
    began = time.monotonic()
    with pytest.raises(UserError) as refused:
        get(data, **options)
    assert time.monotonic() - began < 20
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_set_comes_whole_into_the_clients_cache(hub: StandIn, cache: Path) -> None:
    found, told = get()
    assert by_split(found) == {"train": TRAIN, "test": [TEST]}
    assert (found.splits, found.config) == (("train", "test"), "default")
    assert (found.repository, found.commit) == ("me/photos", COMMIT)
    assert found.licence == "mit, cc-by-4.0"
    assert found.address == f"https://huggingface.co/datasets/me/photos/tree/{COMMIT}"
    size = sum(len(files_of(hub)[name]) for name in (*TRAIN, TEST)) / 1e6
    assert told == f"downloading 3 of 3 Parquet files ({size:,.1f} MB) of me/photos from {hub.url}"
    for path, _ in found.files:
        name = path.relative_to(found.folder).as_posix()
        assert path.read_bytes() == files_of(hub)[name]
        assert pyarrow.parquet.read_table(path).num_rows == 8
    (repository,) = scan_cache_dir(cache).repos  # as `hf cache` shows it
    assert (repository.repo_id, repository.repo_type) == ("me/photos", "dataset")
    assert repository.refs["main"].commit_hash == COMMIT
    sent = len(hub.ranges)
    assert sent == 4  # with the card, and without photos.py
    assert get() == (found, "")
    assert len(hub.ranges) == sent


def test_only_the_wanted_splits_are_fetched(hub: StandIn) -> None:
    found, told = get(splits=["test"])
    assert by_split(found) == {"test": [TEST]}
    assert found.splits == ("train", "test")
    assert "1 of 1 Parquet files" in told and len(hub.ranges) == 2
    listed = find("hf:me/photos", tell=pytest.fail)
    assert list(listed.splits) == ["train", "test"] and len(hub.ranges) == 2
    assert by_split(fetch(listed, tell=lambda _: None)) == {"train": TRAIN, "test": [TEST]}
    assert "no split validation; it has train, test" in refusal(splits=["validation"])


def test_the_cache_serves_where_the_hub_does_not_answer(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = get()
    sent = len(hub.ranges)

    def offline(reason: str) -> None:
        again, told = get()
        assert again == found
        assert reason in told and COMMIT in told and told.count("\n") == 0

    hub.status = 503
    offline("error 503")
    with socket.create_server(("127.0.0.1", 0)) as unused:
        point(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}")
    offline("cannot be reached")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    offline("HF_HUB_OFFLINE is set")
    assert by_split(get(f"hf:me/photos@{COMMIT}")[0]) == by_split(found)
    assert len(hub.ranges) == sent
    assert "HF_HUB_OFFLINE is set; unset it" in refusal("hf:me/others")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("by_another_program", [False, True])
def test_what_the_cache_lacks_is_named(
    by_another_program: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the client's list of files; by their numbers where another program has fetched them."""
    if by_another_program:
        for name in ("README.md", TRAIN[0], TEST):
            hf_hub_download("me/photos", name, repo_type="dataset")
    else:
        found, _ = get()
        (found.folder / TRAIN[1]).unlink()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    sentence = refusal()
    assert f"lacks {TRAIN[1]} of commit {COMMIT}" in sentence
    assert "HF_HUB_OFFLINE is set; unset it" in sentence
    assert by_split(get(splits=["test"])[0]) == {"test": [TEST]}


def test_revisions(hub: StandIn) -> None:
    get()
    with_files(hub, "train.parquet", "val.parquet", branch="@small")
    found, _ = get("hf:me/photos@small:default")
    assert by_split(found) == {"train": ["train.parquet"], "validation": ["val.parquet"]}
    assert found.commit == hub.repositories[f"{SET}@small"]["commit"] != COMMIT
    assert found.licence == "unknown"
    assert get(f"hf:me/photos@{COMMIT}")[0].commit == COMMIT
    sentence = refusal("hf:me/photos@large")
    assert "there is no such revision; give another after the @" in sentence


def test_a_new_card_fetches_no_images_again(hub: StandIn) -> None:
    get()
    sent = len(hub.ranges)
    hub.repositories[SET]["commit"] = LATER
    files_of(hub)["README.md"] = CARD.replace(b"[mit, CC-BY-4.0]", b"apache-2.0")
    found, told = get()
    assert (found.commit, found.licence, told) == (LATER, "apache-2.0", "")
    assert len(hub.ranges) == sent + 1
    assert all(path.is_file() and LATER in path.parts for path, _ in found.files)


def test_configurations_of_the_card(hub: StandIn) -> None:
    card = """configs:
- {config_name: small, data_files: small/*.parquet}
- config_name: large
  data_files:
  - {split: train, path: [large/b.parquet, large/a.parquet]}
  - {split: extra, path: "large/**/c-[0-9].parquet"}
- {config_name: tables, data_files: "*.csv"}
- {config_name: inside, data_dir: inside}"""
    names = ("small/0.parquet", "large/a.parquet", "large/b.parquet", "large/more/c-1.parquet")
    inside = ("inside/training/0.parquet", "inside/dev/0.parquet")
    with_files(hub, *names, *inside, card=card)
    assert "it has inside, large, small, tables" in refusal()
    assert "hf:me/photos:inside" in refusal()
    assert "no configuration big; it has inside, large" in refusal("hf:me/photos:big")
    assert "tables has no Parquet files" in refusal("hf:me/photos:tables")
    assert by_split(get("hf:me/photos:small")[0]) == {"train": ["small/0.parquet"]}
    large = {"train": ["large/b.parquet", "large/a.parquet"], "extra": ["large/more/c-1.parquet"]}
    assert by_split(get("hf:me/photos:large")[0]) == large
    assert by_split(get("hf:me/photos:inside")[0]) == {
        "train": ["inside/training/0.parquet"],
        "validation": ["inside/dev/0.parquet"],
    }
    with_files(hub, *names, card=card.replace("large\n", "large\n  default: true\n"))
    found, _ = get()
    assert (found.config, by_split(found)) == ("large", large)


def test_configurations_by_folder(hub: StandIn) -> None:
    names = ("plain/train-00000-of-00001.parquet", "plain/test-00000-of-00001.parquet")
    with_files(hub, *names)
    found, _ = get()
    assert (found.config, found.splits) == ("plain", ("train", "test"))
    with_files(hub, *names, "grey/train/0.parquet")
    assert "it has grey, plain" in refusal()
    assert by_split(get("hf:me/photos:grey")[0]) == {"train": ["grey/train/0.parquet"]}
    with_files(hub, *names, "data/train/0.parquet")
    assert by_split(get()[0]) == {"train": ["data/train/0.parquet"]}


def test_what_the_hub_has_converted(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository of archives and a program. The conversion has no card."""
    hub.repositories[SET]["files"] = {"images.zip": b"PK", "photos.py": b"raise SystemExit"}
    names = ("all/partial-train/0000.parquet", "all/partial-train/0001.parquet")
    with_files(hub, *names, "all/val/0000.parquet", branch=f"@{CONVERTED}")
    found, told = get()
    expected = {"train": list(names), "validation": ["all/val/0000.parquet"]}
    assert (found.config, by_split(found)) == ("all", expected)
    assert CONVERTED in told and "only a part" in told
    assert get(f"hf:me/photos@{CONVERTED}:all")[0] == found
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert get()[0] == found
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub.repositories[SET]["commit"] = LATER
    files_of(hub)["README.md"] = b"---\nlicense: other\nlicense_name: Photos\n---\n"
    assert get()[0].licence == "photos"
    assert "leave out the revision" in refusal(f"hf:me/photos@{LATER}")


def test_a_set_without_parquet_files(hub: StandIn) -> None:
    hub.repositories[SET]["files"] = {"images.zip": b"PK", "photos.py": b"raise SystemExit"}
    for data in ("hf:me/photos", f"hf:me/photos@{CONVERTED}"):
        assert "no Parquet files" in refusal(data)
        assert "download its images, and give --data their folder" in refusal(data)


def test_what_the_hub_refuses(hub: StandIn, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[SET]["gated"] = True
    sentence = refusal()
    assert "wants terms to be accepted" in sentence and "HF_TOKEN" in sentence
    assert str(cache) in sentence and f"{hub.url}/datasets/me/photos" in sentence
    assert "download https://huggingface.co/datasets/me/photos" in sentence
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    get()
    monkeypatch.delenv("HF_TOKEN")
    assert get()[1] == ""  # the files are here
    assert "no such repository" in refusal("hf:me/nothing")
    assert "not a name on the hub" in refusal("hf:me/no..thing")


def test_a_download_that_stops_goes_on_with_the_files_that_lack(hub: StandIn) -> None:
    content = files_of(hub)
    get(splits=["test"])
    hub.breaks, hub.cut = 100, 1000
    assert "start the same command again" in refusal()
    hub.breaks = 0
    before = len(hub.ranges)
    found, told = get()
    assert "2 of 3 Parquet files" in told
    assert len(hub.ranges) == before + 2
    assert all(
        p.read_bytes() == content[p.relative_to(found.folder).as_posix()] for p, _ in found.files
    )


def test_a_disk_without_room_is_told_before(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("mixco.data.datasets.hub.shutil.disk_usage", lambda _: usage)
    assert "let HF_HOME name a folder on another" in refusal()
    assert len(hub.ranges) == 1  # the card


@pytest.mark.usefixtures("hub")
def test_a_cache_that_cannot_be_written(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert "cannot be written; make it writable" in refusal()


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub("hf:me/photos") and not is_hub("photos") and not is_hub("hf/me")
    for data in ("hf:photos", "hf:me/photos/train", "hf:", "hf:me/photos@", "hf:me/photos:"):
        assert "expected hf:OWNER/NAME" in refusal(data)
    Path("hf:me/photos").mkdir(parents=True)
    assert not is_hub("hf:me/photos")


def test_download_on_the_command_line(
    hub: StandIn, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own, as the hub's client reads its environment once."""
    home = tmp_path / "home"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "mixco", "download", "hf:me/photos"],
        env={**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": hub.url},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith("downloading 3 of 3 Parquet files")
    folder = home / "hub" / "datasets--me--photos" / "snapshots" / COMMIT
    assert str(folder) in second and (folder / TEST).is_file()
    assert all(part in second for part in ("train: 2", "test: 1", COMMIT, "mit, cc-by-4.0"))
    with pytest.raises(SystemExit) as stopped:
        main(["download", "hf:me/photos", "--data-path", str(tmp_path)])
    assert stopped.value.code == 2
    assert "HF_HOME" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (
            "data/train-00000-of-00001-0f.parquet data/extra-00000-of-00001-1e.parquet",
            "train extra",
        ),
        ("train/0000.parquet Test/0000.parquet", "train test"),
        ("training.parquet my-dev_1.parquet eval.parquet", "train validation test"),
        ("a/train-b/test.parquet a/valid/train.parquet", "train validation"),
        ("trained.parquet latest.parquet", "train train"),
        ("2024/train.v2.parquet 2024/evaluation 2.parquet", "train test"),
    ],
)
def test_splits_by_words(names: str, splits: str) -> None:
    paths = names.replace(".parquet ", ".parquet\n").split("\n")
    found = {name: split for split, group in by_words(paths).items() for name in group}
    assert [found[path] for path in paths] == splits.split()


@pytest.mark.parametrize(
    "card",
    [
        {"configs": "train"},
        {"configs": [None, "x"]},
        {"configs": [{"data_files": {"train": "a/**"}}]},
        {"configs": [{"config_name": 5, "data_files": ["**/*.parquet", None]}]},
        {"configs": [{"data_files": [{"split": "train", "path": ["./a/[!x]*.parquet"]}]}]},
    ],
)
def test_cards_of_every_kind(card: dict[str, Any]) -> None:
    _, splits = own_splits("hf:me/photos", ["a/b.parquet"], card, None)
    assert splits == {"train": ["a/b.parquet"]}


def test_two_splits_that_would_have_one_name_stay_two() -> None:
    card = {"configs": [{"data_files": {"val": "a.parquet", "dev": "b.parquet"}}]}
    _, splits = own_splits("hf:me/photos", ["a.parquet", "b.parquet"], card, None)
    assert splits == {"val": ["a.parquet"], "dev": ["b.parquet"]}


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """A process asks the hub once for each set; here each test is one."""
    hub_images._find.cache_clear()
    yield
    hub_images._find.cache_clear()


@pytest.mark.usefixtures("asked_anew")
def test_images_of_the_hub_are_those_of_its_files(hub: StandIn, tmp_path: Path) -> None:
    sample = list_images("sample", None, "train")
    train = list_images("hf:me/photos", None, "pretrain", tmp_path)
    assert train.name == "me--photos/pretrain" and train.revision == COMMIT
    assert len(train.files) == 16 and len(hub.ranges) == 3, "test is not fetched"
    assert [train.read(i) for i in (0, 8)] == [sample.read(i) for i in (0, 100)]
    assert COMMIT in train.notes[0] and "licence mit, cc-by-4.0" in train.notes[0]
    assert len(list_images("hf:me/photos", None, "all", tmp_path).files) == 24
    assert len(hub.ranges) == 4


def of_classes(of: int, *, label: bool) -> bytes:
    """Two images of each of some classes."""
    table = pyarrow.parquet.read_table(io.BytesIO(parquet(0, rows=2)))
    images = table.column("image").to_pylist() * of
    labels = [i // 2 if label else -1 for i in range(2 * of)]
    out = io.BytesIO()
    schema = table.schema.with_metadata({})
    pyarrow.parquet.write_table(pyarrow.table([images, labels], schema=schema), out)
    return out.getvalue()


@pytest.mark.usefixtures("asked_anew")
def test_the_hub_is_evaluated_on_labelled_images(empty_hub: StandIn, tmp_path: Path) -> None:
    """Its test splits often have no labels, -1; then validation is tested."""
    files = {
        f"data/{split}-00000-of-00001.parquet": of_classes(3, label=split != "test")
        for split in ("train", "validation", "test")
    }
    empty_hub.repositories[SET] = {"commit": COMMIT, "files": files}
    test = list_images("hf:me/photos", None, "test", tmp_path)
    assert test.name == "me--photos/validation" and test.labels == (0, 0, 1, 1, 2, 2)
    assert list_images("hf:me/photos", None, "train", tmp_path).classes == test.classes
    unlabelled = list_images("hf:me/photos", None, "test", tmp_path, labelled=False)
    assert unlabelled.name == "me--photos/test"
    with pytest.raises(UserError, match=r"no label.*--label-column"):
        list_images("hf:me/photos", None, "test", tmp_path, test_folder="test")
    del files["data/test-00000-of-00001.parquet"], files["data/validation-00000-of-00001.parquet"]
    empty_hub.repositories[SET]["commit"] = LATER
    hub_images._find.cache_clear()
    with pytest.raises(UserError, match=r"no split test or validation, but train; --test-folder"):
        list_images("hf:me/photos", None, "test", tmp_path)
    # Without labels, train needs no other split.
    assert len(list_images("hf:me/photos", None, "train", tmp_path, labelled=False).files) == 6


@pytest.mark.usefixtures("asked_anew")
def test_a_run_on_the_hub_keeps_its_commit(
    hub: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The branch moves on; the run goes on, and is evaluated, with the files that it began with."""
    settings = {
        "data": "hf:me/photos",
        "out": tmp_path / "run",
        "cache": tmp_path / "packed",
        "arch": "test_resnet",
        "size": 32,
        "batch_size": 8,
        "epochs": 2,
        "workers": 0,
    }
    pretrain(pretrain_config(**settings), stop_after=1)
    assert f"commit {COMMIT}" in capsys.readouterr().err
    begun = hub.repositories[SET]
    hub.repositories[f"{SET}@{COMMIT}"] = begun
    hub.repositories[SET] = {"commit": LATER, "files": {TRAIN[0]: parquet(300)}}
    hub_images._find.cache_clear()
    pretrain(pretrain_config(**settings))
    assert f"commit {COMMIT}" in capsys.readouterr().err
    assert read_json(tmp_path / "run" / "images.json")["revision"] == COMMIT
    name = list_images("sample", None, "train").files[3].rpartition("/")[2]
    main(["neighbours", str(tmp_path / "run"), f"{TRAIN[0]}/3/{name}", "--k", "2"])
    assert len(capsys.readouterr().out.splitlines()) == 3
    hub_images._find.cache_clear()
    with pytest.raises(UserError, match=r"the run began on 16 images of me--photos/pretrain"):
        pretrain(pretrain_config(**settings | {"data": "hf:me/photos@main"}))
