"""An evaluation says something, or is refused; and the results tell what was tested."""

import re
import shlex
import shutil
import unicodedata
from pathlib import Path

import pytest
import torch
from configs import config_of, evaluation_config, pretrain_config
from forked import mixco_command
from run_folders import random_run
from sample_images import CLASSES, unpack_sample
from torch import Tensor

import mixco.cli
from mixco.data import copies
from mixco.data.datasets import list_images
from mixco.data.packing import pack
from mixco.data.streaming import stream
from mixco.embeddings.commands import embed
from mixco.embeddings.vectors import read_vectors
from mixco.evaluation import EVALUATIONS, Evaluation, evaluate
from mixco.evaluation.doubts import doubts
from mixco.evaluation.features import Features
from mixco.evaluation.protocols import evaluate_knn
from mixco.evaluation.task import accuracies, rounded
from mixco.evaluation.train_classifier import Epoch, last_and_best
from mixco.export.export import export
from mixco.report.table import cell, load, table
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import read_json
from mixco.settings.commands import EmbedConfig, ExportConfig, KNNConfig
from mixco.settings.parse import with_settings
from mixco.training.pretrain import pretrain


def first_class(features: Features) -> Tensor:
    return torch.eye(features.classes)[torch.zeros(len(features.test_labels)).long()]


def one_folder(place: Path) -> Path:
    """train/images and test/images, as object detection has them."""
    unpack_sample(place, train=20, test=5, classes=1)
    for split in ("train", "test"):
        (place / split / CLASSES[0]).rename(place / split / "images")
    return place


