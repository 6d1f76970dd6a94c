"""A file to write weights to, images to compare features of, and a hub to fetch weights from."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_stand_in import TOKEN, StandIn, point, running
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
    """A hub for the client, which then stores in `cache`. Nobody is logged in."""
    with running(TOKEN) as server:
        point(monkeypatch, server.url)
        for constant, value in {
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, constant, value)
        monkeypatch.setenv("TORCH_HOME", str(cache))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server
