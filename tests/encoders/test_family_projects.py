"""Encoders of i-Mix, Un-Mix, MYOL, Mix-BT, SimSiam, Barlow Twins and solo-learn give their features."""

from pathlib import Path
from typing import Any

import family_layouts as layouts
import other_layouts
import pytest
import torch
from other_layouts import assert_all_counted, features, resnet
from torch import Tensor, nn
from torch.nn import functional

from mixco.encoders.loading import load_encoder
from mixco.runtime.errors import UserError

DEMO = "MoCo's demo or Un-Mix"
MOCO = "MoCo (facebookresearch's, or MixCo's of 2020)"


@pytest.mark.parametrize(
    ("layout", "project"),
    [
        (layouts.imix, "i-Mix"),
        (layouts.imix_npair, "i-Mix"),
        (layouts.imix_byol, "i-Mix"),
        (other_layouts.moco_v2, MOCO),  # so do i-Mix and Un-Mix for ImageNet
        (layouts.myol, "MYOL"),
        (other_layouts.simsiam, "SimSiam"),
        (layouts.barlow_twins, "Barlow Twins"),
        (layouts.mix_bt_imagenet, "a model with backbone"),
        (layouts.backbone_alone, "torchvision or timm"),
        (layouts.whitening_byol, "BYOL of W-MSE's code"),
        (layouts.swav, "SwAV"),
        *(
            (layout, "solo-learn")
            for layout in (
                *(layouts.solo_learn_byol, layouts.solo_learn_simsiam, layouts.solo_learn_barlow),
                *(layouts.older_byol, layouts.older_simsiam, layouts.older_barlow),
            )
        ),
        (layouts.patrick_hua, "SimSiam of PatrickHua"),
    ],
)
def test_usual_stems(
    file: Path, images: Tensor, layout: other_layouts.Layout, project: str
) -> None:
    model = resnet(1)
    content = layout(model, resnet(2))
    torch.save(content, file)
    loaded = load_encoder(file)
    torch.testing.assert_close(loaded.backbone(images), features(model, images))
    assert loaded.description.training == f"trained elsewhere, keys of {project}"
    assert (loaded.description.arch, loaded.description.stem) == ("resnet18", "standard")
    assert_all_counted(loaded, content)


@pytest.mark.parametrize(
    ("layout", "padding", "project"),
    [
        (layouts.imix, 1, "i-Mix"),
        (layouts.imix_npair, 1, "i-Mix"),
        (layouts.imix_byol, 1, "i-Mix"),
        (layouts.unmix, 1, DEMO),
        (layouts.mix_bt, 1, "Mix-BT"),
        (layouts.mix_bt_uncounted, 1, "Mix-BT"),
        (layouts.solo_learn_byol, 2, "solo-learn"),
        (layouts.solo_learn_simsiam, 2, "solo-learn"),
        (layouts.solo_learn_barlow, 2, "solo-learn"),
        (layouts.older_byol, 2, "solo-learn"),
        (layouts.older_simsiam, 2, "solo-learn"),
        (layouts.older_barlow, 2, "solo-learn"),
        (layouts.patrick_hua, 1, "SimSiam of PatrickHua"),
        (layouts.patrick_hua_shortcuts, 1, "SimSiam of PatrickHua"),
    ],
)
def test_small_stems_of_projects_that_are_certain(
    file: Path, images: Tensor, layout: other_layouts.Layout, padding: int, project: str
) -> None:
    model = resnet(1, padding=padding)
    content = layout(model, resnet(2, padding=padding))
    torch.save(content, file)
    loaded = load_encoder(file)
    torch.testing.assert_close(loaded.backbone(images), features(model, images))
    assert loaded.description.training == f"trained elsewhere, keys of {project}"
    assert loaded.description.size == 32
    said = f"3x3 stem with stride 1, no max-pool, padding {padding}, as {project} has it for CIFAR"
    assert said in loaded.report[-1]
    assert_all_counted(loaded, content)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_a_sequence_tells_its_max_pool(file: Path, images: Tensor, arch: str) -> None:
    """Mix-BT's for STL-10 and Tiny ImageNet, whose parts have other numbers than those for CIFAR."""
    model = resnet(1, arch, padding=1, pool=True)
    content = layouts.mix_bt(model, model)
    torch.save(content, file)
    loaded = load_encoder(file)
    torch.testing.assert_close(loaded.backbone(images), features(model, images))
    assert (loaded.description.stem, loaded.description.size) == ("conv3s1pool", 64)
    assert "a max-pool, padding 1, as Mix-BT has it for STL-10" in loaded.report[-1]
    assert f"{len(layouts.counted(model, ''))} of thop's counters" in " ".join(loaded.report)
    assert_all_counted(loaded, content)


