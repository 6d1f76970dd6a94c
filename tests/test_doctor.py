"""`mixco doctor`, as a user runs it: a process, real files with trouble, the page and the JSON file."""

import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from forked import python
from PIL import Image
from rich.console import Console
from sample_images import unpack_sample
from troubled import troubled_folder

import mixco.cli
from mixco.doctor.page import duration, show


def doctor(*arguments: str | Path, columns: int = 80) -> subprocess.CompletedProcess[str]:
    return python("-m", "mixco", "doctor", *arguments, environment={"COLUMNS": str(columns)})


@pytest.fixture(scope="module")
def trouble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor") / "photos"
    troubled_folder(folder)
    return folder


SMALL = ("--arch", "test_resnet", "--size", "32", "--stem", "standard", "--device", "cpu")


def test_a_folder_with_trouble(trouble: Path, tmp_path: Path) -> None:
    report, out = tmp_path / "found.json", tmp_path / "run"
    done = doctor(
        *(trouble, *SMALL, "--method", "moco", "--queue", "150", "--mix-temperature", "0.01"),
        *("--precision", "bfloat16", "--json", report, "--out", out, "--cache", tmp_path / "c"),
    )
    assert done.returncode == 2, done.stderr  # three of 163 cannot be read
    assert not out.exists(), "nothing is written into the run's folder"
    found = json.loads(report.read_text("utf-8"))
    files = found["files"]
    assert (found["headers"], found["decoded"]) == (files, files)
    assert {each["file"] for each in found["unreadable"]} == {"cut.jpg", "empty.jpg", "page.jpg"}
    assert found["copies"]["groups"] == [["copy.jpg", "good-003.jpg"]]
    assert found["near_copies"]["pairs"] == [
        ["good-004.jpg", "quality.jpg"],
        ["good-005.jpg", "smaller.jpg"],
    ]
    assert found["notes"] == ["left aside: .db (1), .txt (1)"]
    assert found["kinds"] == {
        "RGB": files - 6,
        "grey": 1,
        "16 bits": 1,
        "transparent": 1,
        "CMYK": 1,
    }
    assert found["grey"] == 3
    assert found["sizes"]["smallest"] == [20, 20]
    assert found["sizes"]["aspect"]["largest"] == 20
    assert "cannot be read" in found["unusable"]
    warned = {each["what"]: each["remedy"] for each in found["warnings"]}
    for words, remedy in {
        "of the files cannot be read": f"{report} lists them",
        "very few": "add more",
        "the queue of 150 keys": "--queue 40",
        "--mix-temperature 0.01 is low": "--precision float32",
    }.items():
        assert any(words in what and remedy in warned[what] for what in warned), words
    assert found["trial"]["images_per_second"] > 0
    assert found["trial"]["steps"] >= 2
    page = " ".join(done.stdout.split())
    for words in ("grey 0.6%", "3 of 163 images cannot be read", "copy.jpg"):
        assert words in page
    lines = done.stdout.splitlines()
    # A path that is longer than the line stays whole, alone in its line, to be copied.
    assert all(len(line) <= 80 or len(line.removeprefix("    -> ").split()) == 1 for line in lines)
    assert all(line == line.rstrip() for line in lines)
    assert "\x1b" not in done.stdout


def test_a_sound_folder(tmp_path: Path) -> None:
    photos = unpack_sample(tmp_path / "photos", train=100, test=1)
    done = doctor(photos, *SMALL, "--epochs", "100", "--cache", tmp_path / "cache", columns=120)
    assert done.returncode == 0, done.stderr
    assert "Nothing to warn of." in done.stdout
    assert "classes" in done.stdout
    assert "10, of 100 files each" in done.stdout
    assert "images/s" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} <= {"photos", "cache"}


