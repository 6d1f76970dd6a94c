"""Encoders of other projects give the same features as in their project, or are refused."""

import argparse
import re
from pathlib import Path
from typing import Any

import other_layouts as layouts
import pytest
import timm
import torch
from other_layouts import assert_all_counted, features, resnet
from safetensors.torch import save_file
from sample_images import unpack_sample
from torch import Tensor, nn

import mixco.cli
from mixco.encoders.loading import load_encoder
from mixco.runtime.errors import UserError

MOCO, LIGHTLY = "MoCo (facebookresearch's, or MixCo's of 2020)", "lightly"


@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        (layouts.moco_v2, MOCO),
        (layouts.moco_v1_one_gpu, MOCO),
        (layouts.simclr_2020, "SimCLR of MixCo's code of 2020"),
        (layouts.simclr_2020_many_gpus, "SimCLR of MixCo's code of 2020"),
        (layouts.linear_evaluation_2020, "torchvision or timm"),
        (layouts.lightly_moco, LIGHTLY),
        (layouts.lightly_benchmark, LIGHTLY),
        (layouts.lightly_plain, LIGHTLY),
        (layouts.lightly_train_simclr, "lightly-train"),
        (layouts.lightly_train_dino, "lightly-train"),
        (layouts.lightly_train_distillation, "lightly-train"),
        (layouts.state_dict, "torchvision or timm"),
        (layouts.timm_training, "torchvision or timm"),
        (layouts.compiled, "torchvision or timm"),
        (layouts.solo_learn, "solo-learn"),
        (layouts.solo_learn_simclr, "solo-learn"),
        (layouts.stable_pretraining, "a model with backbone"),
        (layouts.simsiam, "SimSiam"),
        (layouts.moco_v3, "MoCo v3"),
        (layouts.dino, "DINO"),
        (layouts.byol, "BYOL"),
        (layouts.pytorch_cifar, "a model with net"),
        (layouts.in_a_sequence, "a model with trainer.network.0"),
    ],
)
def test_the_right_encoder_is_taken(
    file: Path, images: Tensor, layout: layouts.Layout, kind: str
) -> None:
    model, other = resnet(1), resnet(2)
    content = layout(model, other)
    torch.save(content, file)
    loaded = load_encoder(file)
    torch.testing.assert_close(loaded.backbone(images), features(model, images))
    assert loaded.description.training == f"trained elsewhere, keys of {kind}"
    assert (loaded.description.arch, loaded.description.size) == ("resnet18", 224)
    assert_all_counted(loaded, content)


@pytest.mark.parametrize("arch", ["resnet34", "resnet50", "wide_resnet50_2", "resnext50_32x4d"])
def test_a_resnet_is_known_by_its_shapes(file: Path, images: Tensor, arch: str) -> None:
    model = resnet(1, arch)
    torch.save(layouts.simclr_2020(model, model), file)
    loaded = load_encoder(file)
    assert loaded.description.arch == arch
    torch.testing.assert_close(loaded.backbone(images), features(model, images))


@pytest.mark.parametrize(
    ("layout", "padding", "said"),
    [
        (layouts.solo_learn, 2, "padding 2, as solo-learn has it for CIFAR"),
        (layouts.solo_learn_simclr, 2, "padding 2, as solo-learn has it for CIFAR"),
        (layouts.lightly_small, 1, "no activation, since none is among the parts"),
    ],
)
def test_small_stems_of_projects_that_are_certain(
    file: Path, images: Tensor, layout: layouts.Layout, padding: int, said: str
) -> None:
    model = resnet(1, padding=padding)
    torch.save(layout(model, resnet(2, padding=padding)), file)
    if layout is layouts.lightly_small:
        model.relu = nn.Identity()  # only that of the stem; the blocks have their own
    loaded = load_encoder(file)
    torch.testing.assert_close(loaded.backbone(images), features(model, images))
    assert loaded.description.size == 32
    assert said in loaded.report[-1]
    assert "ImageNet's mean and standard deviation" in loaded.report[-1]


