"""Every family of encoders through the whole: pretraining, checkpoint, loading, evaluation."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from configs import config_of, pretrain_config, resolved
from families import tried
from sample_images import unpack_sample
from timm.layers.evo_norm import EvoNorm2dB0
from torch import Tensor, nn

from mixco.encoders.checkpoint import EncoderDescription, save_encoder
from mixco.encoders.loading import load_encoder
from mixco.evaluation.protocols import evaluate_knn
from mixco.models.encoder import build_backbone, drops_at_random, feature_dim
from mixco.models.split_batchnorm import SPLIT, split_batch_norms
from mixco.runtime.errors import UserError
from mixco.settings.commands import KNNConfig
from mixco.settings.config import PretrainConfig
from mixco.training.build import build_method
from mixco.training.checkpoints import checkpoints
from mixco.training.pretrain import pretrain


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training images of two classes, four to test on."""
    return unpack_sample(tmp_path_factory.mktemp("photos"), train=4, test=2, classes=2)


def of_method(method: str) -> dict[str, Any]:
    own = {"queue": 8, "bn_splits": 2, "momentum": 0.9} if method == "moco" else {}
    return {"method": method, "batch_size": 4, "epochs": 1, "dim": 16, **own}


def config(
    photos: Path, out: Path, arch: str, size: int, method: str = "moco", **settings: Any
) -> PretrainConfig:
    places = {"data": str(photos), "cache": photos / "cache", "out": out}
    usual = {**of_method(method), "knn_every": 0}
    return pretrain_config(arch=arch, size=size, **{**usual, **places, **settings})


@pytest.mark.parametrize(
    ("arch", "size", "stem"),
    [
        ("resnet18", 32, "conv3s1"),
        ("resnet18", 48, "standard"),
        ("resnet34", 32, "conv3s2"),
        ("resnet50", 32, "conv3s1"),
        ("resnet50", 48, "standard"),
        ("vit_tiny_patch16_224", 48, "standard"),
        ("convnext_atto", 32, "standard"),
        ("mobilenetv3_small_050", 64, "standard"),
        ("test_vit_relpos", 32, "standard"),
        ("coat_tiny", 32, "standard"),
    ],
)
def test_an_encoder_goes_the_whole_way(
    photos: Path, tmp_path: Path, arch: str, size: int, stem: str
) -> None:
    # In float32 the gradient of some biases is too small to move them in two steps.
    settings = config(photos, tmp_path / "run", arch, size, stem=stem, precision="bfloat16")
    run = pretrain(settings)

    loaded = load_encoder(run).backbone
    of_checkpoint = load_encoder(checkpoints(run)[-1]).backbone
    untrained = build_backbone(arch, size, stem).state_dict()  # type: ignore[arg-type]
    for (key, value), other in zip(
        loaded.state_dict().items(), of_checkpoint.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), key
    changed = [k for k, v in loaded.named_parameters() if not torch.equal(v, untrained[k])]
    assert len(changed) == len(list(loaded.parameters())), "training reached every weight"

    result = evaluate_knn(config_of(KNNConfig, run=run, cache=photos / "cache"))
    assert 0 <= result["top1"] <= 100
    assert result["weights_matched"] == len(untrained)


@pytest.mark.parametrize(
    "arch",
    [
        "xcit_nano_12_p8_224",  # its patch embedding has one number for a side
        "efficientvit_m0",  # its patch embedding is a sequence of layers
        "pvt_v2_b0",  # its patches overlap, so none is cut
        "coat_tiny",  # its layers share weights
        "csatv2",  # its first convolution is not of colours
        "efficientvim_m1",  # it has a weight that is never trained
    ],
)
def test_families_of_all_kinds_pass(arch: str) -> None:
    good, text = tried(arch, 64)
    assert good, text
    assert text.endswith("features"), text


