"""Kill workers of a group under torchrun at random moments; the group must come back and end the same.

    make soak    (python tests/soak/restarts.py [--kills 20] [--seed 0] [--out FILE.json])

Two processes on one CPU, MoCo and SimCLR with MixCo, a checkpoint after each step. One of the two, drawn
anew each time, gets SIGKILL after a random time; torchrun ends the other and starts both again, on and
on. When the run is through, all it ends with is compared with the same run unbroken, bit for bit.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from kills import LATEST, finish
from run_states import assert_equal, final_state
from sample_images import unpack_sample

METHODS = ("moco", "simclr")


def start(photos: Path, out: Path, method: str) -> subprocess.Popen[str]:
    """torchrun and two processes: 96 images, 6 epochs of 6 steps; what it says goes beside the run."""
    launcher = ["--standalone", "--nproc-per-node=2", "--max-restarts=1000"]
    with out.with_name(f"{out.name}.log").open("w") as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", *launcher),
                *("-m", "mixco", "pretrain", "--data", str(photos), "--out", str(out)),
                *("--method", method, "--mix", "mixco", "--size", "32", "--stem", "conv3s2"),
                *("--epochs", "6", "--batch-size", "16", "--checkpoint-steps", "1"),
                *("--cache", str(out.with_name(f"{out.name}-cache")), "--device", "cpu"),
                *("--knn-every", "2", *(("--queue", "40") if method == "moco" else ())),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Those that torchrun has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in children.read_text().split()] if children.exists() else []


def kill_until_through(process: subprocess.Popen[str], longest: float, draw: random.Random) -> int:
    """Kill one of each group until a group ends by itself; the number of kills."""
    gone: set[int] = set()
    kills = 0
    while True:
        try:
            process.wait(timeout=draw.uniform(0, longest))
            return kills
        except subprocess.TimeoutExpired:
            group = workers(process)
        if len(group) == 2 and not gone & set(group):
            os.kill(draw.choice(group), signal.SIGKILL)
            gone |= set(group)
            kills += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    rows: list[dict[str, object]] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photos = unpack_sample(folder / "photos", train=32, test=1, classes=3)
        for method in METHODS:
            whole = folder / f"whole-{method}"
            started = time.monotonic()
            assert start(photos, whole, method).wait() == 0
            longest = LATEST * (time.monotonic() - started)
            kills = runs = 0
            while kills < options.kills / len(METHODS):
                out = folder / f"killed-{method}"
                process = start(photos, out, method)
                kills += kill_until_through(process, longest, draw)
                runs += 1
                log = out.with_name(f"{out.name}.log").read_text()
                if process.returncode:
                    raise RuntimeError(
                        f"a group could not go on after kill {kills}:\n{log[-4000:]}"
                    )
                assert_equal(final_state(out), final_state(whole))
                for left in (out, out.with_name(f"{out.name}-cache")):
                    shutil.rmtree(left)
            rows.append({"run": f"{method}+mixco, 2 processes", "runs": runs, "kills": kills})
            print(f"{rows[-1]}: all bit-equal", flush=True)
    finish(rows, options.seed, time.monotonic() - began, options.out)


if __name__ == "__main__":
    main()
