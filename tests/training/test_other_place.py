"""The place and the list of files say which images a run has, not how a path is spelled."""

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import config_of, evaluation_config, pretrain_config
from forked import mixco_command
from run_states import assert_equal, final_state
from sample_images import unpack_sample

from mixco.data.datasets import Where
from mixco.data.run_images import changes, known_images
from mixco.embeddings.commands import Neighbours, neighbours
from mixco.evaluation.protocols import evaluate_knn
from mixco.export.export import export
from mixco.report.command import report
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import read_json
from mixco.settings.commands import (
    ExportConfig,
    KNNConfig,
    NeighboursConfig,
    ReportConfig,
)
from mixco.settings.config import PretrainConfig
from mixco.settings.parse import with_settings
from mixco.training.checkpoints import checkpoints
from mixco.training.pretrain import pretrain

COPIES = ("photos", "photos/", "./photos", "../project/photos", "by-link", "whole path")


def config(data: str | Path, **settings: Any) -> PretrainConfig:
    return pretrain_config(
        data=str(data),
        **{
            "out": Path("runs/a"),
            "cache": Path("cache"),
            "arch": "test_resnet",
            "size": 32,
            "epochs": 3,
            "batch_size": 16,
            "knn_every": 1,
            "loading": "packed",
            "workers": 1,
            **settings,
        },
    )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with photos/ in it."""
    folder = tmp_path / "project"
    unpack_sample(folder / "photos", train=16, test=2, classes=3)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def stopped(project: Path) -> Path:
    """A run on photos/ that was stopped in its second epoch."""
    pretrain(config("photos/"), stop_after=5)
    return project / "runs" / "a"


def image_of(photos: Path) -> Path:
    return min((photos / "train").rglob("*.jpg"))


@pytest.mark.parametrize("spelling", COPIES)
def test_another_spelling_is_no_other_place(
    stopped: Path, spelling: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if spelling == "by-link":
        Path(spelling).symlink_to("photos")
    data = Path("photos").resolve() if spelling == "whole path" else spelling
    capsys.readouterr()
    pretrain(config(data, out=stopped, cache=Path("../project/cache")))
    said = capsys.readouterr().err
    assert "going on after step 5" in said
    assert "changed since" not in said
    assert "are now at" not in said
    assert read_json(stopped / "config.json")["data"]["data"] == "photos/"


def test_from_another_working_folder(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("notebooks").mkdir()
    monkeypatch.chdir("notebooks")
    pretrain(config("../photos", out=Path("../runs/a"), cache=Path("../cache")))
    assert read_json(stopped / "results.json")["pretrain"]["data"] == "photos/pretrain"


def test_at_another_place_it_goes_on_bit_for_bit(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a cluster: each start of a job has a scratch folder of its own."""
    whole = pretrain(config("photos", out=Path("runs/whole")))
    shutil.move("photos", tmp_path / "job-17")
    capsys.readouterr()
    pretrain(config(tmp_path / "job-17", out=stopped))
    assert f"the images are now at {tmp_path / 'job-17'}" in capsys.readouterr().err
    assert_equal(final_state(stopped), final_state(whole))
    assert (stopped / "encoder.safetensors").read_bytes() == (
        whole / "encoder.safetensors"
    ).read_bytes()
    assert read_json(stopped / "results.json")["pretrain"]["data"] == "photos/pretrain"
    result = evaluate_knn(config_of(KNNConfig, run=stopped, cache=tmp_path / "cache"))
    assert result["data"] == "job-17/test"
    assert "knn" in read_json(stopped / "results.json")


def remove(photos: Path) -> None:
    image_of(photos).unlink()


def add(photos: Path) -> None:
    shutil.copy(image_of(photos), photos / "train" / "Forest" / "more.jpg")


def rename(photos: Path) -> None:
    image_of(photos).rename(image_of(photos).with_name("renamed.jpg"))


