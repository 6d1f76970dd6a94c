"""timm's families of architectures: their names, how each is built, and the sizes that it can take."""

import difflib
import re
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from mixco.runtime.errors import UserError

# torchvision's names for which timm has others that do not look alike.
TORCHVISION = {
    "vit_b_16": "vit_base_patch16_224",
    "vit_b_32": "vit_base_patch32_224",
    "vit_l_16": "vit_large_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
    "vit_h_14": "vit_huge_patch14_224",
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_s": "swin_small_patch4_window7_224",
    "swin_b": "swin_base_patch4_window7_224",
}

# Sides in pixels that are tried for a remedy: in steps near the one that failed, then in four at once.
STEP, NEAR, SMALLEST, LARGEST = 8, 64, 32, 512


def refuse_unknown(arch: str, given: str = "") -> None:
    """Raises UserError for what is not a name of timm.list_models(), with the name that was meant.

    given: what the user wrote, where it is not --arch.
    """
    known = timm.list_models()
    if arch in known:
        return
    if not arch.strip():
        raise UserError("--arch is empty; give timm's name of an architecture, such as resnet18")
    # "hf-hub:timm/resnet18.a1_in1k": where it lies, who made it, and the weights' tag after the name.
    name = re.split(r"[/:]", arch.strip().rstrip("/"))[-1].lower()
    bare = name.partition(".")[0]
    meant = TORCHVISION.get(bare) or _same_letters(bare, known)
    if bare != arch.strip().lower() and meant:
        rule = "mixco takes the name of the architecture alone, without owner and tag"
    else:
        rule = "timm has no model of this name"
    near = [meant] if meant else _alike(bare, known)
    hint = f"did you mean {near[0]}?" if near else "timm.list_models() in Python lists all"
    if meant and (name != bare or "timm/" in arch):
        hint += f" For its published weights: --init timm:{meant}{name.removeprefix(bare)}"
    raise UserError(f"{given or f'--arch {arch}'}: {rule}; {hint}")


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _same_letters(name: str, known: list[str]) -> str | None:
    """The known name that differs in case, hyphens and underscores alone."""
    return next((model for model in known if _letters(model) == _letters(name)), None)


def _alike(name: str, known: list[str]) -> list[str]:
    by_letters = {_letters(model): model for model in known}
    near = difflib.get_close_matches(_letters(name), by_letters, n=1)
    return [by_letters[letters] for letters in near]


def usual_size(arch: str) -> int:
    """The side in pixels of the images that the model was made for; 224 where timm does not say.

    Raises UserError for an unknown arch.
    """
    refuse_unknown(arch)
    config = timm.models.get_pretrained_cfg(arch, allow_unregistered=True)
    return int(config.input_size[-1]) if config else 224


def create(arch: str, size: int, channels: int, **more: Any) -> nn.Module:
    """A known timm model without its classifier, its weights drawn from the global generator.

    more: for timm.create_model. Raises UserError for what timm cannot build at any size, and timm's
    errors for a size.
    """
    # Families take different arguments: transformers an image size; ResNets the initialisation that
    # the published MoCo and SimCLR recipes used.
    seen: dict[str, Any] = {} if channels == 3 else {"in_chans": channels}
    reason = ""
    for extra in ({"img_size": size}, {"zero_init_last": False}, {}):
        try:
            model = timm.create_model(arch, num_classes=0, **seen, **extra, **more)
        except TypeError as error:  # an argument that the family does not take
            reason = first_line(error)
            continue
        # What it takes here, not where timm's weights of it come from.
        config = cast(dict[str, Any], model.pretrained_cfg)
        config["input_size"] = (channels, size, size)
        return model
    raise UserError(
        f"--arch {arch}: timm cannot build it without a classifier and with {channels} input "
        f"channels ({reason}); give another --arch"
    )


def patch_side(backbone: nn.Module) -> int:
    """The side in pixels of the patches that the backbone cuts an image into; 1 for none.

    Patches that overlap see everything, so they are none.
    """
    embedding = getattr(backbone, "patch_embed", None)
    if not isinstance(embedding, nn.Module):
        return 1
    first = next((m for m in embedding.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.kernel_size != first.stride or any(first.padding):
        return 1
    return first.kernel_size[0]


def blank_features(backbone: nn.Module, size: int) -> Tensor:
    """[1, D]: what the backbone gives for a black image of `size` pixels, in its mode.

    Raises ValueError for features of another shape, and whatever the backbone raises.
    """
    device = next(backbone.parameters()).device
    channels = cast(dict[str, Any], backbone.pretrained_cfg)["input_size"][0]
    features = backbone(torch.zeros(1, channels, size, size, device=device))
    if not (isinstance(features, Tensor) and features.ndim == 2 and len(features) == 1):
        found = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"it gives {found} for one image, not a list of features")
    return features


def size_error(arch: str, size: int, channels: int, reason: str, step: int = STEP) -> UserError:
    """The error for images of a size that the model cannot take. It names the nearest sizes that work.

    step: in pixels, between the sizes that are tried.
    """
    usual = usual_size(arch)
    near = sizes_near(arch, size, channels, step)
    if not near:
        remedy = "no other size was found that it takes; give another --arch"
    else:
        remedy = f"give --size {' or '.join(map(str, near))}"
        if near == [usual]:
            remedy += ", the size that it was made for"
    because = f" ({reason})" if reason else ""
    return UserError(f"--size {size}: {arch} cannot take such images{because}; {remedy}")


def sizes_near(arch: str, size: int, channels: int, step: int = STEP) -> list[int]:
    """The nearest sides in pixels that the model takes, below and above: none, one or two.

    Found by trying, without computing: on torch's device meta.
    """
    fine = range(step, LARGEST + 1, step)
    sides = {s for s in fine if s >= SMALLEST and (abs(s - size) <= NEAR or s % (4 * step) == 0)}
    ordered = sorted({*sides, usual_size(arch)} - {size}, key=lambda side: abs(side - size))
    below = next((s for s in ordered if s < size and _takes(arch, s, channels)), None)
    above = next((s for s in ordered if s > size and _takes(arch, s, channels)), None)
    return [s for s in (below, above) if s is not None]


def _takes(arch: str, size: int, channels: int) -> bool:
    """Can the model be built for images of this size, and computes features of them?"""
    try:
        with torch.device("meta"), torch.no_grad():
            backbone = create(arch, size, channels).eval()
            blank_features(backbone, size)
    except Exception:  # timm's many kinds
        return False
    return size % patch_side(backbone) == 0


def first_line(error: Exception) -> str:
    """The first line of an error's text that says something; "" for none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
