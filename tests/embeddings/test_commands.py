"""The commands neighbours and duplicates, as they are typed."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from run_folders import random_run
from sample_images import unpack_sample

import mixco
import mixco.cli


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/0.jpg ... 19.jpg in the current folder, of which "again.jpg" is a copy of 7.jpg, and
    "saved.jpg" is 3.jpg, saved anew."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    source = unpack_sample(tmp_path / "sample", train=2, test=1)
    for i, file in enumerate(sorted(source.rglob("*.jpg"))[:20]):
        shutil.copy(file, folder / f"{i}.jpg")
    shutil.copy(folder / "7.jpg", folder / "again.jpg")
    Image.open(folder / "3.jpg").save(folder / "saved.jpg", quality=90)
    random_run(tmp_path / "run", "photos")
    return folder


def typed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    mixco.cli.main([*arguments, "--cache", "cache"])
    return capsys.readouterr().out


def test_neighbours_are_printed_and_drawn(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(photos / "7.jpg", tmp_path / "mine.jpg")
    asked = ("run", "photos/7.jpg", "mine.jpg", "--k", "3")
    text = typed(capsys, "neighbours", *asked, "--picture", "picture.png")
    lines = text.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["photos/7.jpg", "mine.jpg"]
    assert lines[1] == "  1.0000  photos/again.jpg", "itself is left out"
    assert {lines[5], lines[6]} == {"  1.0000  photos/7.jpg", "  1.0000  photos/again.jpg"}
    assert len(lines) == 8
    with Image.open("picture.png") as picture:
        assert picture.width > picture.height > 100


def test_the_vectors_are_kept_until_something_changes(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def kept() -> dict[str, int]:
        return {f.name: f.stat().st_mtime_ns for f in (tmp_path / "run/embeddings").iterdir()}

    typed(capsys, "neighbours", "run", "photos/7.jpg")
    first = kept()
    typed(capsys, "neighbours", "run", "photos/8.jpg")
    typed(capsys, "duplicates", "run", "--among", "photos/")
    assert kept() == first
    shutil.copy(photos / "9.jpg", photos / "new.jpg")
    assert "1.0000  photos/new.jpg" in typed(capsys, "neighbours", "run", "photos/9.jpg")
    assert len(kept()) == 2


def test_duplicates_tell_copies_from_what_is_only_alike(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert photos.name == "photos"
    text = typed(capsys, "duplicates", "run", "--threshold", "0.99", "--show", "2")
    assert text.startswith("group 1: 2 images\n  1.0000  photos/7.jpg\n  1.0000  photos/again.jpg")
    assert "(the pixels of photos/7.jpg)" in text
    assert "exact copies among them: 1" in text

    typed(capsys, "duplicates", "run", "--threshold", "0.99", "--out", "groups.json")
    typed(capsys, "embed", "run", "photos", "--out", "v.safetensors")
    typed(capsys, "duplicates", "v.safetensors", "--threshold", "0.99", "--out", "groups.csv")
    groups = json.loads(Path("groups.json").read_text())
    (saved,) = (group for group in groups if "photos/saved.jpg" in group["paths"])
    assert "photos/3.jpg" in saved["paths"] and not any(saved["same_pixels_as"])
    with Path("groups.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [path for group in groups for path in group["paths"]]
    copies = [(row["path"], row["same_pixels_as"]) for row in rows if row["same_pixels_as"]]
    assert copies == [("photos/again.jpg", "photos/7.jpg")]


@pytest.fixture
def splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run "run" in the current folder, and photos/train and photos/test, which has an image of train
    as it is, one as PNG, and one saved again."""
    monkeypatch.chdir(tmp_path)
    photos = unpack_sample(tmp_path / "photos", train=4, test=2)
    train, test = photos / "train", photos / "test"
    river, forest, sea = (min((train / name).iterdir()) for name in ("River", "Forest", "SeaLake"))
    shutil.copy(river, test / "Forest" / "copy.jpg")
    Image.open(forest).save(test / "Forest" / "png.png")
    Image.open(sea).save(test / "SeaLake" / "again.jpg", quality=90)
    random_run(tmp_path / "run", "photos")
    return photos


