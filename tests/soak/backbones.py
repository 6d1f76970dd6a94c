"""Does every family of timm pass, or end in a true sentence?

    python tests/soak/backbones.py [--size 64] [NAME ...]

A small model of each module of timm, or each model named, is built, takes a training step of SimCLR
with MixCo, is saved and loaded again, and must then give the same features, bit for bit. A model that
refuses the size must name one that it takes, and pass with that; one that refuses all must say so.
The exit code is 1 where anything else happens.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import timm
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from families import tried

LARGEST = 100e6  # weights; the larger models have smaller relatives in other modules
SMALL = (
    *("atto", "femto", "pico", "nano", "xxs", "xx_small", "x_small", "050", "035", "tiny", "_t"),
    *("mini", "small", "_s", "002", "004", "18", "b0", "a0", "s0", "m0"),
)


def small_ones() -> Iterator[str]:
    """A small model of each module, as far as its name tells; not those above LARGEST weights."""
    for module in timm.list_modules():
        names = [n for n in timm.list_models(module=module) if not n.startswith("test_")]
        small = next((some for word in SMALL if (some := [n for n in names if word in n])), names)
        if small and weights(name := min(small, key=len)) <= LARGEST:
            yield name


def weights(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name).parameters())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    failed = []
    for arch in given.names or small_ones():
        began = time.monotonic()
        good, text = tried(arch, given.size)
        print(
            f"{'ok' if good else 'FAILED':6} {arch:32} {time.monotonic() - began:5.1f} s  {text}",
            flush=True,
        )
        failed += [] if good else [arch]
    print(f"failed: {', '.join(failed)}" if failed else "all passed, or were refused truly")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
