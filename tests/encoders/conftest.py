"""A file to write weights to, and images to compare features of."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sample_images import sample_images
from torch import Tensor


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A path to write to; removed after the test, since the files are large."""
    path = tmp_path / "other.pth.tar"
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return sample_images(4).float() / 255
