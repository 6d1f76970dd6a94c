"""How views are made at random, in numbers: those of papers, and some for a kind of images.

A new augmentation is a function here and a line in AUGMENTATIONS. views/augment.py makes the views.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

Channels = tuple[float, ...]  # one number per channel
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


SMALL = 64  # pixels; views up to this size are too coarse for a blur
OVERRIDES = ("grey", "blur", "vertical_flip", "quarter_turns")
"""The fields of an augmentation that a setting of the same name replaces."""


class Input(NamedTuple):
    """The images that an encoder takes: [B, C, size, size], normalised."""

    size: int
    """Side in pixels."""
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    """Mean and standard deviation of each of the C channels, of pixels in [0, 1]."""


@dataclass(frozen=True)
class Augmentation:
    """How a view is made at random. Lengths in pixels, probabilities and fractions in [0, 1]."""

    input: Input
    """What the view becomes."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Range of the crop's fraction of the area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width / height, log-uniform."""
    flip: float = 0.5
    """From left to right."""
    vertical_flip: float = 0.0
    """From top to bottom."""
    quarter_turns: float = 0.0
    """Turned by 90, 180 or 270 degrees, each as likely."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strength of brightness, contrast, saturation (factors from 1 - s to 1 + s), hue (turns)."""
    jitter_probability: float = 0.8
    grey: float = 0.2
    grey_first: bool = False
    """Greyscale before the jitter, as MoCo v1 has it."""
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """In pixels of a 224 crop; scaled by size / 224."""

    @property
    def blur_kernel(self) -> int:
        """A tenth of the image, odd, at least 3 (Chen et al. 2020, appendix A)."""
        return max(3, self.input.size // 10 // 2 * 2 + 1)


def moco_v1(input: Input) -> Augmentation:
    """He et al. 2020: crop, greyscale, strong jitter always, flip; no blur."""
    return Augmentation(
        input, jitter=(0.4, 0.4, 0.4, 0.4), jitter_probability=1.0, grey_first=True, blur=0.0
    )


def moco_v2(input: Input) -> Augmentation:
    """Chen et al. 2020 (2003.04297): crop, jitter, greyscale, blur, flip."""
    return Augmentation(input)


def simclr(input: Input) -> Augmentation:
    """Chen et al. 2020 (2002.05709), but with MixCo's smallest crop of 0.2 of the area, not 0.08."""
    return Augmentation(input, jitter=(0.8, 0.8, 0.8, 0.2))


def photos(input: Input) -> Augmentation:
    """Photographs of things and scenes: MoCo v2's with half the greyscale, and no blur up to 64 px.

    On CIFAR-10 that greyscale is worth about a point (github.com/dkobak/simclr-cifar10).
    """
    return Augmentation(input, grey=0.1, blur=_blur(input))


def aerial(input: Input) -> Augmentation:
    """Photographs from above have no upright side, and colours that tell what grows there."""
    return Augmentation(
        input, jitter=(0.2, 0.2, 0.2, 0.05), grey=0.1, blur=_blur(input), quarter_turns=0.75
    )


def microscopy(input: Input) -> Augmentation:
    """Tissue and cells: every orientation, stains of other strength and a little other hue, other focus.

    They are never grey, because the stain tells what a part is.
    """
    return Augmentation(input, jitter=(0.3, 0.3, 0.3, 0.05), grey=0.0, quarter_turns=0.75)


def documents(input: Input) -> Augmentation:
    """Scans and photographs of pages: never mirrored or turned, crops of 40 % of the area at least."""
    return Augmentation(
        input, scale=(0.4, 1.0), flip=0.0, jitter=(0.4, 0.4, 0.4, 0.1), blur=_blur(input)
    )


def _blur(input: Input) -> float:
    return 0.5 if input.size > SMALL else 0.0


AUGMENTATIONS = {
    "moco-v1": moco_v1,
    "moco-v2": moco_v2,
    "simclr": simclr,
    "photos": photos,
    "aerial": aerial,
    "microscopy": microscopy,
    "documents": documents,
}


def augmentation_of(method: Mapping[str, Any], input: Input) -> Augmentation:
    """The augmentation that the settings of a method ask for.

    method: `augmentation`, a name of AUGMENTATIONS; `jitter`, which multiplies the strength of its
        colour jitter; `min_crop`, the smallest crop's share of the area; and OVERRIDES. Where one is
        None or missing, as in the config.json of an earlier version, the augmentation's own holds.

    Raises KeyError for an unknown name.
    """
    named = AUGMENTATIONS[method["augmentation"]](input)
    given = {name: method[name] for name in OVERRIDES if method.get(name) is not None}
    if method.get("min_crop") is not None:
        given["scale"] = (method["min_crop"], 1.0)
    return weaken_jitter(replace(named, **given), method.get("jitter", 1.0))


def crop_and_flip(input: Input) -> Augmentation:
    """For linear evaluation and fine-tuning (He et al. 2020): a crop of 8 to 100 % of the area, flip."""
    return Augmentation(input, scale=(0.08, 1.0), jitter_probability=0.0, grey=0.0, blur=0.0)


def weaken_jitter(augmentation: Augmentation, strength: float) -> Augmentation:
    """The augmentation with its colour jitter multiplied by `strength`."""
    brightness, contrast, saturation, hue = (strength * s for s in augmentation.jitter)
    return replace(augmentation, jitter=(brightness, contrast, saturation, hue))
