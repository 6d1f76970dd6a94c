"""The command line as a process: what is printed, and with which exit code."""

import ast
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from forked import mixco_command
from sample_images import unpack_sample

import mixco.cli
from mixco.runtime.setting import option
from mixco.settings.config import PretrainConfig, of_other_bases
from mixco.settings.options import rows
from mixco.training.checkpoints import checkpoints


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`mixco ARGUMENTS` with an interpreter of its own."""
    command = [sys.executable, "-m", "mixco", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def test_help_names_the_commands_and_the_recipes() -> None:
    done = run("--help")
    assert done.returncode == 0
    for word in (*mixco.cli.commands(), "Recipes: "):
        assert word in done.stdout
    assert run("--version").stdout.startswith("mixco 0.")


HELP = """
import io, os, sys
from contextlib import redirect_stdout, suppress
import mixco.cli
for command in mixco.cli.commands():
    for columns in (60, 80, 120):
        os.environ["COLUMNS"] = str(columns)
        screen = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
        with redirect_stdout(screen), suppress(SystemExit):
            mixco.cli.main([command, "--help"])
        text = screen.buffer.getvalue().decode()
        assert text.startswith(f"usage: mixco {command} "), command
        print(f"{command} {columns} {ascii(text)}")
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def helps() -> dict[tuple[str, int], str]:
    """The help of each command on screens of some widths, told without loading torch."""
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = (line.split(" ", 2) for line in done.stdout.splitlines())
    return {(command, int(columns)): ast.literal_eval(text) for command, columns, text in lines}


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("command", mixco.cli.commands())
def test_the_help_of_a_command_fits_the_screen(
    helps: dict[tuple[str, int], str], command: str, columns: int
) -> None:
    lines = helps[command, columns].splitlines()
    boxed = lines[4:]  # below the usage and a sentence
    (width,) = {len(line) for line in boxed}
    assert width <= columns
    assert {line[0] + line[-1] for line in boxed} == {"╭╮", "││", "╰╯"}
    words = " ".join(" ".join(line.strip("│ ") for line in lines).split())
    for broken in ("None", "MISSING", "True", "False", "(default: )", "'~", "..", "from nothing"):
        assert broken not in words.replace(" ...", "").replace("...)", "").replace("...,", "")
    names = {row.option for row in rows(resolve_name(mixco.cli.commands()[command].config))}
    names -= {option(name) for name in of_other_bases("simclr")}
    assert all(name in words for name in names)


OWN = {"moco": "--bn-splits", "byol": "--momentum-schedule", "barlow": "--off-diagonal"}