@pytest.mark.parametrize(
    ("layout", "padding", "stem"),
    [
        (layouts.stable_pretraining, 1, "conv3s1"),
        (layouts.state_dict, 1, "conv3s1"),
        (layouts.simclr_2020, 1, "conv3s1"),
        (layouts.pytorch_cifar, 1, "conv3s1"),
        (layouts.lightly_benchmark, 1, "conv3s1"),
        (layouts.stable_pretraining, 2, "conv3s1p2"),
    ],
)
def test_other_small_stems_must_be_given(
    file: Path, images: Tensor, layout: layouts.Layout, padding: int, stem: Any
) -> None:
    """A 3x3 convolution tells neither its stride nor its padding; a guess would be off by percents."""
    model = resnet(1, padding=padding)
    torch.save(layout(model, resnet(2, padding=padding)), file)
    with pytest.raises(UserError, match=r"3x3.*--stem conv3s1 .*conv3s1p2 .*conv3s2"):
        load_encoder(file)
    loaded = load_encoder(file, stem=stem)
    torch.testing.assert_close(loaded.backbone(images), features(model, images))


def two_encoders(model: nn.Module, other: nn.Module) -> Any:
    """Of a project that nobody knows."""
    return {
        "weights": {**layouts.put("left.", model.state_dict()), **layouts.linear("left_head")},
        "average": layouts.put("right.", other.state_dict()),
    }


@pytest.mark.parametrize(
    ("layout", "of_first", "of_second"),
    [
        (two_encoders, "weights.left", "average"),
        (layouts.moco_v2, "encoder_q", "state_dict.module.encoder_k."),
        (layouts.moco_v3, "base_encoder", "momentum_encoder"),
        (layouts.dino, "teacher.backbone", "student"),
        (layouts.byol, "online_encoder.net", "target_encoder"),
        (layouts.timm_training, "", "state_dict_ema"),
        (layouts.lightly_moco, "backbone", "backbone_momentum"),
    ],
)
def test_one_of_several_encoders_can_be_asked_for(
    file: Path, images: Tensor, layout: layouts.Layout, of_first: str, of_second: str
) -> None:
    first, second = resnet(1), resnet(2)
    torch.save(layout(first, second), file)
    for model, prefix in ((first, of_first), (second, of_second)):
        loaded = load_encoder(file, prefix=prefix)
        torch.testing.assert_close(loaded.backbone(images), features(model, images))


def test_several_encoders_of_an_unknown_project_are_listed(file: Path) -> None:
    torch.save(two_encoders(resnet(1), resnet(2)), file)
    with pytest.raises(
        UserError, match=r"2 encoders; give --prefix.*: weights\.left, average\.right"
    ):
        load_encoder(file)
    with pytest.raises(
        UserError, match=r"--prefix middle; give one of: weights\.left, average\.right"
    ):
        load_encoder(file, prefix="middle")


def test_a_damaged_encoder_is_not_replaced_by_the_other(file: Path) -> None:
    content = layouts.moco_v2(resnet(1), resnet(2))
    del content["state_dict"]["module.encoder_q.layer1.0.conv1.weight"]
    torch.save(content, file)
    with pytest.raises(UserError):
        load_encoder(file)
    with pytest.raises(UserError, match=r"layer1\.0\.conv1\.weight is missing"):
        load_encoder(file, arch="resnet18")


def test_another_family_in_an_entry_of_its_own(file: Path, images: Tensor) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        student, teacher = (timm.create_model("test_vit", num_classes=0).eval() for _ in range(2))
    entries = {"student": layouts.put("module.backbone.", student.state_dict())}
    entries["teacher"] = layouts.put("backbone.", teacher.state_dict())
    torch.save({**entries, "epoch": 3}, file)
    seen = nn.functional.interpolate(images, student.default_cfg["input_size"][-1])
    with torch.no_grad():
        for model, given in ((teacher, None), (student, "student")):
            loaded = load_encoder(file, arch="test_vit", prefix=given)
            torch.testing.assert_close(loaded.backbone(seen), model(seen))
    with pytest.raises(UserError, match=r"timm's vit_\*.*give --arch"):
        load_encoder(file)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_formats_load_as_float32(
    file: Path, images: Tensor, kind: torch.dtype
) -> None:
    model = resnet(1).to(kind)
    torch.save(model.state_dict(), file)
    loaded = load_encoder(file)
    assert {p.dtype for p in loaded.backbone.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.backbone(images), features(model.float(), images))


