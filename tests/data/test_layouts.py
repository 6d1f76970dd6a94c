"""Folders as people have them: what is used, what is left aside, and that both are said."""

import json
import shutil
from pathlib import Path

import pytest
from configs import pretrain_config
from forked import mixco_command
from PIL import Image, features
from sample_images import CLASSES, sample_images, unpack_sample

from mixco.data.datasets import list_images
from mixco.data.formats import endings
from mixco.runtime.errors import UserError
from mixco.settings.parse import with_settings
from mixco.training.pretrain import pretrain

PICTURES = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in sample_images(40)]


def photos(folder: Path, count: int, ending: str = ".jpg") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(PICTURES[:count]):
        picture.save(folder / f"{i:03}{ending}")
    return folder


def of_a_run(folder: Path, *more: str | Path) -> tuple[str, str]:
    """What a run and what doctor say of a folder, each as one line of words; both end well."""
    small = ("--arch", "test_resnet", "--stem", "standard", "--size", "32", "--device", "cpu")
    cache = folder.with_name("cache")
    out = folder.with_name(f"run-of-{folder.name}")
    options = ("--data", folder, *small, "--cache", cache, *more)
    run = mixco_command("pretrain", *options, "--out", out, "--epochs", "1", "--batch-size", "8")
    report = folder.with_name("doctor.json")
    look = mixco_command("doctor", *options, "--no-trial", "--json", report)
    assert (run.returncode, look.returncode) == (0, 0), run.stderr + look.stderr
    notes = json.loads(report.read_text("utf-8"))["notes"]
    said = " ".join(run.stderr.split())
    assert all(" ".join(note.split()) in said for note in notes)
    return said, " ".join(notes)


def test_a_class_that_is_called_train_is_no_split(tmp_path: Path) -> None:
    unpack_sample(tmp_path / "photos", train=10, test=0, classes=4)
    folder = tmp_path / "photos"
    for name in CLASSES[:4]:
        shutil.move(folder / "train" / name, folder / name)
    (folder / "train").rmdir()
    (folder / CLASSES[0]).rename(folder / "train")
    said, notes = of_a_run(folder)
    assert ", 40 images packed" in said
    assert "train/ is taken for one folder among others" in notes
    (folder / "loose.jpg").write_bytes((folder / "train").iterdir().__next__().read_bytes())
    assert len(list_images(str(folder), None, "pretrain").files) == 41


def test_what_lies_beside_a_split_is_left_aside_and_said(tmp_path: Path) -> None:
    folder = unpack_sample(tmp_path / "photos", train=8, test=2, classes=3)
    photos(folder / "extra", 5)
    photos(folder, 1)
    (folder / "train" / "notes.txt").touch()
    (folder / "notes.md").touch()
    said, notes = of_a_run(folder)
    assert ", 24 images packed" in said
    assert "train/ is used" in notes
    assert all(
        part in notes
        for part in ("images in test/ (6)", "images in extra/ (5)", "images in no folder (1)")
    )
    assert "left aside: .txt (1)" in notes
    assert ".md" not in notes


def test_train_alone_is_a_split_with_labels(tmp_path: Path) -> None:
    folder = unpack_sample(tmp_path / "photos", train=3, test=0, classes=3)
    (folder / "readme.txt").touch()
    source = list_images(str(folder), None, "pretrain")
    assert (source.root, source.notes, len(source.classes)) == (folder / "train", (), 3)


@pytest.mark.parametrize("data", ["", " "])
def test_an_empty_folder_name_is_refused(tmp_path: Path, data: str) -> None:
    photos(tmp_path, 4)
    done = mixco_command("pretrain", f"--data={data}", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "--data sample" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["pretrain", "doctor"])
def test_no_folder_is_refused(tmp_path: Path, command: str) -> None:
    done = mixco_command(command, cwd=tmp_path)
    assert done.returncode == 2
    assert "--data sample" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_links_to_class_folders_are_followed(tmp_path: Path) -> None:
    whole = unpack_sample(tmp_path / "whole", train=4, test=2, classes=3)
    for split in ("train", "test"):
        (tmp_path / "links" / split).mkdir(parents=True)
        for place in (whole / split).iterdir():
            (tmp_path / "links" / split / place.name).symlink_to(place)
    for split in ("pretrain", "train", "test"):
        linked = list_images(str(tmp_path / "links"), None, split)
        there = list_images(str(whole), None, split)
        assert (linked.files, linked.labels) == (there.files, there.labels)