def test_the_padding_of_unmix_with_swav(file: Path, images: Tensor) -> None:
    """It pads the image, then the convolution pads once more; its resnet18 has bottlenecks."""
    model = resnet(1, "resnet26", padding=1)
    content = layouts.swav(model, model)
    torch.save(content, file)
    loaded = load_encoder(file)
    expected = features(model, functional.pad(images, (1, 1, 1, 1)))
    torch.testing.assert_close(loaded.backbone(images), expected)
    assert (loaded.description.arch, loaded.description.stem) == ("resnet26", "conv3s1p2")
    assert "padding 2, as Un-Mix with SwAV has it for CIFAR" in loaded.report[-1]
    assert_all_counted(loaded, content)


def test_the_padding_of_swav(file: Path, images: Tensor) -> None:
    model = resnet(1)
    model.conv1 = nn.Conv2d(3, 64, 7, 2, padding=2, bias=False)
    torch.save(layouts.swav(model, model), file)
    expected = features(model, functional.pad(images, (1, 1, 1, 1)))
    torch.testing.assert_close(load_encoder(file).backbone(images), expected)


def kept_apart(model: nn.Module, other: nn.Module) -> Any:
    """Two encoders with solo-learn's names, but not its heads."""
    weights = layouts.solo_learn_byol(model, other)["state_dict"]
    return {k: v for k, v in weights.items() if "backbone" in k}


def imix_of_plain_heads(model: nn.Module, other: nn.Module) -> Any:
    """Without norms in its heads, i-Mix's keys are MoCo's."""
    return {k: v for k, v in layouts.imix(model, other)["state_dict"].items() if ".bn." not in k}


@pytest.mark.parametrize(
    ("layout", "padding", "pool", "stem"),
    [
        (layouts.myol, 1, False, "conv3s1"),
        (layouts.myol, 1, True, "conv3s1pool"),
        (layouts.whitening_byol, 1, False, "conv3s1"),
        (layouts.whitening_byol, 1, True, "conv3s1pool"),
        (layouts.swav, 2, False, "conv3s1p2"),
        (imix_of_plain_heads, 1, False, "conv3s1"),
        (kept_apart, 1, False, "conv3s1"),
    ],
)
def test_a_stem_that_the_file_does_not_tell_is_asked_for(
    file: Path, images: Tensor, layout: other_layouts.Layout, padding: int, pool: bool, stem: Any
) -> None:
    model, other = (resnet(seed, padding=padding, pool=pool) for seed in (1, 2))
    torch.save(layout(model, other), file)
    with pytest.raises(UserError, match=r"--stem conv3s1 .*conv3s1pool \(.*MYOL's for STL-10"):
        load_encoder(file)
    loaded = load_encoder(file, stem=stem)
    torch.testing.assert_close(loaded.backbone(images), features(model, images))
    assert loaded.description.size == (64 if pool else 32)


@pytest.mark.parametrize(
    ("layout", "prefix"),
    [
        (layouts.imix, "encoder_k"),
        (layouts.unmix, "encoder_k"),
        (layouts.whitening_byol, "model_t"),
        (layouts.older_byol, "momentum_encoder"),
    ],
)
def test_the_other_encoder_can_be_asked_for(
    file: Path, images: Tensor, layout: other_layouts.Layout, prefix: str
) -> None:
    model, other = (resnet(seed, padding=1) for seed in (1, 2))
    torch.save(layout(model, other), file)
    loaded = load_encoder(file, prefix=prefix, stem="conv3s1")
    torch.testing.assert_close(loaded.backbone(images), features(other, images))


def halved(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    return layouts.saved(layouts.put("encoder_q.", layouts.narrow(other_layouts.named(model))))


def of_tables(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    """i-Mix on tables has a network of linear layers."""
    return layouts.saved(other_layouts.linear("encoder_q.fc1.0", norm="encoder_q.fc.1.bn"))


def twice_as_wide(model: nn.Module, other: nn.Module) -> Any:
    content = layouts.swav(model, other)
    wide = {k: v.repeat(*(2,) * v.ndim) for k, v in content["state_dict"].items() if v.ndim}
    wide["module.conv1.weight"] = wide["module.conv1.weight"][:, :3, :7, :7]
    return {**content, "state_dict": wide}


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (halved, r"a ResNet of a shape not known here \(120 weights\); give --arch"),
        (of_tables, "are of no layout known here; give --arch"),
        (twice_as_wide, "a ResNet of a shape not known here"),
    ],
)
def test_networks_that_timm_does_not_have_are_refused(
    file: Path, layout: other_layouts.Layout, message: str
) -> None:
    model = resnet(1)
    torch.save(layout(model, model), file)
    with pytest.raises(UserError, match=message):
        load_encoder(file)