@pytest.mark.parametrize("method", OWN)
@pytest.mark.parametrize("words", ["--method {}", "--method={}", "--recipe cifar10_{}"])
def test_help_has_the_options_of_the_base_alone(
    words: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {"byol": "byol_myol", "barlow": "barlow_mixbt"}
    named = recipe.get(method, method) if "recipe" in words else method
    with pytest.raises(SystemExit):
        mixco.cli.main(["pretrain", *words.format(named).split(), "--help"])
    shown = capsys.readouterr().out
    assert [name for name, own in OWN.items() if f"{own} " in shown] == [method]


PROMISED = [
    *("--recipe", "--data", "--data-path", "--method", "--mix", "--arch", "--size", "--epochs"),
    *("--batch-size", "--seed", "--out"),
]


def test_the_spellings_that_were_promised() -> None:
    text = run("pretrain", "--help").stdout
    assert all(f"{option} " in text for option in PROMISED)
    for command in ("linear", "knn", "finetune"):
        text = run(command, "--help").stdout
        options = ("--run", "--checkpoint", "--data", "--data-path", "--labels", "--out")
        assert all(f"{o} " in text for o in options)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("pretrian", ["pretrian", "did you mean pretrain?"]),
        ("pretrain --recipe demmo", ["--recipe demmo", "did you mean demo?"]),
        ("pretrain --epoch 3", ["--epochs"]),
        ("pretrain --method simcrl", ["--method", "simclr"]),
        ("pretrain --data sampel --out x", ["sampel", "did you mean sample?"]),
        ("pretrain --data tiny-imagenet", ["tiny-imagenet", "--data-path"]),
        ("pretrain --data sample --arch resnet81 --out x", ["resnet81", "did you mean resnet18"]),
        ("pretrain --size 16 --out x", ["--size must be between 32 and 224 pixels, got 16"]),
        ("pretrain --data sample --batch-size 5000 --out x", ["--batch-size 5000", "1600 images"]),
        ("pretrain --device cuda --out x", ["--device cuda", "no such device"]),
        ("pretrain --lr nan --out x", ["--lr must be above 0", "got nan"]),
        ("knn --run nowhere", ["nowhere", "no such file"]),
        ("knn --run nowhere --k 0", ["--k", "at least 1"]),
        ("knn", ["--run", "--checkpoint"]),
        ("linear --checkpoint nothing.pt --data sample", ["nothing.pt", "no such file"]),
        ("linear --lr 3", ["--lr", "--supervised", "--protocol paper"]),
        ("linear --protocol paper --milestones 60", ["--milestones", "below 1", "60"]),
        ("linear --protocol paper --batch-size 0", ["--batch-size", "at least 1"]),
        ("finetune --run nowhere", ["nowhere", "no such file"]),
        ("finetune --checkpoint x.pt --data sample", ["give --out", "folder"]),
        ("finetune --run nowhere --head-lr 0", ["--head-lr", "above 0"]),
        ("embed", ["RUN"]),
        ("report", ["run folders", "results.json"]),
        ("pretrain --data --out x", ["--data is empty"]),
        ("pretrain --data sample sampel --out x", ["--data sample", "given alone"]),
        ("doctor sampel nowhere", ["--data sampel", "did you mean sample?"]),
        ("pretrain --data sample --labels-from t.csv", ["--labels-from", "of your own"]),
        ("pretrain --data sample --download --path-column x", ["--path-column x", "--labels-from"]),
    ],
)
def test_a_mistake_ends_in_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    words: list[str],
) -> None:
    if "--device" in line and torch.cuda.is_available():
        pytest.skip("this machine has one")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        mixco.cli.main(line.split())
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        ("embed a photos --out x.npz", {"run": Path("a"), "data": "photos"}),
        ("embed a --out x.npz", {"run": Path("a"), "data": None}),
        ("embed a b c --out x.npz", {"run": Path("a"), "data": ("b", "c")}),
        ("neighbours a x --among b c --k 3", {"images": ("x",), "among": ("b", "c"), "k": 3}),
        ("duplicates a --among b", {"among": "b"}),
        ("knn --run a --data b c --k 3", {"k": 3}),
        ("compare a --data b c --labels-from t.csv", {"data": ("b", "c")}),
        ("report a b --data c d", {"runs": (Path("a"), Path("b")), "data": ("c", "d")}),
        ("neighbours a x y --k 3", {"run": Path("a"), "images": ("x", "y"), "k": 3}),
        ("report a b --images x", {"runs": (Path("a"), Path("b")), "images": (Path("x"),)}),
        ("push a me/name", {"run": Path("a"), "repo_id": "me/name"}),
        ("download stl10 --data-path x", {"name": "stl10", "data_path": Path("x")}),
    ],
)
def test_what_must_be_given_needs_no_option(line: str, settings: dict[str, object]) -> None:
    name, *arguments = line.split()
    config = mixco.cli.read(name, resolve_name(mixco.cli.commands()[name].config), arguments)
    assert {key: getattr(config, key) for key in settings} == settings


