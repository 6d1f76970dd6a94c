"""The model card says what is known and nothing else."""

from pathlib import Path

import pytest
import yaml
from configs import pretrain_config
from run_folders import random_run
from sample_images import unpack_sample

from mixco.encoders.checkpoint import save_encoder
from mixco.encoders.loading import load_encoder
from mixco.evaluation import EVALUATIONS
from mixco.export.export import export
from mixco.runtime.run_folder import add_result, write_json
from mixco.settings.commands import ExportConfig
from mixco.settings.parse import to_dict

TRAINING = "simclr+mixco on photos/pretrain, 40 epochs, seed 0"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An evaluated run on a folder of photographs; its weights are random."""
    import dataclasses

    unpack_sample(tmp_path / "photos", train=4, test=2, classes=2)
    run = random_run(tmp_path / "run", tmp_path / "photos")
    config = pretrain_config(
        data=str(tmp_path / "photos"),
        size=32,
        method="simclr",
        mix="mixco",
        temperature=0.2,
        mix_temperature=0.2,
        mix_alpha=2.0,
        mix_loss="alone",
        augmentation="simclr",
        lr=1e-3,
        weight_decay=0.05,
    )
    write_json(run / "config.json", to_dict(config))
    encoder = load_encoder(run)
    about = dataclasses.replace(encoder.description, training=TRAINING)
    save_encoder(run / "encoder.safetensors", encoder.backbone, about)
    these = {
        "checkpoint": "encoder.safetensors",
        "training": TRAINING,
        "data": "photos/test",
        "train_images": 1600,
        "test_images": 400,
        "top5": 95.0,
    }
    add_result(run, "pretrain", {"images": 1600, "data": "photos/pretrain", "seconds": 120.0})
    add_result(run, "knn", {**these, "top1": 50.0})
    add_result(run, "linear", {**these, "top1": 77.7, "checkpoint": "step-00000010.pt"})
    add_result(run, "supervised", {**these, "top1": 88.8, "checkpoint": None})
    add_result(run, "finetune-10percent", {**these, "top1": 66.6})
    return run


def test_a_card_tells_the_training_the_results_and_the_licence(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = export(ExportConfig(run, to="hub", license="cc-by-4.0"))
    assert out == run / "exports" / "hub"
    text = (out / "README.md").read_text("utf-8")
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license"] == "cc-by-4.0"
    assert header["library_name"] == "timm"
    assert {"simclr", "mixco"} <= set(header["tags"])
    assert "datasets" not in header, "a folder of one's own is no data set of the hub's"
    numbers = "photos/test, 400 images | 1,600 | 50.0 ± 2.5 | 95.0 |"
    assert f"| {EVALUATIONS['knn'].title} | {numbers}" in text
    assert f"| {EVALUATIONS['finetune'].title} (10percent) | photos/test" in text
    assert "1,600 of photos/pretrain" in text
    assert "Beta(2, 2); the mixed loss replaces" in text
    assert "The weights: cc-by-4.0." in text
    assert "77.7" not in text, "these are another checkpoint's"
    assert "88.8" not in text, "supervised training has nothing of this encoder"
    assert str(tmp_path) not in text, "where things lie is nobody's business"
    assert "8 images of photos/pretrain, in batches of 1, 5 and 8" in capfd.readouterr().err


def test_a_card_of_a_file_alone_says_that_little_is_known(run: Path, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    path = (run / "encoder.safetensors").rename(tmp_path / "alone" / "mine.safetensors")
    text = (export(ExportConfig(path)) / "README.md").read_text("utf-8")
    assert f"All that the file says: {TRAINING}." in text
    assert "have not been evaluated" in text
    assert "licence of the weights is unknown" in text
    assert "16 images of sample/train" in text
    assert not text.startswith("---"), "what the hub needs is for the hub"


def test_images_that_are_gone_are_replaced_by_the_samples(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    export(ExportConfig(run))
    told = capfd.readouterr().err
    assert "the run's own images" in told
    assert "16 images of sample/train" in told