def test_images_of_test_that_are_in_train(splits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {name: min((splits / "train" / name).iterdir()).name for name in ("River", "Forest")}
    copy = ("photos/test/Forest/copy.jpg", f"photos/train/River/{names['River']}")
    png = ("photos/test/Forest/png.png", f"photos/train/Forest/{names['Forest']}")
    asked = ("duplicates", "run", "--between", "train", "test")
    text = typed(
        capsys, *asked, "--threshold", "1", "--out", "found.json", "--picture", "found.png"
    )
    found = json.loads(Path("found.json").read_text())
    exact = [tuple(pair["paths"]) for pair in found if any(pair["same_pixels_as"])]
    assert sorted(exact) == [copy, png], "at whatever similarity"
    assert exact == [tuple(pair["paths"]) for pair in found[:2]], "they come first"
    assert found[0]["same_pixels_as"] == [None, found[0]["paths"][0]]
    assert f"{copy[0]}\n  1.0000  {copy[1]}  (the same pixels)\n" in text
    assert "exact copies among them: 2" in text
    with Image.open("found.png") as picture:
        assert picture.format == "PNG" and picture.width > picture.height > 200

    near = mixco.duplicates("run", between=("train", "test"), threshold=0.99, cache="cache")
    again = next(pair for pair in near if pair.paths[0] == "photos/test/SeaLake/again.jpg")
    assert again.paths[1].startswith("photos/train/") and again.same_pixels_as == (None, None)
    assert again.similarities[0] == 1 and again.similarities[1] >= 0.99
    of_others = [pair.similarities[1] for pair in near[2:]]
    assert of_others == sorted(of_others, reverse=True)
    assert all(pair.paths[0].startswith("photos/test/") for pair in near)

    asked = (
        *asked,
        "--among",
        "photos",
        "--threshold",
        "0.99",
        "--out",
        "found.csv",
        "--show",
        "1",
    )
    assert "--out FILE, has them all" in typed(capsys, *asked)
    with Path("found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [path for pair in near for path in pair.paths]


def test_a_missing_split_is_told_before_anything_is_embedded(
    splits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(splits / "test")
    with pytest.raises(SystemExit) as stopped:
        typed(capsys, "duplicates", "run", "--between", "train", "test")
    assert stopped.value.code == 2
    assert "there are train; give the folder that has it" in capsys.readouterr().err
    assert not Path("run/embeddings").exists()


def test_splits_that_share_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of a named set in an archive; no picture is no mistake."""
    run = random_run(tmp_path / "run", "sample")
    picture = tmp_path / "found.png"
    settings = {"cache": tmp_path, "threshold": 1.0, "picture": picture, "workers": 0}
    assert mixco.duplicates(run, between=("train", "test"), **settings) == []
    assert "nothing was found" in capsys.readouterr().err.replace("\n", " ")
    assert not picture.exists()


def test_groups_are_drawn(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert photos.name == "photos"
    typed(capsys, "duplicates", "run", "--threshold", "0.99", "--picture", "groups.png")
    with Image.open("groups.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 200


def test_images_that_are_no_files(tmp_path: Path) -> None:
    """Images of a named set are found by their names in it, and their pixels are compared too."""
    run = random_run(tmp_path / "run", "sample")
    out = tmp_path / "v.npz"
    mixco.embed(run, "sample", split="test", out=out, cache=tmp_path)
    name = mixco.duplicates(out, threshold=0.999)[0].paths[0]
    assert name.startswith("eurosat-demo/")
    (found,) = mixco.neighbours(run, name, among=str(out), k=4, picture=tmp_path / "n.png")
    assert len(found.paths) == 4 and name not in found.paths
    assert (tmp_path / "n.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["neighbours", "run", "no.jpg"], "no.jpg: "),
        (["neighbours", "run", "photos/1.jpg", "--k", "0"], "--k must be at least 1, got 0"),
        (["neighbours", "run/encoder.safetensors", "photos/1.jpg"], "give the images too"),
        (["neighbours", "other", "photos/1.jpg", "--among", "v.npz"], "another encoder"),
        (
            ["duplicates", "run", "--threshold", "95"],
            "--threshold must be above 0 and at most 1",
        ),
        (["duplicates", "run", "--out", "groups.txt"], "--out must end in .csv or .json"),
        (["duplicates", "run", "--picture", "groups.jpg"], "--picture must end in .png"),
        (["duplicates", "v.npz", "--among", "photos"], "leave out --among"),
        (["duplicates", "v.npz", "--between", "train", "test"], "v.npz is a file of vectors"),
        (["duplicates", "run", "--between", "train", "train"], "two different splits"),
        (
            ["duplicates", "run", "--between", "train", "test", "--among", "v.npz"],
            "v.npz is a file of vectors",
        ),
        (
            ["duplicates", "run", "--between", "train", "test", "--split", "test"],
            "leave out --split",
        ),
        (["duplicates", "run", "--between", "train", "test"], "give the folder that has it"),
        (["duplicates", "nothing.npz"], "nothing.npz: cannot be read"),
    ],
)
def test_mistakes_are_named(
    photos: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    random_run(photos.parent / "other", "photos", seed=1)
    mixco.embed("run", photos, out="v.npz", cache="cache")
    with pytest.raises(SystemExit) as stopped:
        typed(capsys, *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
