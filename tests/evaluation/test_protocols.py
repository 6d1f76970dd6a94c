"""Linear as published, supervised and fine-tuned, by their functions and their commands."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import config_of, evaluation_config
from run_folders import random_run
from safetensors import safe_open
from safetensors.torch import load_file
from sample_images import unpack_sample

import mixco.cli
from mixco.evaluation.protocols import evaluate_linear, finetune
from mixco.evaluation.task import load_task
from mixco.evaluation.train_classifier import Epoch, last_and_best
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import read_json
from mixco.settings.commands import EvaluationConfig, FinetuneConfig, LinearConfig

CLASSES = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders (30 train and 10 test images of each of four classes) and a run on them."""
    place = tmp_path_factory.mktemp("place")
    unpack_sample(place / "photos", train=30, test=10, classes=CLASSES)
    random_run(place / "run", place / "photos")
    return place


def where(place: Path, out: Path) -> dict[str, Path]:
    return {"run": place / "run", "out": out, "cache": place / "cache"}


def evaluation(place: Path, out: Path) -> EvaluationConfig:
    return evaluation_config(**where(place, out))


def published(place: Path, out: Path, **options: Any) -> LinearConfig:
    settings = {"protocol": "paper", "epochs": 15, "batch_size": 40, "precision": "float32"}
    return config_of(LinearConfig, **{**where(place, out), **settings, **options})


def tuning(place: Path, out: Path, **options: Any) -> FinetuneConfig:
    settings = {"batch_size": 40, "precision": "float32"}  # the fastest may change
    return config_of(FinetuneConfig, **{**where(place, out), **settings, **options})


def test_linear_evaluation_as_published(place: Path, tmp_path: Path) -> None:
    encoder = (place / "run" / "encoder.safetensors").read_bytes()
    result = evaluate_linear(published(place, tmp_path))
    assert result["top1"] > 60, "chance is 25 %; even a random encoder tells colours"
    assert "top5" not in result, "of four classes"
    assert result["reported"] == "last epoch"
    assert result["best_top1"] >= result["top1"]
    assert (result["data"], result["labels"], result["size"]) == ("photos/test", "all", 32)
    assert read_json(tmp_path / "results.json") == {"linear_paper": result}
    assert (place / "run" / "encoder.safetensors").read_bytes() == encoder

    with safe_open(tmp_path / "classifier.safetensors", "pt") as file:
        notes = json.loads(file.metadata()["mixco-classifier"])
        assert set(file.keys()) == {"head.weight", "head.bias"}
    assert len(notes["classes"]) == CLASSES
    assert notes["classes"][0] == "AnnualCrop"

    tested = evaluate_linear(published(place, tmp_path, evaluate=True))
    assert tested["top1"] == result["top1"]
    assert read_json(tmp_path / "results.json") == {"linear_paper": result}, "left alone"


def test_adam_learns_too(place: Path, tmp_path: Path) -> None:
    result = evaluate_linear(published(place, tmp_path, optimizer="adam"))
    assert result["top1"] > 60


