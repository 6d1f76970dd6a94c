"""Thousands of damaged and hostile inputs; each must end well or in a sentence, and harm nothing.

    python tests/soak/fuzz.py [--examples 2000] [--seed 0] [--only KIND ...]

The kinds are those of tests/fuzzing.py. Prints a Markdown table of how many ended how; stops at the
first defect, with the smallest case that shows it.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzzing import KINDS, LEFT_OUT, SUCCESS, TOLD, Kind
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st


def outcomes_of(kind: Kind, examples: int, number: int) -> Counter[str]:
    """How `examples` cases ended. What an attempt raises is raised, with its smallest case."""
    outcomes: Counter[str] = Counter()

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        case = data.draw(kind.cases)
        folder = Path(tempfile.mkdtemp(dir=Path.cwd()))
        try:
            outcomes[kind.attempt(case, folder)] += 1
        finally:
            shutil.rmtree(folder)

    attempt()
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow's, of odd files
    columns = (SUCCESS, TOLD, LEFT_OUT)
    print(f"| input | cases | {' | '.join(columns)} | seconds |", flush=True)
    print("| --- " * (len(columns) + 3) + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name in options.only:
            began = time.monotonic()
            outcomes = outcomes_of(KINDS[name], options.examples, options.seed)
            counts = " | ".join(f"{outcomes[column]:,}" for column in columns)
            seconds = time.monotonic() - began
            print(f"| {name} | {outcomes.total():,} | {counts} | {seconds:.0f} |", flush=True)
        os.chdir("/")


if __name__ == "__main__":
    main()