@pytest.mark.parametrize(
    ("arch", "size", "sentence"),
    [
        ("eva02_tiny_patch14_224", 64, r"14 pixels of a patch.*; give --size 56 or 70"),
        ("crossvit_tiny_240", 64, r"12 pixels of a patch.*; give --size 36 or 72"),
        ("efficientformer_l1", 64, r"; give --size 224, the size that it was made for"),
        ("test_vit", 50, r"16 pixels of a patch.*; give --size 48 or 64"),
    ],
)
def test_a_size_that_is_refused_names_one_that_works(arch: str, size: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        feature_dim(build_backbone(arch, size), size)
    good, text = tried(arch, size)
    assert good, text


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("resnet18.a1_in1k", "alone, without owner and tag; did you mean resnet18?"),
        ("timm/resnet18.a1_in1k", "did you mean resnet18?"),
        ("hf-hub:timm/resnet18.a1_in1k", "did you mean resnet18?"),
        ("resnet18.a1_in1k", "For its published weights: --init timm:resnet18.a1_in1k"),
        ("timm/ResNet18", "For its published weights: --init timm:resnet18"),
        ("https://huggingface.co/timm/vit_tiny_patch16_224.augreg_in21k/", "vit_tiny_patch16_224?"),
        ("microsoft/resnet-50", "alone, without owner and tag; did you mean resnet50?"),
        ("torchvision/resnet50", "did you mean resnet50?"),
        ("ResNet18", "no model of this name; did you mean resnet18?"),
        ("resnet-18", "did you mean resnet18?"),
        ("vit_b_16", "did you mean vit_base_patch16_224?"),
        ("mobilenet_v3_small", "did you mean mobilenetv3_small_"),
        ("resnet19", "did you mean resnet1"),
        ("qqqqqq", "timm.list_models()"),
        ("", "--arch is empty"),
        (" ", "--arch is empty"),
    ],
)
def test_names_that_timm_does_not_have(given: str, sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        build_backbone(given, 64)


def test_torchvisions_names_that_timm_has_too() -> None:
    assert feature_dim(build_backbone("resnext50_32x4d", 32), 32) == 2048


def test_simclr_takes_other_families_too(photos: Path, tmp_path: Path) -> None:
    run = pretrain(config(photos, tmp_path / "run", "convnext_atto", 32, method="simclr"))
    assert load_encoder(run).description.arch == "convnext_atto"


def test_a_run_with_dropout_is_one_run(photos: Path, tmp_path: Path) -> None:
    """Dropout draws from torch's global generator, which the run must neither trust nor move."""
    weights = []
    for number, seed in enumerate([0, 0, 1]):
        settings = config(photos, tmp_path / str(number), "test_vit_relpos", 32, seed=seed)
        assert drops_at_random(
            build_method(resolved(size=32, arch="test_vit_relpos", **of_method("moco")))
        )
        torch.manual_seed(number)
        state = torch.get_rng_state()
        weights.append((pretrain(settings) / "encoder.safetensors").read_bytes())
        assert torch.equal(torch.get_rng_state(), state)
    body = [w[-100_000:] for w in weights]
    assert body[0] == body[1]
    assert body[0] != body[2]


def test_dropout_is_found_where_it_is() -> None:
    assert not drops_at_random(build_backbone("resnet18", 32))
    assert drops_at_random(timm.create_model("convnext_atto", drop_path_rate=0.1))
    assert drops_at_random(timm.create_model("vit_tiny_patch16_224", attn_drop_rate=0.1))
    assert drops_at_random(timm.create_model("mobilenetv3_small_050", drop_rate=0.1))


class NormByHand(nn.Module):
    """Batch norm by the function, as some models call it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, training=True)


@pytest.mark.parametrize(
    "norm",
    [
        nn.SyncBatchNorm(3),
        nn.BatchNorm1d(3),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.BatchNorm2d(3, momentum=None),
        EvoNorm2dB0(3),
        NormByHand(),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_a_norm_that_cannot_be_split_is_refused(norm: nn.Module) -> None:
    """It would let MoCo cheat, and nothing would show it but features that are worth nothing."""
    encoder = nn.Sequential(nn.Conv2d(3, 3, 1), norm)
    with pytest.raises(UserError, match=f"1 is a {type(norm).__name__}.*--method simclr"):
        split_batch_norms(encoder, 2)
    assert split_batch_norms(encoder, 1)[1] is norm, "asked for, the leak is accepted"


def test_an_encoder_with_such_a_norm_leaves_no_run_behind(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"BatchNorm1d.*another --arch or --method simclr"):
        pretrain(config(photos, tmp_path / "run", "levit_128s", 32))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arch", ["resnet18", "mobilenetv3_small_050"])
def test_splitting_twice_is_splitting_once(arch: str) -> None:
    backbone = split_batch_norms(split_batch_norms(build_backbone(arch, 32), 4), 2)
    splits = [m.splits for m in backbone.modules() if type(m) in SPLIT.values()]
    assert splits
    assert set(splits) == {2}


def test_patches_must_fill_the_image() -> None:
    with pytest.raises(UserError, match=r"--size 40.* 16 .*--size 32 or 48"):
        build_backbone("vit_tiny_patch16_224", 40)


@pytest.mark.parametrize("arch", ["test_vit_relpos", "resnet18"])
def test_a_size_that_the_model_cannot_take_is_told(tmp_path: Path, arch: str) -> None:
    path = tmp_path / "encoder.safetensors"
    description = EncoderDescription(arch, "auto", 32, (0.5,) * 3, (0.5,) * 3, "random weights")
    save_encoder(path, build_backbone(arch, 32), description)
    if arch == "resnet18":
        assert load_encoder(path, size=48).description.size == 48
        return
    with pytest.raises(UserError, match=r"--size 48: .*another size"):
        load_encoder(path, size=48)