def test_every_ending_that_pillow_reads_is_an_image(tmp_path: Path) -> None:
    """Also in capitals; what cannot be read here is counted, with a hint for iPhones' photographs."""
    folder = photos(tmp_path / "photos", 8)
    more = [".jfif", ".JPE", ".pgm", ".pnm", ".jp2", ".tga", ".qoi", ".PNG", ".mpo"]
    more += [".avif"] if features.check("avif") else []
    for ending in more:
        assert ending.lower() in endings()
        kind = "JPEG" if ending.lower() in (".jfif", ".jpe") else None
        PICTURES[3].save(folder / f"more{ending}", kind)
    heic = ".heic" not in endings()
    for i in range(3):
        (folder / f"{i}.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(2000))
    (folder / "clip.mp4").write_bytes(bytes(100))
    (folder / "drawing.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    if heic:
        said, notes = of_a_run(folder)
        assert f", {8 + len(more)} images packed" in said
        assert ".heic (3)" in notes
        assert "pip install pillow-heif" in notes
        assert ".mp4 (1)" in notes
        assert ".eps (1)" in notes


def test_where_no_image_is_it_says_what_is_there(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "@eaDir/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(
        UserError, match=r"no image in it \(left aside: \.mp4 \(2\), folders @eaDir \(1\)\)"
    ):
        list_images(str(tmp_path), None, "pretrain")


def test_a_run_does_not_train_on_the_pictures_of_runs(tmp_path: Path) -> None:
    """Its folder and another's lie among the images; a stopped run goes on as if neither were there."""
    folder = photos(tmp_path / "photos", 16)
    small = ("--arch", "test_resnet", "--stem", "standard", "--size", "32", "--device", "cpu")
    options = (*small, "--data", folder, "--cache", tmp_path / "cache", "--batch-size", "8")

    def run(name: str, *more: str) -> str:
        done = mixco_command("pretrain", *options, "--out", folder / "runs" / name, *more)
        assert done.returncode == 0, done.stderr
        return " ".join(done.stderr.split())

    assert ", 16 images packed" in run("a", "--epochs", "1", "--report")
    assert (folder / "runs" / "a" / "views.png").exists()
    said = run("b", "--epochs", "1", "--seed", "1")
    assert ", 16 images packed" in said
    assert "left aside: folders of runs (1)" in said
    (folder / "runs" / "a" / "results.json").unlink()  # as if it had been stopped before its end
    assert "going on after step 2 of 2" in run("a", "--epochs", "1", "--report")


def test_pretraining_needs_no_labels(tmp_path: Path) -> None:
    """A folder a patient, each with one image, one of them damaged: fine for pretraining."""
    for i, picture in enumerate(PICTURES):
        path = tmp_path / "photos" / "train" / f"patient{i:03}" / "1.jpg"
        path.parent.mkdir(parents=True)
        picture.save(path)
    (tmp_path / "photos" / "train" / "patient007" / "1.jpg").write_bytes(b"\xff\xd8\xff broken")
    said, _ = of_a_run(tmp_path / "photos", "--max-unreadable", "0.05")
    assert ", 39 images packed" in said
    assert "1 unreadable images left out" in said


def test_how_many_may_be_unreadable_is_an_option(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 20)
    (folder / "001.jpg").write_bytes(b"")
    run = ("--arch", "test_resnet", "--stem", "standard", "--size", "32", "--epochs", "1")
    options = ("--data", folder, *run, "--device", "cpu", "--cache", tmp_path / "cache")
    for command, more in (("doctor", ("--no-trial",)), ("pretrain", ("--out", tmp_path / "run"))):
        for loading in ("packed", "streamed"):
            few = mixco_command(command, *options, *more, "--loading", loading)
            assert few.returncode == 2
            text = " ".join((few.stdout + few.stderr).split())
            assert "1 of 20 images cannot be read (001.jpg: the file is empty)" in text
            assert "--max-unreadable 0.01" in text
        assert mixco_command(command, *options, *more, "--max-unreadable", "0.05").returncode == 0
    # The packed file is there now; it is still too much for who allows less.
    assert mixco_command("pretrain", *options, "--out", tmp_path / "new").returncode == 2


def test_a_run_goes_on_without_what_could_not_be_read_when_it_began(tmp_path: Path) -> None:
    """A file whose rights were wrong for a moment is used by new runs, and not by the one that began."""
    folder = photos(tmp_path / "photos", 24)
    whole = (folder / "003.jpg").read_bytes()
    (folder / "003.jpg").write_bytes(b"")
    config = pretrain_config(
        data=str(folder),
        cache=tmp_path / "cache",
        arch="test_resnet",
        stem="standard",
        size=32,
        epochs=2,
        batch_size=8,
        max_unreadable=0.1,
        out=tmp_path / "run",
    )
    unbroken = pretrain(with_settings(config, {"out": tmp_path / "unbroken"}, "test"))
    pretrain(config, stop_after=3)
    (folder / "003.jpg").write_bytes(whole)
    run = pretrain(config)
    assert (run / "unreadable.txt").read_text() == "003.jpg\tthe file is empty\n"
    assert (run / "encoder.safetensors").read_bytes() == (
        unbroken / "encoder.safetensors"
    ).read_bytes()
    new = pretrain(with_settings(config, {"out": tmp_path / "new"}, "test"))
    assert json.loads((new / "results.json").read_text())["pretrain"]["images"] == 24
    assert not (new / "unreadable.txt").exists()
