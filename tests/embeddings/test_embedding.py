"""Vectors of images of every kind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import random_run
from sample_images import sample_images

import mixco
from mixco.data.datasets.folders import whole_folder
from mixco.data.streaming import stream
from mixco.embeddings.features import features_of
from mixco.runtime.device import Compute

COUNT = 12


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Lossless files, so that a file and its pixels are the same."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(sample_images(COUNT)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def encoder(tmp_path: Path) -> mixco.Embedder:
    return mixco.load_encoder(str(random_run(tmp_path / "run", tmp_path)))


def test_every_kind_of_image_gives_the_same_vectors(photos: Path, encoder: mixco.Embedder) -> None:
    files = sorted(photos.iterdir())
    tensors = sample_images(COUNT)
    arrays = tensors.permute(0, 2, 3, 1).numpy()
    vectors = encoder.embed(photos)
    assert vectors.shape == (COUNT, 96)
    assert vectors.dtype == torch.float32 and not vectors.requires_grad
    for images in (
        str(photos),
        files,
        [str(file) for file in files],
        [Image.open(file) for file in files],
        tensors,
        list(tensors),
        arrays,
        list(arrays),
        (array for array in arrays),
    ):
        assert torch.equal(encoder.embed(images), vectors)
    for one in (files[3], Image.open(files[3]), tensors[3], arrays[3]):
        torch.testing.assert_close(encoder.embed(one), vectors[3:4])


def test_they_are_evaluations_features_at_unit_length(
    photos: Path, encoder: mixco.Embedder
) -> None:
    features, _ = features_of(
        encoder.backbone,
        stream(whole_folder(photos), 0),
        torch.arange(COUNT),
        encoder.description.input,
        compute=Compute(torch.device("cpu"), torch.float32),
        on_unreadable=lambda file, reason: pytest.fail(f"{file}: {reason}"),
    )
    assert torch.equal(
        encoder.embed(photos, normalise=False, device="cpu", precision="float32"), features
    )
    unit = encoder.embed(photos, device="cpu", precision="float32")
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(COUNT))
    torch.testing.assert_close(unit, torch.nn.functional.normalize(features, dim=1))


def test_batches_and_processes_change_nothing(photos: Path, encoder: mixco.Embedder) -> None:
    whole = encoder.embed(photos, precision="float32")
    torch.testing.assert_close(encoder.embed(photos, batch_size=5, precision="float32"), whole)
    assert torch.equal(encoder.embed(photos, workers=1, precision="float32"), whole)
    assert encoder.embed([]).shape == (0, 96)


def test_what_cannot_be_embedded_is_named(photos: Path, encoder: mixco.Embedder) -> None:
    broken = photos / "broken.jpg"
    broken.write_bytes(b"not an image")
    with pytest.raises(mixco.UserError, match=r"broken\.jpg.*leave it out"):
        encoder.embed(photos)
    with pytest.raises(mixco.UserError, match=r"nothing\.jpg cannot be read"):
        encoder.embed([photos / "00.png", "nothing.jpg"])
    for images, what in (
        (sample_images(2).float(), r"Tensor of float32 \[3, 64, 64\]"),
        (np.zeros((8, 8), np.uint8), r"ndarray of uint8 \[8\]"),
        ([1, 2], "got int"),
    ):
        with pytest.raises(mixco.UserError, match=what):
            encoder.embed(images)  # type: ignore[arg-type]
    with pytest.raises(mixco.UserError, match="expected only paths"):
        encoder.embed(["a.jpg", sample_images(1)])