COMMANDS = (
    ("knn",),
    ("linear",),
    ("linear", "--protocol", "paper"),
    ("linear", "--protocol", "paper", "--supervised"),
    ("finetune",),
    ("first",),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_one_class_is_refused(
    tmp_path: Path,
    command: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = Evaluation("first", summary="always the first", scores=f"{__name__}:first_class")
    monkeypatch.setitem(EVALUATIONS, "first", own)
    run = random_run(tmp_path / "run", one_folder(tmp_path / "photos"))
    cache = str(tmp_path / "cache")
    with pytest.raises(SystemExit) as left:
        mixco.cli.main([*command, "--run", str(run), "--cache", cache, "--device", "cpu"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "class folders are expected, found one: images" in said
    assert not (run / "results.json").exists()


def test_pretraining_on_one_class_makes_no_knn_check_and_says_so(tmp_path: Path) -> None:
    photos = one_folder(tmp_path / "photos")
    done = mixco_command(
        *("pretrain", "--data", photos, "--out", tmp_path / "run", "--cache", tmp_path / "cache"),
        *("--arch", "test_resnet", "--size", "32", "--epochs", "1", "--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    assert "no kNN check" in done.stderr and "found one: images" in done.stderr
    assert "knn" not in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("data", ["imagenet", "stl10"])
def test_nor_does_a_named_set_of_one_class(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    unpack_sample(tmp_path / "set", train=20, test=5, classes=1)
    (tmp_path / "set" / "test").rename(tmp_path / "set" / "val")
    run = pretrain(
        pretrain_config(
            data=data,
            data_path=tmp_path / "set",
            out=tmp_path / "run",
            cache=tmp_path / "cache",
            arch="test_resnet",
            size=32,
            epochs=1,
        )
    )
    assert "found one: AnnualCrop" in capsys.readouterr().err
    assert "knn" not in (run / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match="found one: AnnualCrop"):
        evaluate_knn(config_of(KNNConfig, run=run, cache=tmp_path / "cache"))


@pytest.mark.parametrize(("classes", "there"), [(2, False), (5, False), (6, True)])
def test_top_5_of_five_classes_or_fewer_is_nowhere(
    tmp_path: Path, classes: int, there: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = unpack_sample(tmp_path / "photos", train=6, test=2, classes=classes)
    run = random_run(tmp_path / "run", photos)
    common = ["--run", str(run), "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    paper = ["--protocol", "paper", "--epochs", "1"]
    for command in (["knn"], ["linear", "--epochs", "2"], ["linear", *paper], ["finetune"]):
        epochs = ["--epochs", "1"] if command == ["finetune"] else []
        mixco.cli.main([*command, *epochs, *common])
    mixco.cli.main(["linear", *paper, "--evaluate", *common])
    assert ("top-5" in capsys.readouterr().out) == there
    results = read_json(run / "results.json")
    assert set(results) == {"knn", "linear", "linear_paper", "finetune"}
    assert {("top5" in result) for result in results.values()} == {there}
    assert {result["classes"] for result in results.values()} == {classes}
    assert ("top-5" in table((run,))) == there
    mixco.cli.main(["report", str(run), "--device", "cpu"])
    assert ("top-5" in (run / "report.html").read_text("utf-8")) <= there
    card = (export(ExportConfig(run=run)) / "README.md").read_text("utf-8")
    assert "top-1" in card
    assert ("top-5" in card) == there


def test_an_epoch_without_top_5() -> None:
    scores = torch.eye(5)
    assert rounded(*accuracies(scores, torch.arange(5))) == {"top1": 100.0}
    assert rounded(*accuracies(torch.eye(6), torch.arange(6))) == {"top1": 100.0, "top5": 100.0}
    assert "top5" not in last_and_best([Epoch(1, 1.0, 50.0, None)])


@pytest.mark.parametrize("loading", ["packed", "streamed"])
@pytest.mark.parametrize("kind", ["copies", "the same folder", "some copies"])
def test_test_images_that_were_learned_from_are_warned_of(
    tmp_path: Path, kind: str, loading: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = unpack_sample(tmp_path / "photos", train=10, test=10, classes=2)
    number = 20
    if kind == "some copies":
        number = 2
        for name in CLASSES[:2]:
            image = min((photos / "train" / name).iterdir())
            shutil.copy(image, min((photos / "test" / name).iterdir()))
    else:
        shutil.rmtree(photos / "test")
        if kind == "copies":
            shutil.copytree(photos / "train", photos / "test")
        else:
            (photos / "test").symlink_to("train")
    run = random_run(tmp_path / "run", photos)
    evaluate_knn(
        config_of(KNNConfig, run=run, cache=tmp_path / "cache", loading=loading, workers=0)
    )
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"warning: {number} of 20 test images are exact copies" in said
    assert "accuracy says little" in said
    assert f"mixco duplicates {run} --between train test" in said
    first = min((photos / "test" / CLASSES[0]).iterdir())
    assert str(first) in said


def test_one_copy_among_hundreds_is_told(tmp_path: Path) -> None:
    """However few; but that the accuracy says little is said from 1 % on."""
    photos = unpack_sample(tmp_path / "photos", train=5, test=40)
    image = min((photos / "train" / "River").iterdir())
    shutil.copy(image, photos / "test" / "River" / "zebra.jpg")
    lists = [list_images(str(photos), None, split) for split in ("train", "test")]
    train, test = (pack(each, size=32, cache=tmp_path / "cache") for each in lists)
    [warning] = doubts(train, test, "a command")
    assert warning.startswith("1 of 401 test images") and "`a command` shows them" in warning
    assert f"{photos / 'test' / 'River' / 'zebra.jpg'} of {image}" in warning
    assert "little" not in warning


def test_the_warning_says_how_many_were_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = unpack_sample(tmp_path / "photos", train=10, test=2, classes=2)
    shutil.copytree(photos / "train", photos / "test", dirs_exist_ok=True)
    monkeypatch.setattr(copies, "MOST_FILES", 15)
    lists = [list_images(str(photos), None, split) for split in ("train", "test")]
    [warning] = doubts(*(stream(each, 0) for each in lists))
    assert "of the 15 test images that were compared with 15 train images" in warning
    assert "shows them" not in warning


@pytest.mark.parametrize("extra", [(), ("data",), ("test_folder",)])
def test_the_command_that_shows_the_copies_works(
    tmp_path: Path, extra: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    photos = unpack_sample(tmp_path / "my photos", train=6, test=2, classes=2)
    copied = shutil.copy(
        min((photos / "train" / CLASSES[0]).iterdir()), photos / "test" / CLASSES[0]
    )
    run = random_run(tmp_path / "run", photos)
    more = {"data": str(photos), "test_folder": "test"}
    evaluate_knn(
        config_of(
            KNNConfig, run=run, cache=tmp_path / "cache", **{name: more[name] for name in extra}
        )
    )
    command = re.search("`mixco (.*)` shows them", capsys.readouterr().err.replace("\n", " "))
    assert (command is None) == (extra == ("test_folder",))
    if command is not None:
        typed = shlex.split(command[1])
        mixco.cli.main([*typed, "--cache", str(tmp_path / "cache"), "--device", "cpu"])
        assert f"{copied}\n" in capsys.readouterr().out


def test_no_warning_where_there_is_nothing_to_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = random_run(tmp_path / "run", unpack_sample(tmp_path / "photos", 10, 4, 3))
    result = evaluate_knn(config_of(KNNConfig, run=run, cache=tmp_path / "cache", k=5000))
    assert result["k"] == result["train_images"] == 30
    assert "warning:" not in capsys.readouterr().err


def test_classes_of_one_image_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """kNN and the published protocol work with them; the fast probe names the class and the way."""
    run = random_run(tmp_path / "run", unpack_sample(tmp_path / "photos", 1, 2, 10))
    common = ["--run", str(run), "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    mixco.cli.main(["knn", *common])
    with pytest.raises(SystemExit):
        mixco.cli.main(["linear", *common])
    assert "class AnnualCrop has 1; add some, or give --protocol paper" in capsys.readouterr().err
    mixco.cli.main(["linear", *common, "--protocol", "paper", "--epochs", "1"])
    for batch in ("1", "2"):
        tuning = ["finetune", *common, "--epochs", "1", "--batch-size", batch]
        if batch == "1":
            with pytest.raises(SystemExit):
                mixco.cli.main(tuning)
            assert "give --batch-size 2" in capsys.readouterr().err
        else:
            mixco.cli.main(tuning)


@pytest.fixture
def flat_test(tmp_path: Path) -> Path:
    """train/<class>, val/<class> and test/ without labels, as ImageNet and Kaggle give them."""
    photos = unpack_sample(tmp_path / "photos", train=8, test=3, classes=3)
    (photos / "test").rename(photos / "val")
    (photos / "test").mkdir()
    for number, image in enumerate(sorted((photos / "val").rglob("*.jpg"))[:4]):
        shutil.copy(image, photos / "test" / f"{number}.jpg")
    return photos


@pytest.mark.parametrize("test", ["flat", "empty", "missing"])
def test_val_is_tested_where_test_has_no_classes(
    flat_test: Path, tmp_path: Path, test: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if test != "flat":
        shutil.rmtree(flat_test / "test")
    if test == "empty":
        (flat_test / "test").mkdir()
    run = random_run(tmp_path / "run", flat_test)
    result = evaluate_knn(config_of(KNNConfig, run=run, cache=tmp_path / "cache"))
    assert (result["data"], result["test_images"]) == ("photos/val", 9)
    said = capsys.readouterr().err.replace("\n", " ")
    assert said.count("is the test split") == (test != "missing")
    assert set(read_json(run / "results.json")) == {"knn"}


@pytest.mark.parametrize("names", [("training", "validation"), ("all", "parts/dev")])
def test_splits_of_other_names(tmp_path: Path, names: tuple[str, str]) -> None:
    photos = unpack_sample(tmp_path / "photos", train=8, test=3, classes=3)
    for old, new in zip(("train", "test"), names, strict=True):
        (photos / new).parent.mkdir(exist_ok=True)
        (photos / old).rename(photos / new)
    run = random_run(tmp_path / "run", photos)
    common = ["knn", "--run", str(run), "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    failed = mixco_command(*common)
    assert failed.returncode == 2
    assert names[0] in failed.stderr and names[1].split("/")[0] in failed.stderr
    assert "--train-folder" in failed.stderr and "--test-folder" in failed.stderr
    done = mixco_command(*common, "--train-folder", names[0], "--test-folder", names[1])
    assert done.returncode == 0, done.stderr
    result = read_json(run / "results.json")["knn"]
    assert (result["train_images"], result["test_images"]) == (24, 9)
    assert result["data"] == f"photos/{Path(names[1]).name}"


def test_named_sets_have_their_own_splits(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", "sample")
    with pytest.raises(UserError, match=r"--test-folder.*--data sample"):
        evaluate("knn", config_of(KNNConfig, run=run, test_folder="val", cache=tmp_path / "cache"))


def test_results_of_val_and_test_are_not_averaged(tmp_path: Path) -> None:
    of_test = {"top1": 50.0, "data": "photos/test"}
    assert cell([of_test, {"top1": 60.0, "data": "others/test"}], "top1").startswith("55.0")
    assert cell([of_test, {"top1": 60.0, "data": "photos/val"}], "top1") == "50.0 / 60.0"
    assert load(random_results(tmp_path))


def random_results(folder: Path) -> Path:
    run = random_run(folder / "run", "sample")
    (run / "results.json").write_text('{"knn": {"top1": 50.0}}')
    return run


@pytest.mark.parametrize("split", ["test", "train", "pretrain"])
def test_a_collection_needs_no_labels(flat_test: Path, tmp_path: Path, split: str) -> None:
    run = random_run(tmp_path / "run", flat_test)
    settings = {"data": str(flat_test), "split": split, "device": "cpu", "workers": 0}
    given = with_settings(EmbedConfig(run, out=tmp_path / "v.npz"), settings, "embed")
    assert len(read_vectors(embed(given))) == {"test": 4, "train": 24, "pretrain": 24}[split]


LOOK_ALIKE = [
    (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")),
    ("cat", "cat "),
    ("cat", "ca\u200bt"),
    ("cat", "\ufeffcat"),
    ("cat", "Cat"),
    ("black cat", "black\u00a0cat"),
]


@pytest.mark.parametrize(("in_train", "in_test"), LOOK_ALIKE, ids=ascii)
def test_class_names_that_look_alike(tmp_path: Path, in_train: str, in_test: str) -> None:
    photos = unpack_sample(tmp_path / "photos", train=4, test=2, classes=3)
    (photos / "train" / "Forest").rename(photos / "train" / in_train)
    (photos / "test" / "Forest").rename(photos / "test" / in_test)
    if len(list((photos / "test").iterdir())) < 3:
        pytest.skip("this file system takes the two names for one")
    run = random_run(tmp_path / "run", photos)
    with pytest.raises(UserError) as refused:
        evaluate("knn", config_of(KNNConfig, run=run, cache=tmp_path / "cache"))
    said = str(refused.value)
    assert ascii(in_train) in said and ascii(in_test) in said
    assert "look alike" in said and "rename" in said
    (photos / "test" / in_test).rename(photos / "test" / in_train)
    evaluate("knn", config_of(KNNConfig, run=run, cache=tmp_path / "cache"))


def test_two_classes_that_look_alike_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = unpack_sample(tmp_path / "photos", train=4, test=2, classes=3)
    for split in ("train", "test"):
        (photos / split / "Forest").rename(photos / split / "annualcrop ")
    run = random_run(tmp_path / "run", photos)
    evaluate_knn(config_of(KNNConfig, run=run, cache=tmp_path / "cache"))
    assert "'annualcrop ' look alike" in capsys.readouterr().err.replace("\n", " ")
    assert evaluation_config(run).test_folder is None


def test_equal_votes_are_told_in_the_results(tmp_path: Path) -> None:
    photos = unpack_sample(tmp_path / "photos", train=6, test=3, classes=3)
    run = random_run(tmp_path / "run", photos)
    settings = {"run": run, "cache": tmp_path / "cache", "k": 5}
    weighted = evaluate_knn(config_of(KNNConfig, **settings))
    equal = evaluate_knn(config_of(KNNConfig, votes="equal", **settings))
    assert (weighted["temperature"], "votes" in weighted) == (0.07, False)
    assert (equal["votes"], "temperature" in equal) == ("equal", False)
    assert read_json(run / "results.json")["knn"] == equal