def move_to_another_class(photos: Path) -> None:
    image = image_of(photos)
    image.rename(photos / "train" / "Forest" / image.name)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (remove, ("now there are 47", "1 image fewer, AnnualCrop/AnnualCrop_")),
        (add, ("now there are 49", "1 image more, Forest/more.jpg")),
        (rename, ("1 image more, AnnualCrop/renamed.jpg", "1 image fewer, AnnualCrop/")),
        (move_to_another_class, ("1 image more, Forest/AnnualCrop_", "1 image fewer, AnnualCrop/")),
    ],
)
def test_another_list_is_refused_with_what_differs(
    stopped: Path, change: Callable[[Path], None], told: tuple[str, ...], elsewhere: bool
) -> None:
    photos = Path("photos")
    if elsewhere:
        photos = Path(shutil.copytree(photos, "copy"))
    change(photos)
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as refused:
        pretrain(config(photos, out=stopped))
    assert all(text in str(refused.value) for text in (*told, "48 images", "another --out"))
    assert before == {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}


def test_a_finished_run_is_not_of_other_images(finished: Path, project: Path) -> None:
    remove(project / "photos")
    with pytest.raises(UserError, match=r"1 image fewer.*another --out"):
        pretrain(config("photos", out=finished, epochs=1, knn_every=0))


def test_what_differs_in_words() -> None:
    assert changes("abc", "abc") == "the names are the same, but not the classes or the files"
    assert changes("abc", "abcxyz") == "3 images more, the first of them x"
    assert changes("abc", "ax") == "1 image more, x; 2 images fewer, the first of them b"


@pytest.mark.parametrize("damage", ["missing", "damaged", "of other types", "no list"])
def test_a_run_that_knows_only_number_and_name_still_resumes(stopped: Path, damage: str) -> None:
    """Those of an early version; its checkpoints have no digest either."""
    newest = checkpoints(stopped)[-1]
    state = torch.load(newest, weights_only=True)
    del state["data"]["digest"]
    torch.save(state, newest)
    facts = stopped / "images.json"
    if damage == "missing":
        facts.unlink()
    elif damage == "damaged":
        facts.write_text("{")
    elif damage == "of other types":
        facts.write_text(json.dumps(read_json(facts) | {"place": 1}))
    else:
        (stopped / "images.txt.gz").unlink()
    pretrain(config("./photos", out=stopped))
    assert read_json(facts)["files"] == 48, "and knows them now"


def test_without_the_list_another_number_is_still_refused(stopped: Path) -> None:
    (stopped / "images.json").unlink()
    remove(Path("photos"))
    with pytest.raises(UserError, match=r"48 images of photos/pretrain, now .* 47"):
        pretrain(config("photos", out=stopped))


def test_the_names_are_kept_beside_the_run(stopped: Path) -> None:
    names = gzip.decompress((stopped / "images.txt.gz").read_bytes()).decode().splitlines()
    found = (Path("photos") / "train").rglob("*.jpg")
    assert names == sorted(path.relative_to("photos/train").as_posix() for path in found)


@pytest.fixture
def finished(project: Path) -> Path:
    run = pretrain(config("photos", epochs=1, knn_every=0))
    assert (project / run).is_dir()
    return run


def collection(run: Path) -> list[Neighbours]:
    settings = {"device": "cpu", "workers": 0, "cache": Path("c").resolve()}
    return neighbours(with_settings(NeighboursConfig(run, ("x.jpg",)), settings, "neighbours"))


def results(run: Path) -> set[str]:
    evaluate_knn(config_of(KNNConfig, run=run, cache=Path("c").resolve()))
    return set(read_json(run / "results.json"))


def pages(run: Path) -> str:
    page = report(ReportConfig((run,), device="cpu"))
    assert page is not None
    return page.read_text("utf-8")


