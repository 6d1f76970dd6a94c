"""What is not given is chosen here: from the images, the method and the device, each with its reason.

Pure functions of plain values -> (value, reason in a few words); docs/own-data.md has them as a table.
"""

from typing import Literal

SIZES = (32, 64, 96, 128)
SLOW_SIZE = 64  # the largest that is chosen where there is no GPU
USUAL_BATCH = 256
FEWEST_STEPS_AN_EPOCH = 8
FULL_PART = 16
"""Images that a batch norm needs for steady statistics."""
FEWEST = 2 * FULL_PART
"""Images of a batch: two parts at least, or MoCo would leak."""
STEPS = {"cuda": 20_000, "mps": 20_000, "cpu": 2_500}
EPOCHS = (100, 400)
USUAL_TEMPERATURE = 0.2
MOST_KEYS = 65_536
UNUSED = "unused"

# Passes with a gradient through the encoder, a step and image: the views, and half of each mixed.
PASSES = {
    ("simclr", "none"): 2.0,
    ("simclr", "mixco"): 3.0,
    ("moco", "none"): 1.0,
    ("moco", "mixco"): 1.5,
}
# What a training step holds at its peak, in parts of the outputs of all layers.
HELD = 1.3

Method = Literal["moco", "simclr"]


def size(height: int, width: int, device: str) -> tuple[int, str]:
    """The side of what the encoder sees, from the median image.

    Not above its shorter side, for enlarged images hold nothing more; not above what the device gets
    through: a pass costs about the square of the size.
    """
    limit = SLOW_SIZE if device == "cpu" else SIZES[-1]
    side = min(height, width)
    value = max((s for s in SIZES if s <= min(side, limit)), default=SIZES[0])
    median = f"the median image is {width} x {height}"
    if side < SIZES[0]:
        return value, f"{median}, and {value} is the smallest size"
    if side < 2 * value and value < limit:
        return value, f"{median}, and enlarged ones would hold nothing more"
    if value == SIZES[-1]:
        return value, f"{median}; 224 would take three times the arithmetic"
    if side >= 2 * value:
        return value, f"{median}, but on a CPU {2 * value} would take four times as long"
    return value, f"{median}"


def batch_size(images: int, image_bytes: float | None, memory: int | None) -> tuple[int, str]:
    """Images a step: 256, as published for MoCo; fewer for few images or little memory.

    image_bytes: what a step holds for each image of its batch; memory: the device's, in bytes; None
    where they are not known.
    """
    of_data = max(_power_of_two(images / FEWEST_STEPS_AN_EPOCH), FEWEST)
    of_data = min(of_data, _power_of_two(images))
    # Half of the memory: the images, the optimiser and other programs want some too.
    of_memory = _power_of_two(memory / 2 / image_bytes) if image_bytes and memory else USUAL_BATCH
    value = max(2, min(USUAL_BATCH, of_data, of_memory))
    if value == USUAL_BATCH:
        return value, "MoCo's, for ImageNet"
    if of_memory < of_data:
        return value, f"more would not fit into half of the {memory_text(memory or 0)} of memory"
    if images < FEWEST * FEWEST_STEPS_AN_EPOCH:
        return value, f"there are only {images:,} images"
    return value, f"so {images:,} images make at least {FEWEST_STEPS_AN_EPOCH} steps an epoch"


def epochs(images: int, batch: int, device: str) -> tuple[int, str]:
    """As many as make the steps that an encoder needs; at least 100, as published, at most 400."""
    a_epoch = max(1, images // batch)
    steps = STEPS[device]
    wanted = -(-steps // a_epoch)
    value = min(max(wanted, EPOCHS[0]), EPOCHS[1])
    if value == EPOCHS[0]:
        return value, f"as published; they make {value * a_epoch:,} steps"
    value = min(-(-value // 10) * 10, EPOCHS[1])
    if wanted > EPOCHS[1]:
        return value, f"the most that is chosen; they make {value * a_epoch:,} steps"
    where = " on a CPU" if device == "cpu" else ""
    return value, f"for about {steps:,} steps of {batch}{where}"


def lr(optimizer: str, method: Method, batch: int) -> tuple[float, str]:
    """The peak rate: grows with the root of the batch for AdamW, in proportion to it for SGD."""
    if optimizer == "adamw":
        return float(f"{1e-3 * (batch / 256) ** 0.5:.3g}"), "1e-3 x root of batch / 256 (AdamW)"
    usual = 0.06 if method == "moco" else 0.3
    return usual * batch / 256, f"{usual:g} x batch / 256 (SGD)"


def weight_decay(optimizer: str) -> tuple[float, str]:
    return (0.05, "usual for AdamW") if optimizer == "adamw" else (5e-4, "usual for SGD")


def temperature() -> tuple[float, str]:
    """Of the clean loss."""
    return USUAL_TEMPERATURE, "MoCo v2's, and between SimCLR's 0.1 (ImageNet) and 0.5 (CIFAR-10)"


def mix_temperature(clean: float, mix: str) -> tuple[float, str]:
    """Of the mixed loss. Without mixing it has no part in anything."""
    if mix == "none":
        return USUAL_TEMPERATURE, UNUSED
    return clean, "as the other; published are 0.05 (Tiny-ImageNet) to 1 (ImageNet)"


def queue(images: int) -> tuple[int, str]:
    """MoCo's K: the largest power of two within a quarter of the images, at most 65536.

    In a longer one lie an image's own old keys, as negatives.
    """
    value = min(MOST_KEYS, max(1, _power_of_two(images / 4)))
    if value == MOST_KEYS:
        return value, "MoCo's, for ImageNet"
    return value, f"within a quarter of {images:,} images, so none meets its own old keys"


def momentum(steps: int) -> tuple[float, str]:
    """Of MoCo's key encoder: 0.99 looks back 100 steps, 0.999 a thousand."""
    if steps <= 50_000:
        return 0.99, f"{steps:,} steps are few; 0.999 would follow too slowly"
    return 0.999, f"MoCo's, for long runs; these are {steps:,} steps"


def bn_splits(batch: int) -> tuple[int, str]:
    """MoCo's virtual devices on one device.

    Small parts have noisy statistics; but one part alone would leak (models/split_batchnorm.py).
    """
    value = max((s for s in (4, 8) if batch // s >= FULL_PART), default=min(2, batch // 2))
    return value, f"parts of {batch // value} images for batch norm"


def memory_text(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def _power_of_two(most: float) -> int:
    """The largest that is not above `most`; 0 where that is below 1."""
    return 1 << (int(most).bit_length() - 1) if most >= 1 else 0
