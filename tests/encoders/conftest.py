"""A file to write weights to, images to compare features of, and a hub to fetch weights from."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_stand_in import StandIn, hub_of_client
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


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hub"


@pytest.fixture
def empty_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("TORCH_HOME", str(cache))
    with hub_of_client(cache, monkeypatch) as server:
        yield server
