"""Does MixCo pay? Every pair of runs with and without it that differ in nothing else, from the logs.

    python experiments/pays.py          # writes the table into docs/does-mixing-pay.md

A difference is that of two runs with the same seed. Its interval of 95 % is Student's, over the seeds:
it does not hold the error of the test images, which all runs of a row share.
"""

import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
LOGS = HERE / "logs"
PAGE = HERE.parent / "docs" / "does-mixing-pay.md"
BEGIN, END = "<!-- made by experiments/pays.py -->", "<!-- end -->"
KINDS = ("knn", "linear")
# Of Student's distribution, by the degrees of freedom: the quantile of 97.5 %.
STUDENT = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}

Runs = dict[str, tuple[float, float]]  # seed -> kNN and linear probe, top-1 in %


class Pair(NamedTuple):
    """A base without and with MixCo."""

    what: str
    base: str
    steps: str
    time: str
    """How much longer MixCo took; a column without any entry is left out of its table."""
    without: Runs
    mixed: Runs


def read(name: str) -> Any:
    path = LOGS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def top1(results: dict[str, Any]) -> tuple[float, float]:
    knn, linear = (
        each["top1"] if isinstance(each := results[kind], dict) else each for kind in KINDS
    )
    return knn, linear


def by_seed(runs: dict[str, dict[str, Any]]) -> Runs:
    return {seed.removeprefix("seed "): top1(results) for seed, results in runs.items()}


def of_demo(log: str, method: str) -> Runs:
    return by_seed({seed: found[method] for seed, found in read(log).items()})


def of_list(runs: list[dict[str, Any]]) -> Runs:
    return {str(seed): top1(results) for seed, results in enumerate(runs)}


def of_rows(rows: list[dict[str, Any]], chosen: Callable[[dict[str, Any]], bool]) -> Runs:
    return {str(row["seed"]): top1(row) for row in rows if chosen(row)}


def pairs() -> Iterator[Pair]:
    """At equal epochs."""
    small, short = "the sample, ResNet-18 at 32 px", "CIFAR-10, 10,000 images, ResNet-18"
    yield Pair(
        "the sample, ResNet-10 (the demo)",
        "SimCLR",
        "288",
        "1.2",
        of_demo("demo", "simclr"),
        of_demo("demo", "simclr+mixco"),
    )
    yield Pair(
        small,
        "SimCLR",
        "288",
        "1.4",
        of_demo("sample", "simclr"),
        of_demo("sample", "simclr+mixco"),
    )
    family, cifar = read("family_sample"), read("family_cifar10")
    yield Pair(small, "MoCo", "288", "1.1", by_seed(family["moco"]), by_seed(family["moco+mixco"]))
    first = read("cifar10_10k")["rows"]
    for base, title, time in (("simclr", "SimCLR", "1.5"), ("moco", "MoCo", "1.4")):
        of_first = tuple(
            {
                str(r["seed"]): (r["knn_top1"], r["linear_top1"])
                for r in first
                if r["method"] == name
            }
            for name in (base, f"{base}+mixco")
        )
        yield Pair(f"{short} (Intel)", title, "702", time, *of_first)
        if f"{base}+mixco" in cifar:
            runs = by_seed(cifar[base]), by_seed(cifar[f"{base}+mixco"])
            yield Pair(f"{short} (AMD)", title, "702", time, *runs)
    for name, what in (("sample", "the sample"), ("cifar10", "CIFAR-10, 2,000 images")):
        weights = read(f"from_weights_{name}")
        steps = {"sample": "120", "cifar10": "150"}[name]
        for base in ("SimCLR", "MoCo"):
            runs = (
                of_list(weights[f"from ImageNet, {base}"]),
                of_list(weights[f"from ImageNet, {base} + MixCo"]),
            )
            yield Pair(f"{what}, from ImageNet weights", base, steps, "1.5", *runs)
    rows = read("distil")["rows"]
    yield Pair(
        "the sample, MobileNetV3-small taught by EfficientNet",
        "distil",
        "720",
        "–",
        of_rows(rows, lambda row: row["method"] == "distil"),
        of_rows(rows, lambda row: row["method"] == "distil + mixco"),
    )


def at_equal_passes() -> Iterator[Pair]:
    """The base alone has the passes that it has with MixCo."""
    if sample := read("equal_time_sample"):
        yield Pair(
            "the sample, ResNet-10; 36 epochs without, 24 with MixCo (the demo)",
            "SimCLR",
            "",
            "",
            by_seed(sample["simclr"]),
            of_demo("demo", "simclr+mixco"),
        )
    longer, cifar = read("equal_time_cifar10"), read("family_cifar10")
    for base, title, epochs in (("simclr", "SimCLR", 14), ("moco", "MoCo", 13)):
        if base in longer and f"{base}+mixco" in cifar:
            yield Pair(
                f"CIFAR-10, 10,000 images, ResNet-18; {epochs} epochs without, 9 with MixCo",
                title,
                "",
                "",
                by_seed(longer[base]),
                by_seed(cifar[f"{base}+mixco"]),
            )
    longer, weights = read("equal_time_from_weights"), read("from_weights_cifar10_amd")
    for base, title, epochs in (("simclr", "SimCLR", 15), ("moco", "MoCo", 14)):
        if base in longer and (mixed := weights.get(f"from ImageNet, {title} + MixCo")):
            yield Pair(
                f"CIFAR-10, 2,000 images, from ImageNet weights; {epochs} epochs without, 10 with MixCo",
                title,
                "",
                "",
                by_seed(longer[base]),
                of_list(mixed),
            )


def difference(pair: Pair, kind: int) -> str:
    """ "+1.3 (0.2 to 2.4)" """
    values = [pair.mixed[seed][kind] - pair.without[seed][kind] for seed in seeds(pair)]
    mean = statistics.mean(values)
    if len(values) < 3:
        return f"{mean:+.1f} ({min(values):+.1f}, {max(values):+.1f})"
    half = STUDENT[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


def seeds(pair: Pair) -> list[str]:
    return sorted(pair.without.keys() & pair.mixed.keys())


def table(rows: list[Pair]) -> str:
    head = ["images and encoder", "base", "steps", "kNN, points", "probe, points", "seeds", "time"]
    body = []
    for pair in rows:
        found = [difference(pair, kind) for kind in range(len(KINDS))]
        body.append([pair.what, pair.base, pair.steps, *found, str(len(seeds(pair))), pair.time])
    told = [column for column in zip(head, *body, strict=True) if any(column[1:])]
    first, *rest = (f"| {' | '.join(cells)} |" for cells in zip(*told, strict=True))
    return "\n".join([first, f"|{' --- |' * len(told)}", *rest])


def tables() -> str:
    equal = list(at_equal_passes())
    parts = ["At equal epochs:", table([pair for pair in pairs() if len(seeds(pair)) > 1])]
    return "\n\n".join([*parts, *(["At equal passes:", table(equal)] if equal else [])])


def main() -> None:
    text = PAGE.read_text("utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}", "utf-8")


if __name__ == "__main__":
    main()
