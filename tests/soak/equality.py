"""How near several processes come to one: the largest relative differences, docs/reliability.md.

    make soak    (python tests/soak/equality.py [--processes 2 4])

Three steps in float64 on real images, even and uneven parts, without batch norm; and SimCLR with batch
norms over all processes. A difference is relative to the largest number of its tensor; state is weights,
momentum copy, queue and its pointer. tests/ddp/test_equality.py holds them below 1e-9.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from distributed_steps import SETTINGS, all_settings, synchronised
from several_processes import in_processes

KINDS = ("losses", "gradients", "state")


def difference(found: Any, wanted: Any) -> float:
    """The largest of all tensors and numbers in them."""
    if isinstance(wanted, dict):
        return max((difference(found[key], wanted[key]) for key in wanted), default=0.0)
    if isinstance(wanted, list | tuple):
        return max((difference(*pair) for pair in zip(found, wanted, strict=True)), default=0.0)
    if isinstance(wanted, float):
        found, wanted = (torch.tensor(x, dtype=torch.float64) for x in (found, wanted))
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(found, wanted) else float("inf")
    largest = wanted.abs().max().clamp(min=torch.finfo(wanted.dtype).tiny)
    return float((found - wanted).abs().max() / largest)


def show(name: str, together: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    worst = [max(difference(each[kind], alone[kind]) for each in together) for kind in KINDS]
    print(f"| {name} | {' | '.join(f'{number:.0e}' for number in worst)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    options = parser.parse_args()
    print(f"| processes, method, batch | {' | '.join(KINDS)} |")
    print("| --- | --- | --- | --- |")
    alone = all_settings()
    for count in options.processes:
        together = in_processes(count, all_settings)
        for setting in SETTINGS:
            method, mix, batch = setting
            name = method if mix == "none" else f"{method} + {mix}"
            show(f"{count}, {name}, {batch}", [each[setting] for each in together], alone[setting])
    for mix in ("none", "mixco"):
        name = "simclr" if mix == "none" else f"simclr + {mix}"
        together = in_processes(2, synchronised, "simclr", mix)
        show(f"2, {name}, 16, batch norm over all", together, synchronised("simclr", mix))


if __name__ == "__main__":
    main()