def test_two_runs_with_one_seed_are_equal(place: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        evaluate_linear(published(place, tmp_path / name, epochs=2))
    a, b = (load_file(tmp_path / n / "classifier.safetensors") for n in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    first, second = (read_json(tmp_path / n / "results.json")["linear_paper"] for n in ("a", "b"))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_the_supervised_baseline_learns_from_scratch(place: Path, tmp_path: Path) -> None:
    config = published(place, tmp_path, supervised=True, epochs=15)
    result = evaluate_linear(config)
    assert result["top1"] > 50
    assert result["checkpoint"] is None
    assert result["training"] == "random weights, seed 0"
    assert read_json(tmp_path / "results.json") == {"supervised": result}
    tested = evaluate_linear(published(place, tmp_path, supervised=True, evaluate=True))
    assert tested["top1"] == result["top1"]


def test_the_supervised_baseline_does_not_begin_with_the_encoder(
    place: Path, tmp_path: Path
) -> None:
    random_run(tmp_path / "run", place / "photos", seed=5)
    for run in (place / "run", tmp_path / "run"):
        out = tmp_path / run.parent.name
        evaluate_linear(published(place, out, run=run, supervised=True, epochs=1))
    a, b = (load_file(tmp_path / n / "supervised.safetensors") for n in (place.name, tmp_path.name))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_fine_tuning_moves_everything_from_the_encoder_on(place: Path, tmp_path: Path) -> None:
    result = finetune(tuning(place, tmp_path, epochs=15, lr=0.05, head_lr=0.1))
    assert result["top1"] > 50
    assert read_json(tmp_path / "results.json") == {"finetune": result}
    tuned = load_file(tmp_path / "finetune.safetensors")
    encoder = load_file(place / "run" / "encoder.safetensors")
    assert {k.removeprefix("backbone.") for k in tuned} == {*encoder, "head.weight", "head.bias"}
    assert not [k for k, v in encoder.items() if torch.equal(v, tuned[f"backbone.{k}"])]
    tested = finetune(tuning(place, tmp_path, evaluate=True))
    assert tested["top1"] == result["top1"]

    # At a rate of next to nothing the network that comes out is the encoder that went in.
    finetune(tuning(place, tmp_path / "b", epochs=1, lr=1e-30))
    tuned = load_file(tmp_path / "b" / "finetune.safetensors")
    weights = [k for k in encoder if k.endswith(("weight", "bias"))]
    assert weights
    for key in weights:
        torch.testing.assert_close(tuned[f"backbone.{key}"], encoder[key], rtol=0, atol=1e-20)


def test_the_last_epoch_and_the_best_are_never_mixed() -> None:
    """The 2020 code reported [best top-1, last top-5]."""
    records = [Epoch(1, 2.0, 40.0, 80.0), Epoch(2, 1.0, 70.0, 99.0), Epoch(3, 0.5, 60.0, 90.0)]
    result = last_and_best(records)
    assert (result["top1"], result["top5"], result["loss"]) == (60.0, 90.0, 0.5)
    assert (result["best_top1"], result["best_epoch"]) == (70.0, 2)
    assert "not a result" in result["best_is"]


def test_the_rate_follows_the_scale_of_the_features(place: Path, tmp_path: Path) -> None:
    """Features ten times as long: a rate a hundred times smaller makes the same logits."""
    task = load_task(evaluation(place, tmp_path))
    features, _ = task.outputs(task.encoder.backbone, task.train)
    length = features.square().sum(1).mean().item()
    assert task.head_rate("sgd") == pytest.approx(30 / length, rel=0.01)
    assert task.head_rate("adam") == pytest.approx(length**-0.5, rel=0.01)


def test_a_rate_that_is_too_high_is_warned_of(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_linear(published(place, tmp_path, epochs=1, lr=1000.0))
    warning = capsys.readouterr().err
    assert "guessing" in warning and "--lr" in warning
    evaluate_linear(published(place, tmp_path, epochs=1, lr=0.1))
    assert "guessing" not in capsys.readouterr().err


def test_results_of_other_data_and_of_fewer_labels_stand_beside_the_runs_own(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unpack_sample(tmp_path / "others", train=12, test=3, classes=2)
    own_list = tmp_path / "mine.txt"
    train = place / "photos" / "train"
    names = [next(c.iterdir()).relative_to(train).as_posix() for c in train.iterdir()]
    own_list.write_text("\n".join(names))
    common = ["--run", place / "run", "--cache", place / "cache", "--out", tmp_path / "out"]
    paper = ["--protocol", "paper", "--epochs", "1"]
    # The same folder by another path is still the run's own.
    same = place / "run" / ".." / "photos"
    commands: dict[str, list[str | Path]] = {
        "knn": ["knn", "--data", same],
        "knn@others": ["knn", "--data", tmp_path / "others"],
        "knn-10percent": ["knn", "--labels", "10%"],
        "knn-mine": ["knn", "--labels", own_list],
        "linear-10percent": ["linear", "--labels", "10%", "--epochs", "5"],
        "linear_paper-1percent": ["linear", *paper, "--labels", "1%"],
        "linear_paper@others": ["linear", *paper, "--data", tmp_path / "others"],
        "supervised-10percent": ["linear", *paper, "--supervised", "--labels", "10%"],
        "finetune-10percent@others": [
            *("finetune", "--epochs", "1", "--labels", "10%"),
            *("--data", tmp_path / "others"),
        ],
    }
    for arguments in commands.values():
        mixco.cli.main([str(a) for a in (*arguments, *common)])
    results = read_json(tmp_path / "out" / "results.json")
    assert set(results) == set(commands)
    labelled = {key: result["train_images"] for key, result in results.items()}
    assert labelled["knn"] == 30 * CLASSES
    assert labelled["knn@others"] == 24
    assert labelled["knn-10percent"] == labelled["linear-10percent"] == 3 * CLASSES
    assert labelled["knn-mine"] == labelled["linear_paper-1percent"] == CLASSES
    assert labelled["finetune-10percent@others"] == 4
    assert results["linear_paper-1percent"]["labels"] == "1%"
    assert results["knn@others"]["data"] == "others/test"
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "classifier-1percent.safetensors",
        "classifier@others.safetensors",
        "finetune-10percent@others.safetensors",
        "supervised-10percent.safetensors",
        "neighbours@others.png",
    } <= written
    assert "kNN: top-1" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_refused_before_the_training(
    place: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out .*file"):
        evaluate_linear(published(place, tmp_path / "file"))


def test_from_the_command_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the documentation has it: train, read the sentence, test again, from a checkpoint too."""
    run = random_run(tmp_path / "run", place / "photos")
    encoder = (run / "encoder.safetensors").read_bytes()
    common = ["--run", str(run), "--cache", str(place / "cache"), "--protocol", "paper"]
    mixco.cli.main(["linear", *common, "--epochs", "2", "--milestones", "0.5"])
    shown = capsys.readouterr()
    assert "as published: top-1" in shown.out
    assert "2 epochs" in shown.out and "best" in shown.out
    assert "test_resnet" in shown.err
    assert {"results.json", "classifier.safetensors"} <= {p.name for p in run.iterdir()}

    mixco.cli.main(["linear", *common, "--evaluate"])
    again = capsys.readouterr().out
    assert again.splitlines() == shown.out.splitlines()[:1]

    mixco.cli.main(
        [
            *("finetune", "--checkpoint", str(run / "encoder.safetensors"), "--epochs", "1"),
            *("--data", str(place / "photos"), "--out", str(tmp_path / "tuned")),
            *("--cache", str(place / "cache"), "--head-lr", "0.01"),
        ]
    )
    assert "fine-tuned: top-1" in capsys.readouterr().out
    (key,) = read_json(tmp_path / "tuned" / "results.json")
    assert key == "finetune@photos", "of a checkpoint no data are its own"
    assert (run / "encoder.safetensors").read_bytes() == encoder