@pytest.mark.parametrize(
    "line", ["pretrain --data a b --size 64", "doctor a b --size 64", "doctor --size 64 --data a b"]
)
def test_data_takes_several_places(line: str) -> None:
    name, *arguments = line.split()
    config: Any = mixco.cli.read(name, resolve_name(mixco.cli.commands()[name].config), arguments)
    data = (config.pretrain if name == "doctor" else config).data
    assert data.data == ("a", "b") and data.size == 64


def test_one_place_is_a_text_and_a_recipe_may_have_several(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[data]\ndata = ["a", "~/b"]\nlabels_from = "t.csv"\nlabel_column = "x"\n')
    given = {
        (): ("a", str(Path("~/b").expanduser())),
        ("--data", "c"): "c",
        ("--data=c",): "c",
        ("--data", "c", "d"): ("c", "d"),
        ("--data",): "",
    }
    for arguments, data in given.items():
        arguments = ("--recipe", str(recipe), *arguments)
        config = mixco.cli.read("pretrain", PretrainConfig, list(arguments))
        assert config.data.data == data
        assert config.data.labels_from == Path("t.csv") and config.data.label_column == "x"


def test_a_mistake_shows_no_traceback() -> None:
    done = run("pretrain", "--data", "sample", "--batch-size", "5000")
    assert done.returncode == 2
    assert done.stderr.startswith("mixco: --batch-size 5000: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_from_a_folder_of_ones_own_to_its_evaluation(tmp_path: Path) -> None:
    """What a user does, by the commands that the README names."""
    unpack_sample(tmp_path / "photos", train=12, test=4, classes=3)
    out, cache = tmp_path / "out", tmp_path / "cache"
    small = ["--size", "32", "--epochs", "2", "--batch-size", "12", "--knn-every", "1"]
    done = mixco_command(
        *("pretrain", "--data", tmp_path / "photos", "--method", "moco", "--mix", "mixco"),
        *(*small, "--cache", cache, "--out", out),
    )
    assert done.returncode == 0, done.stderr
    assert "epoch 2/2" in done.stderr
    assert "kNN" in done.stderr
    assert f"done: {out}" in done.stderr

    for command in ("knn", "linear"):
        done = mixco_command(command, "--run", out, "--cache", cache)
        assert done.returncode == 0, done.stderr
        assert "all 120 weights matched resnet18" in done.stderr
        assert "12 images of photos/test, 36 labelled; moco+mixco on photos/pretrain" in done.stdout
        where = ("--data", tmp_path / "photos", "--cache", cache)
        other = mixco_command(command, "--checkpoint", checkpoints(out)[-1], *where)
        assert other.stdout == done.stdout, "a checkpoint of the end is the encoder"


@pytest.mark.slow
def test_several_folders_on_the_command_line(tmp_path: Path) -> None:
    """Looked at, trained on, and turned into vectors."""
    first = unpack_sample(tmp_path / "a", train=12, test=2, classes=3)
    second = unpack_sample(tmp_path / "b", train=16, test=2, classes=3)
    out, cache = tmp_path / "out", ("--cache", tmp_path / "cache")
    done = mixco_command(*("doctor", "a", "b", "--no-trial", "--size", "32", *cache), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "48 images" in done.stdout + done.stderr
    done = mixco_command(
        *(
            "pretrain",
            "--data",
            first,
            second,
            "--size",
            "32",
            "--epochs",
            "1",
            "--batch-size",
            "12",
        ),
        *("--out", out, *cache),
    )
    assert done.returncode == 0, done.stderr
    assert "48 images" in done.stderr and "left out" in done.stderr
    done = mixco_command("embed", out, "b", "a", "--out", "v.npz", *cache, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the vectors of 54 images" in done.stderr, "test images too"
    done = mixco_command("embed", out, "--out", "own.npz", *cache, cwd=tmp_path)
    assert "the vectors of 48 images" in done.stderr
    done = mixco_command("knn", "--run", out, *cache)
    assert done.returncode == 0, done.stderr
    assert "6 images of a+b/test, 48 labelled" in done.stdout
