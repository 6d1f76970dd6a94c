"""What may spoil a run, each with its remedy: shown when a run starts, and by `mixco doctor` before.

Pure functions of plain values, as in defaults.py. None means unknown: no warning. A base's own warnings
stand beside the base, in methods/options.py.
"""

from collections.abc import Iterator, Sequence

from mixco.methods import METHODS, NO_MIXER
from mixco.methods.options import Advice
from mixco.settings.config import Settings
from mixco.settings.defaults import SIZES

FEW_IMAGES = 1000
FEW_STEPS = 1000
FLAT = 0.01  # a standard deviation of pixels in [0, 1]; photographs have 0.1 to 0.3
LOW_TEMPERATURE = 0.04
"""In bfloat16 similarities err by some 0.004, a tenth of this."""
MOST_SMALLER = 0.25
MOST_COPIES = 0.01
MOST_NEAR_COPIES = 0.05
LONG_SIDES = 4
MOST_LONG = 0.05
MOST_DATA_WAIT = 0.2
LONG_RUN = 48 * 3600


def of_settings(
    settings: Settings, images: int, *, bfloat16: bool, spread: float | None = None
) -> Iterator[Advice]:
    """What may spoil a run, as far as its settings tell.

    images: how many are trained on. spread: the largest standard deviation of a channel of theirs.
    """
    method, optimisation = settings.method, settings.optimisation
    batch, epochs = optimisation.batch_size, optimisation.epochs
    steps = images // batch * epochs
    random = settings.model.init is None
    if random and images < FEW_IMAGES:
        yield Advice(
            f"{images:,} images are very few: an encoder learns little from less than {FEW_IMAGES:,}",
            "add more, or start from published weights: --init timm",
        )
    if spread is not None and spread < FLAT:
        yield Advice(
            f"the images are all but of one colour: their pixels deviate by {spread:.2g} from the mean, "
            "where 1 is white",
            "look whether their numbers fill the range of their type (docs/your-data.md)",
        )
    base = METHODS[method.method]
    yield from base.advise(method, images, batch)
    plain = ("linear", "mlp")
    if settings.model.head in plain and base.head not in plain:
        yield Advice(
            f"--head {settings.model.head} has no batch norm, and {base.title} often collapses without",
            "leave --head out",
        )
    own = vars(method)
    temperatures = {"temperature": own["temperature"]}
    if method.mix != NO_MIXER:
        temperatures["mix-temperature"] = own["mix_temperature"]
    for option, value in temperatures.items():
        if bfloat16 and value is not None and value < LOW_TEMPERATURE:
            yield Advice(
                f"--{option} {value:g} is low for bfloat16, in which similarities err by some 0.004",
                f"give --precision float32, or --{option} {LOW_TEMPERATURE} or more",
            )
    if random and steps < FEW_STEPS and epochs < 100:
        needed = -(-FEW_STEPS // max(1, images // batch))
        yield Advice(
            f"{steps:,} steps are few: the loss falls, but little is learned",
            f"give --epochs {needed} or more",
        )


def of_sizes(*, smaller: float, long: float, size: int, packed: bool) -> Iterator[Advice]:
    """smaller: share of the images with a side below `size`; long: those of `LONG_SIDES`:1 or more."""
    if smaller > MOST_SMALLER:
        lower = max((s for s in SIZES if s < size), default=None)
        yield Advice(
            f"{smaller:.0%} of the images are smaller than --size {size} and are enlarged",
            f"give --size {lower}" if lower else "larger images would hold more",
        )
    if long > MOST_LONG:
        yield Advice(
            f"{long:.0%} of the images are {LONG_SIDES} times as long as wide, or more: "
            + (
                "packed, little is left of their shorter side"
                if packed
                else "crops show parts only"
            ),
            "give --loading streamed" if packed else "cut them into parts",
        )


def of_files(
    *,
    unreadable: float,
    max_unreadable: float,
    copies: float,
    near_copies: float,
    test_in_train: int,
    listed: str,
) -> Iterator[Advice]:
    """Shares of the images; test_in_train: a number; listed: where a person finds which they are."""
    if unreadable > max_unreadable:
        yield Advice(
            f"{unreadable:.1%} of the files cannot be read, and a run ends at more than "
            f"{max_unreadable:.3g}",
            f"mend or remove them, or give a larger --max-unreadable; {listed}",
        )
    elif unreadable > 0:
        yield Advice("some files cannot be read and will be left out", f"mend them; {listed}")
    if copies > MOST_COPIES:
        yield Advice(
            f"{copies:.1%} of the files are copies of others: an image meets itself as a negative",
            f"remove them; {listed}",
        )
    if near_copies > MOST_NEAR_COPIES:
        yield Advice(
            f"{near_copies:.1%} of the images look like another (a series, frames of a film, edits): "
            "what should be alike is pushed apart",
            f"keep one of each; {listed}",
        )
    if test_in_train:
        yield Advice(
            f"{test_in_train:,} test images are exact copies of train images: an evaluation takes them "
            "for new",
            f"remove them from one of the two splits; {listed}",
        )


def of_trial(
    *,
    batch: int,
    needed: float | None,
    memory: int | None,
    seconds: float | None,
    data_wait: float | None,
    streamed: bool,
) -> Iterator[Advice]:
    """needed, memory: of a step and of the device, in bytes; seconds: of the whole run."""
    if needed and memory and needed > 0.9 * memory:
        yield Advice(
            f"a step needs {needed / 2**30:.1f} GiB, and there are {memory / 2**30:.1f} GiB",
            f"give --batch-size {batch // 2}, or a smaller --size"
            if batch >= 4
            else "give a smaller --size or --arch",
        )
    if seconds and seconds > LONG_RUN:
        yield Advice(
            f"on this machine it takes {seconds / 86400:,.0f} days",
            "give fewer --epochs, a smaller --size or --arch, or a GPU",
        )
    if streamed and data_wait and data_wait > MOST_DATA_WAIT:
        yield Advice(
            f"{data_wait:.0%} of the time the device waits for images",
            "give more --workers, or --loading packed where the disk has room",
        )


def of_disk(*, needed: int, free: int, where: str, option: str) -> Iterator[Advice]:
    if needed > free:
        yield Advice(
            f"{where} has {free / 2**30:.1f} GiB free, but {needed / 2**30:.1f} GiB are needed",
            f"free some, or give {option}",
        )


def as_dicts(warnings: Sequence[Advice]) -> list[dict[str, str]]:
    return [warning._asdict() for warning in warnings]