def test_the_normalisation_can_be_given(file: Path) -> None:
    model = resnet(1)
    torch.save(model.state_dict(), file)
    mean, std = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
    loaded = load_encoder(file, mean=mean, std=std)
    assert (loaded.description.mean, loaded.description.std) == (mean, std)
    assert "ImageNet" not in loaded.report[-1]
    for wrong in ({"mean": mean}, {"mean": mean, "std": std[:2]}, {"mean": mean, "std": (0, 1, 1)}):
        with pytest.raises(UserError, match="--std"):
            load_encoder(file, **wrong)  # type: ignore[arg-type]


def test_images_of_other_channels_need_their_normalisation(file: Path) -> None:
    model = resnet(1)
    model.conv1 = nn.Conv2d(4, 64, 7, 2, 3, bias=False)
    torch.save(model.state_dict(), file)
    with pytest.raises(UserError, match="4 channels, here are 3; give --mean and --std"):
        load_encoder(file)
    loaded = load_encoder(file, mean=(0.5,) * 4, std=(0.2,) * 4)
    x = torch.rand(2, 4, 64, 64)
    torch.testing.assert_close(loaded.backbone(x), features(model, x))


def test_the_stem_can_be_given(file: Path, images: Tensor) -> None:
    model = resnet(1, padding=1)
    torch.save(model.state_dict(), file)
    loaded = load_encoder(file, stem="conv3s2", size=64)
    model.conv1.stride = (2, 2)
    torch.testing.assert_close(loaded.backbone(images), features(model, images))
    assert (loaded.description.stem, loaded.description.size) == ("conv3s2", 64)
    with pytest.raises(
        UserError, match=r"do not fit resnet18 with stem standard: conv1\.weight is"
    ):
        load_encoder(file, stem="standard")


@pytest.mark.parametrize("arch", ["test_vit", "test_convnext", "mobilenetv3_small_050"])
def test_other_families_need_their_name(file: Path, images: Tensor, arch: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        size = 64 if arch != "test_vit" else timm.create_model(arch).default_cfg["input_size"][-1]
        model = timm.create_model(arch, num_classes=7).eval()
    weights = layouts.put("embedding_model.wrapped_model._model.", model.state_dict())
    torch.save(layouts.lightning({**weights, **layouts.linear("projection_head.0")}), file)
    loaded = load_encoder(file, arch=arch)
    seen = nn.functional.interpolate(images, size)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(seen), pre_logits=True)
        torch.testing.assert_close(loaded.backbone(seen), expected)
    assert any(re.match(r"left out: \d+ of heads \(projection_head, .*", x) for x in loaded.report)
    with pytest.raises(UserError, match=r"the keys look like those of timm's \w+.*give --arch"):
        load_encoder(file)


def test_safetensors_without_a_description(tmp_path: Path, images: Tensor) -> None:
    model = resnet(1)
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    torch.testing.assert_close(load_encoder(path).backbone(images), features(model, images))
    path.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_q.layer3.1.bn2.running_var": None}, r"layer3\.1\.bn2\.running_var is missing"),
        ({"encoder_q.layer3.1.bn3.bias": torch.ones(2)}, r"layer3\.1\.bn3\.bias is left over"),
        ({"encoder_q.bn1.bias": torch.ones(2)}, r"bn1\.bias is \[2\] instead of \[64\]"),
        ({"encoder_q.layer5.weight": torch.ones(2)}, r"layer5\.weight is left over"),
        ({"encoder_q.layer4.1.conv1.weight": None}, "a ResNet of a shape not known here"),
        ({"module.encoder_q.bn1.bias": torch.ones(64)}, r"encoder_q\.bn1\.bias is in it twice"),
    ],
)
def test_what_does_not_fit_is_refused(
    file: Path, change: dict[str, Tensor | None], message: str
) -> None:
    content = layouts.moco_v1_one_gpu(resnet(1), resnet(2))
    weights = {**content["state_dict"], **change}
    content["state_dict"] = {key: value for key, value in weights.items() if value is not None}
    torch.save(content, file)
    with pytest.raises(UserError, match=message) as refused:
        load_encoder(file)
    assert str(refused.value).startswith(f"{file}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": torch.zeros(1)}, r"the keys \(x, \.\.\.\) are of no layout known here; give --arch"),
        ({"state_dict": {}, "epoch": 3}, "no weights in it; expected a state dict.*found epoch"),
        ({"student": {"x": torch.zeros(1)}}, "expected a state dict.*found student"),
        ([torch.zeros(1)], "no weights in it"),
        (nn.Linear(2, 2), r"no weights in it.*Linear.*save model\.state_dict\(\)"),
        (
            {"model": nn.Linear(2, 2), "args": argparse.Namespace()},
            r"Linear.*torch\.load\('other\.pth\.tar', weights_only=False\)\['model'\]\.state_dict\(\)",
        ),
    ],
)
def test_an_unknown_layout_is_told(file: Path, content: object, message: str) -> None:
    torch.save(content, file)
    with pytest.raises(UserError, match=message):
        load_encoder(file)


