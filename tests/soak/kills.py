"""Kill real runs at random moments, again and again; each must end as one that was never stopped.

    make soak    (python tests/soak/kills.py [--kills 100] [--seed 0] [--only 0 1] [--out FILE.json])

MoCo and SimCLR, with and without MixCo, packed and streamed, a checkpoint after each step or each
fourth. A process gets SIGKILL after a random time and is started again by the same command; as it gets
on, kills come anywhere from the first import to the last picture. When a run is through, all it ends
with is compared with the same run unbroken: weights, momentum copy, queue, optimiser, metrics, bit for
bit.
"""

import argparse
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from run_states import assert_equal, final_state
from sample_images import unpack_sample

SETTINGS = [
    ("moco", "mixco", "packed", 1),
    ("simclr", "mixco", "packed", 4),
    ("moco", "none", "packed", 4),
    ("simclr", "none", "packed", 1),
    ("moco", "mixco", "streamed", 4),
]
LATEST = 0.7  # a kill comes within so much of what an unbroken run takes


def command(photos: Path, out: Path, method: str, mix: str, loading: str, each: int) -> list[str]:
    """`mixco pretrain` on 96 images: 6 epochs of 6 steps."""
    return [
        *(sys.executable, "-m", "mixco", "pretrain", "--data", str(photos), "--out", str(out)),
        *("--method", method, "--mix", mix, "--size", "32", "--stem", "conv3s2", "--device", "cpu"),
        *("--epochs", "6", "--batch-size", "16", "--loading", loading, "--workers", "1"),
        *("--cache", str(out.with_name(f"{out.name}-cache")), "--checkpoint-steps", str(each)),
        *("--knn-every", "2", "--keep-every", "3"),
        *(("--queue", "40") if method == "moco" else ()),
    ]


def kill_until_through(
    arguments: list[str], within: float, draw: random.Random
) -> tuple[int, float]:
    """Start, kill, start again, until a process ends by itself; the number of kills, the seconds."""
    began = time.monotonic()
    for kills in itertools.count():
        process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
        try:
            said = process.communicate(timeout=draw.uniform(0, within))[1]
        except subprocess.TimeoutExpired:
            process.kill()
            said = process.communicate()[1]
        if process.returncode == 0:
            return kills, time.monotonic() - began
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"a run that was killed {kills} times could not go on:\n{said}")
    raise AssertionError


def finish(rows: list[dict[str, object]], seed: int, seconds: float, out: Path | None) -> None:
    """Say how many kills there were, and write the rows."""
    kills = sum(int(str(row["kills"])) for row in rows)
    print(f"{kills} kills, none lost, all runs bit-equal; {seconds:.0f} s")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        figures = {"kills": kills, "lost": 0, "seed": seed, "rows": rows}
        out.write_text(json.dumps(figures, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="of SETTINGS", default=None)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    rows: list[dict[str, object]] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photos = unpack_sample(folder / "photos", train=32, test=1, classes=3)
        chosen = range(len(SETTINGS)) if options.only is None else options.only
        for number in chosen:
            settings = SETTINGS[number]
            whole = folder / f"whole-{number}"
            started = time.monotonic()
            subprocess.run(command(photos, whole, *settings), check=True, stderr=subprocess.DEVNULL)
            whole_takes = time.monotonic() - started
            kills = runs = 0
            while kills < options.kills / len(chosen):
                out = folder / f"killed-{number}-{runs}"
                found, seconds = kill_until_through(
                    command(photos, out, *settings), LATEST * whole_takes, draw
                )
                if not found:  # a machine that was busy at first must not make kills rare
                    whole_takes = min(whole_takes, seconds)
                kills += found
                runs += 1
                assert_equal(final_state(out), final_state(whole))
                encoders = [(run / "encoder.safetensors").read_bytes() for run in (out, whole)]
                assert encoders[0] == encoders[1]
                for left in (out, out.with_name(f"{out.name}-cache")):  # some 600 MB a run
                    shutil.rmtree(left)
            method, mix, loading, each = settings
            name = method if mix == "none" else f"{method}+{mix}"
            rows.append(
                {
                    "run": f"{name}, {loading}",
                    "checkpoint_steps": each,
                    "runs": runs,
                    "kills": kills,
                }
            )
            print(f"{rows[-1]}: all bit-equal", flush=True)
    finish(rows, options.seed, time.monotonic() - began, options.out)


if __name__ == "__main__":
    main()
