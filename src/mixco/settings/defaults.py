"""The rules that choose unset settings, from the images, the method and the device.

Pure functions of plain values -> (value, reason in a few words); docs/doctor.md has them as a table.
A base's own settings have their rules in methods/options.py.
"""

from mixco.methods.options import FULL_PART, UNTOLD, largest_power_of_two

SIZES = (32, 64, 96, 128)
SLOW_SIZE = 64  # the largest that is chosen where there is no GPU
USUAL_BATCH = 256
FEWEST_STEPS_AN_EPOCH = 8
FEWEST = 2 * FULL_PART
"""Images of a batch: two parts at least, or MoCo would leak."""
STEPS = {"cuda": 20_000, "mps": 20_000, "cpu": 2_500}
EPOCHS = (100, 400)
EPOCHS_FROM_WEIGHTS = (10, 40)
RATE_FROM_WEIGHTS = 0.4
"""Of the rate from scratch. Chosen on held-out training images: experiments/choose_from_weights.txt."""
ARCH = "resnet18"

# What a training step holds at its peak, in parts of the outputs of all layers.
HELD = 1.3


def size(height: int, width: int, device: str, weights: int | None = None) -> tuple[int, str]:
    """The side of the encoder's input, from the median image.

    At most its shorter side, since enlarged images hold nothing more; at most what the device has time
    for, since a forward pass costs about the square of the size.

    weights: the side that the weights to start from are for; None for random ones. They do best near
    it, also on images that must be enlarged (docs/from-weights.md).
    """
    limit = SLOW_SIZE if device == "cpu" else SIZES[-1]
    if weights is not None:
        limit = SIZES[-2] if device == "cpu" else SIZES[-1]
        if weights <= limit:
            return weights, "as the weights to start from"
        return limit, f"the weights are for {weights} px, but more than {limit} takes long"
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
    """Images of a step: 256, as published for MoCo; fewer for few images or little memory.

    image_bytes: bytes that a step holds for each image of its batch. memory: bytes of the device. None
    means unknown.
    """
    of_data = max(largest_power_of_two(images / FEWEST_STEPS_AN_EPOCH), FEWEST)
    of_data = min(of_data, largest_power_of_two(images))
    # Half of the memory: the images, the optimiser and other programs want some too.
    of_memory = (
        largest_power_of_two(memory / 2 / image_bytes) if image_bytes and memory else USUAL_BATCH
    )
    value = max(2, min(USUAL_BATCH, of_data, of_memory))
    if value == USUAL_BATCH:
        return value, "MoCo's, for ImageNet"
    if of_memory < of_data:
        return value, f"more would not fit into half of the {memory_text(memory or 0)} of memory"
    if images < FEWEST * FEWEST_STEPS_AN_EPOCH:
        return value, f"there are only {images:,} images"
    return value, f"so {images:,} images make at least {FEWEST_STEPS_AN_EPOCH} steps an epoch"


def bn_statistics(init: str | None, batch_norm: bool) -> tuple[str, str]:
    """Whose statistics batch norms normalise by.

    Those of published weights are of a million images. With those of a few thousand other images the
    weights do worse before they have learned anything (docs/from-weights.md).
    """
    if init is None or not batch_norm:
        return "batch", UNTOLD
    return "frozen", "those of the weights; they stay as they are"


def epochs(images: int, batch: int, device: str, init: str | None) -> tuple[int, str]:
    """As many as make the steps that an encoder needs; at least 100, as published, at most 400.

    init: the weights to start from, which need a tenth of the steps; None for random ones.
    """
    a_epoch = max(1, images // batch)
    if init is not None:
        least, most = EPOCHS_FROM_WEIGHTS
        value = min(max(-(-STEPS[device] // (10 * a_epoch)), least), most)
        return value, f"from weights; they make {value * a_epoch:,} steps"
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


def lr(
    optimizer: str, adamw_lr: float, sgd_lr: float, batch: int, init: str | None
) -> tuple[float, str]:
    """The peak rate: it grows with the root of the batch for AdamW, in proportion to it for SGD.

    adamw_lr, sgd_lr: the base's usual rates for a batch of 256. init: the weights to start from; None
    for random ones.
    """
    part = 1.0 if init is None else RATE_FROM_WEIGHTS
    note = "" if init is None else f"{part:g} of that from scratch, "
    if optimizer == "adamw":
        value = float(f"{part * adamw_lr * (batch / 256) ** 0.5:.3g}")
        return value, f"{note}{adamw_lr:g} x root of batch / 256 (AdamW)"
    return part * sgd_lr * batch / 256, f"{note}{sgd_lr:g} x batch / 256 (SGD)"


def weight_decay(optimizer: str) -> tuple[float, str]:
    return (0.05, "usual for AdamW") if optimizer == "adamw" else (5e-4, "usual for SGD")


def head(usual_head: str) -> tuple[str, str]:
    """The projection head of the method's paper. usual_head: the base's."""
    return usual_head, UNTOLD if usual_head == "mlp" else "the method's own"


def dim(usual_dim: int) -> tuple[int, str]:
    """Dimensions of the projection, as in the method's paper. usual_dim: the base's."""
    return usual_dim, UNTOLD if usual_dim == 128 else "the method's own"


def memory_text(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