def test_a_standard_stem_without_its_pooling_is_refused(file: Path) -> None:
    model = resnet(1)
    parts = [part for part in list(model.children())[:-1] if not isinstance(part, nn.MaxPool2d)]
    torch.save(layouts.put("features.", nn.Sequential(*parts).state_dict()), file)
    with pytest.raises(UserError, match="3 parts before layer1, where a ResNet has four"):
        load_encoder(file)


class Bomb:
    """Creates a file when pickle loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, (str(self.path), "w")  # type: ignore[return-value]


class Settings:
    """Somebody's own class: harmless, perhaps."""


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_nothing_in_a_file_is_run(tmp_path: Path, file: Path, zipped: bool) -> None:
    content = layouts.moco_v2(resnet(1), resnet(2))
    for thing, name in ((Bomb(tmp_path / "exploded"), r"\bopen\b"), (Settings(), "Settings")):
        torch.save({**content, "args": thing}, file, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=rf"more than weights \(.*{name}.*weights_only=False"):
            load_encoder(file)
    assert not (tmp_path / "exploded").exists()


def test_the_format_before_torch_1_6_is_read(file: Path, images: Tensor) -> None:
    model = resnet(1)
    content = layouts.moco_v2(model, resnet(2))
    torch.save(content, file, _use_new_zipfile_serialization=False)
    torch.testing.assert_close(load_encoder(file).backbone(images), features(model, images))


def test_through_the_command(tmp_path: Path, file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    photos = unpack_sample(tmp_path / "photos", train=6, test=2, classes=3)
    torch.save(layouts.moco_v2(resnet(1), resnet(2)), file)
    paths = ("--checkpoint", file, "--data", photos, "--cache", tmp_path / "cache")
    common = ["--device", "cpu", *map(str, paths)]
    mixco.cli.main(["knn", *common, "--size", "64"])
    output = capfd.readouterr()
    for line in (
        f"{file}: trained elsewhere, keys of {MOCO}; all 120 weights matched resnet18",
        "taken: 120 weights of the backbone (encoder_q.*)",
        "left out: 4 of heads (encoder_q.fc)",
        "left out: 124 of a second encoder (encoder_k)",
        "left out: 2 of the queue (queue, queue_ptr)",
        "left out beside the weights: arch, best_acc1, epoch, optimizer",
        "assumed: images of 64 px, normalised with ImageNet's mean and standard deviation",
    ):
        assert line in output.err.splitlines()
    assert "6 images of photos/test, 18 labelled" in output.out

    given = ["--prefix", "encoder_k", "--mean", "0.5", "0.5", "0.5", "--std", "0.2", "0.2", "0.2"]
    mixco.cli.main(["knn", *common, "--size", "32", *given])
    output = capfd.readouterr()
    for line in ("taken: 120 weights of the backbone (encoder_k.*)", "assumed: images of 32 px"):
        assert line in output.err.splitlines()

    with pytest.raises(SystemExit) as stopped:
        mixco.cli.main(["linear", *common, "--arch", "resnet5"])
    assert stopped.value.code == 2
    assert "--arch resnet5" in capfd.readouterr().err


def test_our_own_files_name_their_architecture(tmp_path: Path) -> None:
    from mixco.encoders.checkpoint import EncoderDescription, save_encoder
    from mixco.models.encoder import build_backbone

    path = tmp_path / "encoder.safetensors"
    description = EncoderDescription("resnet18", "auto", 32, (0.5,) * 3, (0.5,) * 3, "random")
    save_encoder(path, build_backbone("resnet18", 32), description)
    for given in (
        {"arch": "resnet34"},
        {"stem": "conv3s1"},
        {"prefix": "encoder_q"},
        {"mean": (0.5,) * 3, "std": (0.5,) * 3},
    ):
        with pytest.raises(UserError, match="resnet18 with stem auto; leave out"):
            load_encoder(path, **given)  # type: ignore[arg-type]