def test_commands_from_another_folder_find_the_images(finished: Path, project: Path) -> None:
    """Real processes; a photos/ with other images lies in their working folder."""
    notebooks = project / "notebooks"
    unpack_sample(notebooks / "photos", train=3, test=3, classes=3)
    image = image_of(project / "photos")
    run, cache = Path("../runs/a"), ("--cache", project / "cache", "--device", "cpu")
    commands: tuple[tuple[str | Path, ...], ...] = (
        ("knn", "--run", run, *cache),
        ("linear", "--run", run, "--epochs", "5", *cache),
        ("neighbours", run, os.path.relpath(image, notebooks), "--k", "2", *cache),
        ("duplicates", run, *cache),
        ("embed", run, "--out", "v.npz", *cache),
        ("report", run, "--device", "cpu"),
    )
    for command in commands:
        done = mixco_command(*command, cwd=notebooks)
        assert done.returncode == 0, done.stderr
        if command[0] == "neighbours":
            assert len(done.stdout.splitlines()) == 3
            assert "AnnualCrop" in done.stdout or "Forest" in done.stdout
        if command[0] == "embed":
            assert "48 images" in done.stderr
    found = read_json(finished / "results.json")
    assert found["knn"]["train_images"] == found["linear"]["train_images"] == 48
    assert "@" not in "".join(found)
    assert "images cannot be opened" not in (finished / "report.html").read_text("utf-8")
    assert sorted(path.name for path in notebooks.iterdir()) == ["photos", "v.npz"]