def in_here(*arguments: str | Path) -> int:
    """The exit code of the command, in this process."""
    try:
        mixco.cli.main(["doctor", *map(str, arguments)])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def test_it_looks_at_the_recipes_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "found.json"
    code = in_here(
        *("sample", "--recipe", "demo", "--arch", "test_resnet", "--no-trial", "--json", report),
        *("--cache", tmp_path / "cache"),
    )
    assert code == 0
    config = json.loads(report.read_text("utf-8"))["config"]
    assert (config["optimisation"]["epochs"], config["data"]["size"]) == (24, 64)
    assert "not tried" in capsys.readouterr().out


def test_test_images_that_are_in_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By their pixels: one is a copy of the file, one was saved in another format."""
    photos = unpack_sample(tmp_path / "photos", train=8, test=3, classes=3)
    report = tmp_path / "found.json"
    usual = ("--no-trial", *SMALL, "--json", report, "--cache", tmp_path / "cache")

    def found() -> dict[str, Any]:
        assert in_here(photos, *usual) == 0
        result: dict[str, Any] = json.loads(report.read_text("utf-8"))
        return result

    assert found()["test_in_train"] == {"files": 0, "of": 33, "compared": 33, "pairs": []}
    assert "test in train  none\n" in capsys.readouterr().out
    first, second = sorted((photos / "train" / "Forest").iterdir())[:2]
    shutil.copy(first, photos / "test" / "AnnualCrop" / "a.jpg")
    Image.open(second).save(photos / "test" / "Forest" / "b.png")
    result = found()
    assert result["test_in_train"] == {
        "files": 2,
        "of": 35,
        "compared": 35,
        "pairs": [
            ["AnnualCrop/a.jpg", f"Forest/{first.name}"],
            ["Forest/b.png", f"Forest/{second.name}"],
        ],
    }
    [warning] = [each for each in result["warnings"] if "copies of train images" in each["what"]]
    assert warning["what"].startswith("2 test images") and str(report) in warning["remedy"]
    assert "test in train  2: AnnualCrop/a.jpg = " in capsys.readouterr().out
    shutil.rmtree(photos / "test")
    assert found()["test_in_train"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "neither a folder nor a known data set"),
        (["sample", "--epoch", "3"], "--epochs"),
    ],
)
def test_a_mistake_ends_in_a_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_here(*arguments) == 2
    assert message in capsys.readouterr().err


def test_what_cannot_begin_still_gets_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = unpack_sample(tmp_path / "photos", train=4, test=1, classes=2)
    code = in_here(photos, "--batch-size", "5000", "--no-trial", "--cache", tmp_path / "cache")
    assert code == 2
    page = " ".join(capsys.readouterr().out.split())
    assert "The run would be refused: --batch-size 5000: there are only 8 images" in page
    assert "width, height all 64 x 64" in page


def test_folders_without_an_image_that_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "photos" / name).write_text("no")
    assert in_here(tmp_path / "photos", "--cache", tmp_path / "cache") == 2
    assert "none of its 2 images can be read" in capsys.readouterr().err


def test_a_page_of_much_is_short_and_has_no_markup() -> None:
    found: dict[str, Any] = {
        "data": "[bold]x",
        "files": 9,
        "headers": 9,
        "decoded": 9,
        "bytes": 10**10,
        "unreadable": [{"file": f"{i}.jpg", "reason": "[red]"} for i in range(9)],
        "unreadable_files": 9,
        "notes": [],
        "sizes": None,
        "kinds": {},
        "grey": 0,
        "copies": {"files": 0, "compared": 5, "groups": []},
        "classes": None,
        "near_copies": {"files": 0, "compared": 9, "pairs": []},
        "test_in_train": {"files": 0, "of": 20, "compared": 9, "pairs": []},
        "unusable": "all is lost",
        "warnings": [],
    }
    text = io.StringIO()
    show(found, Console(file=text, width=60))
    assert "[bold]x" in text.getvalue()
    assert "2.jpg: [red], ..." in " ".join(text.getvalue().split())
    assert "copies         none among 5 compared" in text.getvalue()
    assert "test in train  none among 9 compared" in text.getvalue()
    assert "Nothing to warn of" not in text.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (600, "10 min"), (8000, "2.2 h"), (10**6, "11.6 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
