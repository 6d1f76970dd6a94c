"""What spoils a run, each with its remedy: told when a run starts, and by `mixco doctor` before.

Pure functions of plain values, as settings/defaults.py; what is None is not known and warned of by none.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mixco.settings.defaults import FULL_PART, SIZES

MOST_OF_QUEUE = 0.5
"""Share of the images that a queue may be as long as."""
FEW_IMAGES = 1000
FEW_STEPS = 1000
FEW_NEGATIVES = 64
LOW_TEMPERATURE = 0.04
"""In bfloat16 similarities err by some 0.004, a tenth of this."""
MOST_SMALLER = 0.25
MOST_UNREADABLE = 0.01
MOST_COPIES = 0.01
MOST_NEAR_COPIES = 0.05
LONG_SIDES = 4
MOST_LONG = 0.05
MOST_WAITING = 0.2
LONG_RUN = 48 * 3600


class Caution(NamedTuple):
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


def of_settings(
    *,
    images: int,
    method: str,
    mix: str,
    batch: int,
    epochs: int,
    queue: int | None,
    bn_splits: int | None,
    temperature: float,
    mix_temperature: float,
    bfloat16: bool,
) -> Iterator[Caution]:
    """Of a resolved config, for `images` to train on."""
    steps = images // batch * epochs
    if images < FEW_IMAGES:
        yield Caution(
            f"{images:,} images are very few: an encoder learns little from less than {FEW_IMAGES:,}",
            "add more, or start from published weights: mixco finetune --checkpoint FILE",
        )
    if method == "moco" and queue and queue > images * MOST_OF_QUEUE:
        yield Caution(
            f"the queue of {queue:,} keys is more than half of the {images:,} images: an image "
            "meets its own old keys as negatives",
            f"--queue {max(1, images // 4)} is safer",
        )
    if method == "moco" and bn_splits and bn_splits > 1 and batch // bn_splits < FULL_PART:
        yield Caution(
            f"batch norm sees {batch // bn_splits} images at a time, whose statistics are noisy",
            f"give --batch-size {2 * FULL_PART} or more"
            if bn_splits == 2
            else f"give --bn-splits {max(2, batch // FULL_PART)}",
        )
    if method == "simclr" and batch < FEW_NEGATIVES <= images:
        yield Caution(
            f"SimCLR's only negatives are the {batch} images of a batch",
            f"give --batch-size {FEW_NEGATIVES} or more, or --method moco, which has a queue",
        )
    for option, value in (("temperature", temperature), ("mix-temperature", mix_temperature)):
        if bfloat16 and value < LOW_TEMPERATURE and (option == "temperature" or mix != "none"):
            yield Caution(
                f"--{option} {value:g} is low for bfloat16, in which similarities err by some 0.004",
                f"give --precision float32, or --{option} {LOW_TEMPERATURE} or more",
            )
    if steps < FEW_STEPS and epochs < 100:
        needed = -(-FEW_STEPS // max(1, images // batch))
        yield Caution(
            f"{steps:,} steps are few: the loss falls, but little is learned",
            f"give --epochs {needed} or more",
        )


def of_sizes(*, smaller: float, long: float, size: int, packed: bool) -> Iterator[Caution]:
    """smaller: share of the images with a side below `size`; long: those of `LONG_SIDES`:1 or more."""
    if smaller > MOST_SMALLER:
        lower = max((s for s in SIZES if s < size), default=None)
        yield Caution(
            f"{smaller:.0%} of the images are smaller than --size {size} and are enlarged",
            f"give --size {lower}" if lower else "larger images would hold more",
        )
    if long > MOST_LONG:
        yield Caution(
            f"{long:.0%} of the images are {LONG_SIDES} times as long as wide, or more: "
            + (
                "packed, little is left of their shorter side"
                if packed
                else "crops show parts only"
            ),
            "give --loading streamed" if packed else "cut them into pieces",
        )


def of_files(
    *, unreadable: float, copies: float, near_copies: float, listed: str
) -> Iterator[Caution]:
    """Shares of the images; listed: where a person finds which they are."""
    if unreadable > MOST_UNREADABLE:
        yield Caution(
            f"{unreadable:.1%} of the files cannot be read, and a run stops at {MOST_UNREADABLE:.0%}",
            f"mend or remove them; {listed}",
        )
    elif unreadable > 0:
        yield Caution("some files cannot be read and will be left out", f"mend them; {listed}")
    if copies > MOST_COPIES:
        yield Caution(
            f"{copies:.1%} of the files are copies of others: an image meets itself as a negative",
            f"remove them; {listed}",
        )
    if near_copies > MOST_NEAR_COPIES:
        yield Caution(
            f"{near_copies:.1%} of the images look like another (a series, frames of a film, edits): "
            "what should be alike is pushed apart",
            f"keep one of each; {listed}",
        )


def of_trial(
    *,
    batch: int,
    needed: float | None,
    memory: int | None,
    seconds: float | None,
    waiting: float | None,
    streamed: bool,
) -> Iterator[Caution]:
    """needed, memory: of a step and of the device, in bytes; seconds: of the whole run."""
    if needed and memory and needed > 0.9 * memory:
        yield Caution(
            f"a step needs {needed / 2**30:.1f} GiB, and there are {memory / 2**30:.1f} GiB",
            f"give --batch-size {max(2, batch // 2)}, or a smaller --size",
        )
    if seconds and seconds > LONG_RUN:
        yield Caution(
            f"on this machine it takes {seconds / 86400:,.0f} days",
            "give fewer --epochs, a smaller --size or --arch, or a GPU",
        )
    if streamed and waiting and waiting > MOST_WAITING:
        yield Caution(
            f"{waiting:.0%} of the time the device waits for images",
            "give more --workers, or --loading packed where the disk has room",
        )


def of_disk(*, needed: int, free: int, where: str, option: str) -> Iterator[Caution]:
    if needed > free:
        yield Caution(
            f"{where} has {free / 2**30:.1f} GiB free, but {needed / 2**30:.1f} GiB are needed",
            f"free some, or give {option}",
        )


def as_dicts(cautions: Sequence[Caution]) -> list[dict[str, str]]:
    return [caution._asdict() for caution in cautions]