def test_a_run_moved_with_its_images_finds_them(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert finished.is_dir()
    shutil.move(tmp_path / "project", tmp_path / "another-machine")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "another-machine" / "runs" / "a"
    assert results(run) == {"pretrain", "knn"}
    assert f"the images are now at {tmp_path / 'another-machine' / 'photos'}" in (
        capsys.readouterr().err.replace("\n", "")
    )
    page = pages(run)
    assert "images cannot be opened" not in page
    export(ExportConfig(run=run))
    assert "comparing on the sample" not in capsys.readouterr().err


@pytest.mark.parametrize("numbered", [False, True])
def test_other_images_are_never_taken_silently(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbered: bool
) -> None:
    """Images of another list, or of the same names but other files, are not those of the run."""
    run = pretrain(config("photos", epochs=1, knn_every=0))
    other = tmp_path / "other"
    shutil.copytree("photos", other / "photos")
    for place in (other / "photos" / "train").rglob("*.jpg"):
        if numbered:
            place.write_bytes(place.read_bytes() + b"\0")
        else:
            place.rename(place.with_name(f"another-{place.name}"))
    run = Path(shutil.move(run, tmp_path / "run"))
    shutil.rmtree(project / "photos")
    monkeypatch.chdir(other)
    with pytest.raises(UserError, match=r"its images were in .*photos.*give --data"):
        results(run)
    with pytest.raises(UserError, match=r"its images were in .*give --among"):
        collection(run)


def test_changed_images_at_their_place_are_told(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    add(Path("photos"))
    run = finished.resolve()
    monkeypatch.chdir(tmp_path)
    results(run)
    assert "have changed since the run began: 1 image more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "key"),
    [("photos/", "knn"), ("moved", "knn"), ("copy", "knn"), ("edited", "knn@edited")],
)
def test_own_images_by_any_path_and_no_others(
    finished: Path, tmp_path: Path, place: str, key: str
) -> None:
    """Those of the same names but other content, such as an edited copy, stand beside."""
    if place == "moved":
        shutil.move("photos", place)
    elif place in ("copy", "edited"):
        shutil.copytree("photos", place)
    if place == "edited":
        for image in (Path(place) / "train").rglob("*.jpg"):
            image.write_bytes(image.read_bytes() + b"\0")
    evaluate_knn(
        config_of(KNNConfig, run=finished, data=place, cache=tmp_path / "c", out=tmp_path / "o")
    )
    assert set(read_json(tmp_path / "o" / "results.json")) == {key}
    assert evaluation_config(finished).data is None


def test_a_report_of_moved_images(finished: Path) -> None:
    shutil.move("photos", "moved")
    assert "images cannot be opened" in pages(finished)
    page = report(ReportConfig((finished,), device="cpu", data="moved"))
    assert page is not None and "images cannot be opened" not in page.read_text("utf-8")


@pytest.mark.parametrize("data", [".", ".."])
def test_a_folder_without_a_name_gives_a_run_one(
    project: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    place = project / "photos" if data == "." else project / "photos" / "test"
    monkeypatch.chdir(place)
    run = pretrain(config(data, out=None, cache=project / "cache", epochs=1))
    assert run == Path("runs") / "photos-simclr-mixco-s0"


def test_the_folder_of_a_named_set(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A relative --data-path is found again, and its spelling is no change."""
    (project / "photos" / "test").rename(project / "photos" / "val")
    pretrain(config("imagenet", data_path=Path("photos")), stop_after=5)
    capsys.readouterr()
    run = pretrain(config("imagenet", data_path=Path("./photos/"))).resolve()
    said = capsys.readouterr().err
    assert "going on after step 5" in said and "changed since" not in said
    (project / "notebooks").mkdir()
    monkeypatch.chdir(project / "notebooks")
    assert results(run) == {"pretrain", "knn"}
    assert "cannot be opened" not in pages(run)
    with pytest.raises(UserError, match="neither an image file nor the name"):
        collection(run)
    shutil.move(project / "photos", project / "moved")
    with pytest.raises(UserError, match=r"its images were in .*photos"):
        results(run)
    moved = config("imagenet", data_path=project / "moved", out=run, cache=project / "cache")
    pretrain(moved)
    assert f"the images are now at {project / 'moved'}" in capsys.readouterr().err.replace("\n", "")
    assert results(run) == {"pretrain", "knn"}


# Several places.


def several(places: tuple[str, ...], **settings: Any) -> PretrainConfig:
    changes = {"data": places, "size": 32, "epochs": 2, "batch_size": 8, **settings}
    return with_settings(config("x"), changes, "a test")


@pytest.fixture
def split_up(project: Path) -> Path:
    """The images of photos/ in two folders, sites/north and sites/south, and a list of some more."""
    sites = project / "sites"
    for name, classes in (
        ("north", ("AnnualCrop",)),
        ("south", ("Forest", "HerbaceousVegetation")),
    ):
        for label in classes:
            for split in ("train", "test"):
                target = sites / name / label / split
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(project / "photos" / split / label, target)
    some = sorted((sites / "south").rglob("*.jpg"))[:5]
    lines = [str(path.relative_to(project)) for path in some]
    (project / "list.txt").write_text("\n".join(lines) + "\n")
    return sites


PLACES = ("sites/north", "sites/south/Forest", "list.txt")


def test_a_run_on_several_places_resumes_in_any_order(
    split_up: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pretrain(several(PLACES, out=Path("runs/whole")))
    run = pretrain(several(PLACES), stop_after=2)
    facts = read_json(run / "images.json")
    assert facts["place"] == str(split_up.parent) and facts["below"] == list(PLACES)
    assert read_json(run / "config.json")["data"]["data"] == list(PLACES)
    capsys.readouterr()
    pretrain(several(PLACES[::-1]), stop_after=4)
    monkeypatch.chdir(split_up)
    elsewhere = ("./north", str(split_up / "south" / "Forest"), "../list.txt")
    pretrain(several(elsewhere, out=Path("../runs/a"), cache=Path("../cache")))
    said = capsys.readouterr().err
    assert "going on after step 2" in said and "going on after step 4" in said
    assert "--data" not in said and "are now at" not in said
    assert_equal(final_state(split_up.parent / run), final_state(split_up.parent / whole))
    with pytest.raises(UserError, match=r"1. images fewer.*another --out"):
        pretrain(several(("north", "../list.txt"), out=Path("../runs/a"), cache=Path("../cache")))


def test_a_run_on_several_places_is_found_from_elsewhere_and_moved(
    split_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Also where one of them was given by its full path: only together they have a common folder."""
    run = pretrain(several((str(split_up / "north"), *PLACES[1:]))).resolve()
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    monkeypatch.chdir(notebooks)
    image = min((split_up / "north").rglob("*.jpg"))
    capsys.readouterr()
    assert collection_of(run, image)
    assert "are now at" not in capsys.readouterr().err
    assert "images cannot be opened" not in pages(run)
    shutil.move(tmp_path / "project", tmp_path / "moved")
    run = tmp_path / "moved" / "runs" / "a"
    image = tmp_path / "moved" / image.relative_to(tmp_path / "project")
    assert collection_of(run, image)
    said = capsys.readouterr().err
    assert f"the images are now at {tmp_path / 'moved'}" in said.replace("\n", "")
    shutil.move(tmp_path / "moved" / "sites", tmp_path / "gone")
    with pytest.raises(UserError, match=r"its images were in .*project.*give --among"):
        collection_of(run, image)


def collection_of(run: Path, image: Path) -> list[Neighbours]:
    settings = {"device": "cpu", "workers": 0, "cache": run.parent / "c", "k": 2}
    return neighbours(with_settings(NeighboursConfig(run, (str(image),)), settings, "neighbours"))


def test_other_places_in_the_same_folder_are_not_the_runs_own(split_up: Path) -> None:
    for site in ("north", "south"):  # class folders in train/ and test/, for an evaluation
        for split in ("train", "test"):
            for path in sorted((split_up / site).glob(f"*/{split}")):
                target = split_up / site / split / path.parent.name
                target.parent.mkdir(exist_ok=True)
                shutil.move(path, target)
    run = pretrain(several(("sites/north", "sites/south"))).resolve()
    for data in (("sites/south", "sites/north"), ("sites/south",)):
        cache = split_up / "c"
        evaluate_knn(config_of(KNNConfig, run=run, data=data, cache=cache, precision="float32"))
    evaluate_knn(config_of(KNNConfig, run=run, cache=split_up / "c", precision="float32"))
    assert set(read_json(run / "results.json")) == {"pretrain", "knn", "knn@south"}
    assert read_json(run / "results.json")["knn"]["data"] == "north+south/test"


def flat_with_table(project: Path) -> str:
    """The images of photos/ without folders, and a table of their splits and classes."""
    lines = ["path,label,split"]
    (project / "flat").mkdir()
    for path in sorted((project / "photos").rglob("*.jpg")):
        split, label, name = path.relative_to(project / "photos").parts
        shutil.copy(path, project / "flat" / f"{split}-{name}")
        lines.append(f"{split}-{name},{label},{split}")
    (project / "tables").mkdir()
    (project / "tables" / "labels.csv").write_text("\n".join(lines))
    return "flat"


def test_a_run_finds_the_table_of_its_labels(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = flat_with_table(project)
    table = Path("tables/labels.csv")
    whole = pretrain(config(data, labels_from=table, epochs=1, out=Path("runs/whole")))
    run = pretrain(config(data, labels_from=table, epochs=1), stop_after=2)
    pretrain(config("./flat/", labels_from=project / "tables" / "labels.csv", epochs=1))
    assert_equal(final_state(run), final_state(whole))
    assert "knn" in (run / "metrics.jsonl").read_text(), "of the table's labels"
    run, cache = run.resolve(), project / "c"
    monkeypatch.chdir(tmp_path)
    done = mixco_command("knn", "--run", run, "--cache", cache, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "6 images of flat/test, 48 labelled" in done.stdout
    before = read_json(run / "results.json")["knn"]["top1"]
    shutil.move(project / "flat", tmp_path / "flat-elsewhere")
    page = report(ReportConfig((run,), device="cpu", data=str(tmp_path / "flat-elsewhere")))
    assert page is not None and "images cannot be opened" not in page.read_text("utf-8")
    shutil.move(tmp_path / "flat-elsewhere", project / "flat")
    shutil.move(project, tmp_path / "moved")
    run = tmp_path / "moved" / "runs" / "a"
    evaluate_knn(config_of(KNNConfig, run=run, cache=tmp_path / "c"))
    assert set(read_json(run / "results.json")) == {"pretrain", "knn"}
    assert read_json(run / "results.json")["knn"]["top1"] == before
    (tmp_path / "moved" / "tables" / "labels.csv").unlink()
    with pytest.raises(UserError, match=r"its images were in .*project"):
        evaluate_knn(config_of(KNNConfig, run=run, cache=tmp_path / "c"))


def test_the_facts_of_an_earlier_version_are_read(stopped: Path, tmp_path: Path) -> None:
    """They name one place and no table."""
    facts = read_json(stopped / "images.json")
    del facts["below"], facts["table"]
    (stopped / "images.json").write_text(json.dumps(facts))
    known = known_images(stopped)
    assert known is not None and known.is_at(Where("./photos/"))
    shutil.move("photos", tmp_path / "job-3")
    run = pretrain(config(tmp_path / "job-3", out=stopped))
    assert read_json(run / "images.json")["below"] == ["."]
