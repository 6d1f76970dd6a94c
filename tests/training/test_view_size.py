"""Views smaller than the encoder's input: `--view-size`."""

from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from configs import pretrain_config
from sample_images import unpack_sample

from mixco.encoders.loading import load_encoder
from mixco.export.card import _views
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import read_json
from mixco.settings.config import PretrainConfig
from mixco.training.pretrain import pretrain
from mixco.training.setup import prepare


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_sample(tmp_path_factory.mktemp("photos"), train=8, test=2, classes=4)


def config(photos: Path, tmp_path: Path, **settings: object) -> PretrainConfig:
    usual = {"arch": "test_resnet", "batch_size": 16, "epochs": 1, "knn_every": 0}
    places = {"data": str(photos / "train"), "out": tmp_path / "run", "cache": tmp_path / "cache"}
    return pretrain_config(**{**places, **usual, **settings})


@pytest.mark.parametrize("loading", ["packed", "streamed"])
def test_views_are_small_and_the_encoder_is_for_large_images(
    photos: Path, tmp_path: Path, loading: str
) -> None:
    asked = config(photos, tmp_path, size=64, view_size=32, loading=loading)
    with ExitStack() as stack:
        setup = prepare(asked, stack)
        assert setup.input.size == 64, "of evaluation"
        with closing(setup.batches(print)) as batches:
            assert [list(x.shape) for x in setup.make_views(next(batches))] == 2 * [[16, 3, 32, 32]]
    run = pretrain(asked)
    assert load_encoder(run).description.size == 64
    assert read_json(run / "results.json")["pretrain"]["size"] == 64
    written = read_json(run / "config.json")
    method = written["method"] | {"grey": 0.1, "jitter": 0.5}
    assert _views(method, written["data"]) == "simclr, at 32 px; jitter 0.5, grey 0.1"


def test_views_are_as_large_as_the_input_unless_told(photos: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        setup = prepare(config(photos, tmp_path, size=48), stack)
        assert setup.augmentation.input == setup.input
        assert setup.settings.data.view_size is None


def test_a_network_of_one_size_is_refused(photos: Path, tmp_path: Path) -> None:
    asked = config(photos, tmp_path, size=64, view_size=32, arch="vit_tiny_patch16_224")
    with pytest.raises(
        UserError, match=r"^--view-size 32: vit_tiny_patch16_224 .* give --size 32$"
    ):
        pretrain(asked)
