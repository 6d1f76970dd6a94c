"""Do two commits train the same weights, bit for bit?

    python tests/soak/same_weights.py BEFORE [AFTER] [--demo]

Each commit is checked out on its own and trains MoCo and SimCLR, with and without MixCo: seed 0, the
built-in sample, three epochs. The encoders' files must hold the same bits, and the metrics the same
numbers but for times. AFTER defaults to the working tree. --demo compares the demo's table too, which
takes some three minutes a commit. The exit code is 1 where anything differs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
RUNS = [(method, mix) for method in ("moco", "simclr") for mix in ("none", "mixco")]
TIMES = {"images_per_second", "waiting_share", "data_wait"}


@contextmanager
def checked_out(commit: str | None) -> Iterator[Path]:
    """The source folder of a commit, or of the working tree."""
    if commit is None:
        yield ROOT / "src"
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "archive", commit, "src"], cwd=ROOT, check=True, capture_output=True
        )
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder) / "src"


def mixco(source: Path, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", "mixco", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")


def weights(path: Path) -> str:
    """SHA-256 of the tensors alone: the file's header may name more of the training."""
    digest = hashlib.sha256()
    for key, tensor in sorted(load_file(path).items()):
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(-1).numpy().tobytes())
    return digest.hexdigest()


def trained(commit: str | None, demo: bool) -> dict[str, object]:
    """What a commit's runs came to: {run: numbers that must not change}."""
    found: dict[str, object] = {}
    with checked_out(commit) as source, tempfile.TemporaryDirectory() as place:
        shared = ["--device", "cpu", "--cache", f"{place}/cache", "--seed", "0"]
        for method, mix in RUNS:
            out = Path(place, f"{method}-{mix}")
            options = ["--method", method, "--mix", mix, "--epochs", "3", "--knn-every", "3"]
            options += ["--precision", "bfloat16"]  # "auto" measures, and may choose otherwise
            mixco(source, "pretrain", "--data", "sample", *options, *shared, "--out", out)
            lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
            records = [json.loads(line) for line in lines]
            found[out.name] = {
                "weights": weights(out / "encoder.safetensors"),
                "metrics": [{k: v for k, v in r.items() if k not in TIMES} for r in records],
            }
            print(f"{commit or 'working tree'}: {out.name} {found[out.name]['weights'][:16]}")  # type: ignore[index]
        if demo:
            out = Path(place, "demo")
            mixco(source, "demo", *shared, "--out", out)
            results = json.loads((out / "results.json").read_text("utf-8"))
            found["demo"] = {
                name: {kind: (r[kind]["top1"], r[kind]["top5"]) for kind in ("knn", "linear")}
                for name, r in results.items()
            }
            print(f"{commit or 'working tree'}: demo {found['demo']}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("before")
    parser.add_argument("after", nargs="?")
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--keep", type=Path, help="a file that remembers what BEFORE came to")
    given = parser.parse_args()
    if given.keep and given.keep.exists():
        before = json.loads(given.keep.read_text("utf-8"))
    else:
        before = json.loads(json.dumps(trained(given.before, given.demo)))
        if given.keep:
            given.keep.write_text(json.dumps(before))
    after = json.loads(json.dumps(trained(given.after, given.demo)))
    different = [name for name in after if after[name] != before[name]]
    for name in different:
        print(f"differs: {name}\n  before: {before[name]}\n  after:  {after[name]}")
    print("different" if different else f"the same: {', '.join(after)}")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
