"""Is one encoder better than another? A paired test on the same test images, and its sentence.

Both encoders answer every test image, so only images that they answer differently count, as in the test
of McNemar (1947). The difference of right answers per image has a mean and a standard error; to these
Agresti and Min (2005, doi 10.1002/sim.1781) add two imaginary images, half of which each side wins and
loses, so that the interval holds for few images too. The standard error of the mean over pretraining
seeds is added to that over images. This counts what seeds and images share twice, and errs on the safe
side. The interval is Student's, with the degrees of freedom of Welch and Satterthwaite.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixco.evaluation import EVALUATIONS

Outcome = Literal["gained", "lost", "unclear", "disagree"]
MEANING = {"gained": "It paid", "lost": "It did not pay"}
ERROR = 0.05  # of a sentence: how often it may tell a difference where there is none


class Difference(NamedTuple):
    """How much more of the test images the first encoder gets right, in points of a percent."""

    points: float
    low: float
    high: float
    """The interval that holds the true difference; see `paired_difference`."""

    @property
    def outcome(self) -> Outcome:
        return "gained" if self.low > 0 else "lost" if self.high < 0 else "unclear"


@dataclass(frozen=True)
class Verdict:
    """What a comparison of two rows of the table came to."""

    outcome: Outcome
    sentence: str
    differences: dict[str, Difference]
    """By the measure, or by the share of the labels."""


def paired_difference(ours: Tensor, theirs: Tensor, error: float = ERROR) -> Difference:
    """The difference of two encoders' accuracies, with its interval.

    ours, theirs: bool [S, M], which of M test images each of S seeds gets right; S may differ.
    error: the chance that the interval misses the true difference.
    """
    images = ours.shape[1]
    each = ours.double().mean(0) - theirs.double().mean(0)  # [M], in [-1, 1]
    count = images + 2
    mean = each.sum().item() / count
    of_images = ((each.square().sum().item() + 1) / count - mean**2) / count
    terms = [(of_images, images)]
    for answers in (ours, theirs):
        if (seeds := len(answers)) > 1:
            terms.append((answers.double().mean(1).var().item() / seeds, seeds - 1))
    variance = sum(value for value, _ in terms)
    freedom = variance**2 / sum(value**2 / degrees for value, degrees in terms)
    half = quantile(error, freedom) * math.sqrt(variance)
    points = each.mean().item()
    return Difference(*(round(100 * value, 2) for value in (points, mean - half, mean + half)))


def quantile(error: float, freedom: float) -> float:
    """Student's t that |t| exceeds with probability `error`; freedom: at least 1.

    With t = sqrt(freedom) tan(angle), the angle has the density cos(angle)^(freedom - 1).
    """
    if freedom > 1000:
        return NormalDist().inv_cdf(1 - error / 2)
    angle = np.linspace(0, math.pi / 2, 20001)
    density = np.cos(angle) ** (freedom - 1)
    between = (density[1:] + density[:-1]) / 2
    tails = np.append(between[::-1].cumsum()[::-1], 0) / between.sum()  # falls from 1 to 0
    return math.sqrt(freedom) * math.tan(np.interp(error, tails[::-1], angle[::-1]))


def judge(
    name: str,
    against: str,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    *,
    paid: bool = True,
    remedy: str = "",
) -> Verdict:
    """Did `name` gain over `against`? By all measures together: kNN and the linear probe.

    ours, theirs: by the measure, a key of EVALUATIONS, which answers are right: bool [S, M]. Each
        measure is tested at ERROR divided by their number (Bonferroni), so that all of them together
        keep to ERROR.
    paid: whether the sentence begins with what it means for the pretraining. remedy: what a loss means,
        "the starting weights are the better choice".

    gained: a measure gained and none lost; lost: the other way round; disagree: one of each; unclear:
    all intervals hold zero.
    """
    error = ERROR / len(ours)
    found = {kind: paired_difference(ours[kind], theirs[kind], error) for kind in ours}
    images = next(iter(ours.values())).shape[1]
    by = {
        outcome: [kind for kind in found if found[kind].outcome == outcome]
        for outcome in ("gained", "lost", "unclear")
    }
    on = f"on {images:,} test images"
    doubt = f"; by {_titles(by['unclear'])} it is too close to tell" if by["unclear"] else ""
    gained, lost = (_listed(found, by[outcome]) for outcome in ("gained", "lost"))
    if gained and lost:
        outcome: Outcome = "disagree"
        sentence = (
            f"The measures disagree {on}: {name} gained {gained} over {against}, and lost {lost}. "
            "Choose by the use: kNN stands for searching, the linear probe for a classifier."
        )
    elif gained:
        outcome = "gained"
        sentence = f"{name} gained {gained} over {against}, {on}{doubt}."
    elif lost:
        outcome = "lost"
        sentence = f"{name} lost {lost} to {against}, {on}{doubt}" + (
            f"; {remedy}." if remedy else "."
        )
    else:
        outcome = "unclear"
        both = _listed(found, list(found))
        sentence = f"Too close to tell {on}: {name} against {against}, {both}."
    if paid and outcome in MEANING:
        sentence = f"{MEANING[outcome]}: {sentence}"
    return Verdict(outcome, sentence, found)


def judge_labels(name: str, ours: Mapping[str, Tensor], scratch: Mapping[str, Tensor]) -> Verdict:
    """A linear probe of `name` against the same network trained from scratch, at each share of labels.

    ours, scratch: by the share, "100%", which answers are right: bool [S, M]. As in `judge`, each share
    is tested at ERROR divided by their number.
    """
    error = ERROR / len(ours)
    found = {share: paired_difference(ours[share], scratch[share], error) for share in ours}
    words = {
        "gained": "{points:.1f} points better",
        "lost": "{points:.1f} points worse",
        "unclear": "too close to tell ({interval})",
    }
    parts = [
        f"with {'all of them' if share == '100%' else share} it is "
        + words[value.outcome].format(points=abs(value.points), interval=_interval(value))
        for share, value in found.items()
    ]
    told = {value.outcome for value in found.values()} - {"unclear"}
    outcome: Outcome = "disagree" if len(told) > 1 else next(iter(told), "unclear")
    sentence = (
        f"A linear classifier on {name}, against the same network trained from scratch with the "
        f"labels: {'; '.join(parts)}."
    )
    return Verdict(outcome, sentence, found)


def _listed(found: Mapping[str, Difference], kinds: Sequence[str]) -> str:
    """ "3.2 points by kNN (1.1 to 5.3) and ..."; with a sign where the interval holds zero."""
    return " and ".join(
        f"{_points(found[kind])} points by {_titles([kind])} ({_interval(found[kind])})"
        for kind in kinds
    )


def _points(value: Difference) -> str:
    return f"{value.points:+.1f}" if value.outcome == "unclear" else f"{abs(value.points):.1f}"


def _interval(value: Difference) -> str:
    low, high = (value.low, value.high) if value.outcome != "lost" else (-value.high, -value.low)
    return f"{low:.1f} to {high:.1f}"


def _titles(kinds: Sequence[str]) -> str:
    return " and ".join(kind if kind == "kNN" else f"the {kind}" for kind in map(_title, kinds))


def _title(kind: str) -> str:
    return EVALUATIONS[kind].title


def packed(right: Tensor) -> str:
    """Right answers, bool [M], as text: hexadecimal, for compare.json."""
    return np.packbits(right.numpy()).tobytes().hex()


def unpacked(text: str, images: int) -> Tensor:
    """bool [M], from what `packed` made. Raises ValueError for another number of images."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))
    if not images <= len(bits) < images + 8:
        raise ValueError(f"answers of {len(bits)} images, expected {images}")
    return torch.from_numpy(bits[:images].astype(bool))
