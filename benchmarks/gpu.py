"""All measurements on a GPU, in pieces of under nine minutes. Each piece is done once.

    python benchmarks/gpu.py --list
    python benchmarks/gpu.py --call 1 [--budget 540]        # then 2, then 3: about a quarter of an hour
    python benchmarks/gpu.py [--budget 540] [--only NAME ...] [--data-path FOLDER]
    python benchmarks/gpu.py --dry-run [--only NAME ...]

Without a GPU it says `no GPU` and ends with 0. Each piece is a process and leaves one file,
OUT/NAME.json, with its output in OUT/NAME.log; OUT is benchmarks/results/gpu. A piece whose file is
there is not done again, so the same command goes on where the last one stopped. No piece starts whose
estimate is more than what is left of the budget. A piece that is still running at its end is stopped
with all that it started, and has no file. Ends with 0 if no piece failed, else with 1.

A dry run does every piece for seconds, on the CPU with tiny models, and by default leaves no files: it
only shows that the pieces run. Its figures mean nothing.

The pieces:
  tests     the tests marked gpu
  sync      does a step wait for the device anywhere? torch's own watch, and where
  ceilings  bytes copied a second, and operations of a matrix product: what no step can exceed
  views-*   two views of resident images, and nothing else
  steps-*   steps of all methods against bare passes of their encoder, in one process
  peers-*   streamed images against the way of 2020, by pretraining.py
  train-*   a recipe of Tiny-ImageNet, 100 epochs, and its evaluation. A run that does not fit
            into one piece is stopped and saved in --runs, and the next call resumes it.
"""

import argparse
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import (
    METHODS,
    RESULTS,
    Figures,
    config_of,
    in_turn,
    rate,
    ratios,
    spreads,
    write_figures,
    write_mosaics,
)
from subjects import LR, bare_step
from torch import Tensor

from mixco.runtime.device import pick_device
from mixco.runtime.run_folder import read_json
from mixco.runtime.seeding import generator_for
from mixco.training.build import build
from mixco.training.optimisers import build_optimizer
from mixco.training.setup import Setup, prepare
from mixco.training.step import forward_backward, update

HERE = Path(__file__).parent
LONGEST = 540  # seconds of a piece
TO_SAVE, TO_EVALUATE = 30, 60  # seconds
LEFT_OUT = 3  # exit code of a piece that cannot be done here
Rows = list[Figures]
Stages = dict[str, Callable[[], None]]


@dataclass(frozen=True)
class Scale:
    """How much a piece does."""

    dry: bool
    device: torch.device
    data_path: Path | None
    runs: Path
    """Where runs are that take several pieces."""
    ends: float
    """When the piece must be over, by time.monotonic()."""

    @property
    def steps(self) -> int:
        return 1 if self.dry else 20

    @property
    def rounds(self) -> int:
        return 1 if self.dry else 5

    @contextmanager
    def setup(self, method: str, arch: str, size: int, batch: int) -> Iterator[Setup]:
        """A run on the sample, or beyond 64 px on mosaics of 256 px; in a dry run a tiny encoder's."""
        arch, size, batch = ("test_resnet", 32, 64) if self.dry else (arch, size, batch)
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            data = "sample" if size <= 64 else write_mosaics(Path(folder) / "photos", batch, 256)
            settings = {"arch": arch, "size": size, "batch_size": batch, "cache": folder}
            settings |= {"data": str(data), "epochs": 10**6, "device": self.device.type}
            # As long a queue as Tiny-ImageNet's 100,000 images get.
            queue = 64 if self.dry else 16384
            yield prepare(config_of(method, **settings, queue=queue), stack)


class LeftOut(Exception):
    """The piece cannot be done here; the message is the reason."""


@contextmanager
def stages_of(setup: Setup) -> Iterator[Stages]:
    """A step of a run in three functions, to be called in turn."""
    method = build(setup).train()
    optimizer = build_optimizer(method, "adamw", 0.05)
    made: dict[str, list[Tensor]] = {}
    with closing(setup.views(print)) as batches:

        def views() -> None:
            made["views"] = next(batches)[1]

        def passes() -> None:
            draws = generator_for(0, "method")
            forward_backward(method, made["views"], draws, compute=setup.compute)

        yield {"views": views, "passes": passes, "optimizer": lambda: update(optimizer, LR)}


def run_all(stages: Stages) -> None:
    for stage in stages.values():
        stage()


def run_tests(scale: Scale) -> Rows:
    """The tests marked gpu; in a dry run they are only collected."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", str(HERE.parent / "tests")]
    done = subprocess.run(
        command + ["--collect-only"] * scale.dry, capture_output=True, text=True, cwd=HERE.parent
    )
    print(done.stdout, done.stderr)
    if done.returncode not in (0, 5):  # 5: none is marked
        raise SystemExit("some tests marked gpu fail")
    summary = done.stdout.strip().splitlines()[-1]
    return [{"exit_code": done.returncode, "summary": summary}]


def find_round_trips(scale: Scale) -> Rows:
    """A step of each method, once with torch telling each wait for the device, once forbidding them."""
    rows: Rows = []
    for name in METHODS:
        with scale.setup(name, "resnet18", 64, 256) as setup, stages_of(setup) as stages:
            for _ in range(2):
                run_all(stages)
            where = {stage: waits(run, scale.device) for stage, run in stages.items()}
            row = {"method": name, "waits": where, "forbidden": forbidden(stages, scale.device)}
            rows.append(row)
            print(row, flush=True)
    return rows


@contextmanager
def sync_debug(mode: str, device: torch.device) -> Iterator[None]:
    """On CUDA, torch warns of each wait for the device, or raises."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waits(run: Callable[[], None], device: torch.device) -> list[str]:
    """File and line of each wait for the device, as often as it happens."""
    with sync_debug("warn", device), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    synchronizing = [w for w in caught if "synchroniz" in str(w.message)]
    return [f"{'/'.join(Path(w.filename).parts[-3:])}:{w.lineno}" for w in synchronizing]


def forbidden(stages: Stages, device: torch.device) -> str:
    """ "passes", or the stage that is the first to wait."""
    for name, run in stages.items():
        try:
            with sync_debug("error", device):
                run()
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            return f"{name} waits"
    return "passes"


def ceilings(scale: Scale) -> Rows:
    """Bytes a second of a large copy, operations a second of a large product in bfloat16."""
    side = 256 if scale.dry else 8192
    a, b = (torch.randn(side, side, device=scale.device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    moved, flops = 2 * a.nbytes, 2 * side**3
    subjects = {
        "copy": lambda: rate(lambda: out.copy_(a), moved, scale.steps, scale.device),
        "product": lambda: rate(lambda: torch.mm(a, b, out=out), flops, scale.steps, scale.device),
    }
    found = in_turn(subjects, scale.rounds)
    units = {"copy": "bytes_per_second", "product": "operations_per_second"}
    return [
        {"what": name, units[name]: spreads(rounds)["images_per_second"]}
        for name, rounds in found.items()
    ]


def measure_views(size: int, scale: Scale) -> Rows:
    """Two views of each image of a batch, packed and resident."""
    rows: Rows = []
    for method in ("moco", "simclr"):
        with scale.setup(method, "resnet18", size, 256) as setup, closing(setup.views(print)) as v:
            batch = setup.settings.optimisation.batch_size
            next(v)
            step = functools.partial(rate, lambda v=v: next(v), batch, scale.steps, scale.device)
            found = in_turn({method: step}, scale.rounds)
        rows.append({"method": method, "size": setup.settings.data.size, "batch": batch})
        rows[-1] |= {"side": setup.images.longest_side, **spreads(found[method])}
    return rows


def measure_steps(size: int, batch: int, scale: Scale) -> Rows:
    """Steps of each method in turn with the bare passes of its encoder."""
    rows: Rows = []
    for name in METHODS:
        with scale.setup(name, "resnet18", size, batch) as setup, stages_of(setup) as stages:
            steps = {"ours": functools.partial(run_all, stages), "bare": bare_step(setup)}
            for step in steps.values():
                for _ in range(1 if scale.dry else 3):
                    step()
            images = setup.settings.optimisation.batch_size
            given = (images, scale.steps, scale.device)
            found = in_turn(
                {n: functools.partial(rate, step, *given) for n, step in steps.items()},
                scale.rounds,
            )
        row = {"method": name, "size": setup.settings.data.size, "batch": images}
        row |= {"ours": spreads(found["ours"]), "bare": spreads(found["bare"])}
        rows.append({**row, "ours_over_bare": ratios(found["ours"], found["bare"])})
    return rows


def train(recipe: str, scale: Scale) -> Rows:
    """A recipe, then its evaluation; what is not done when the piece ends, the next one does."""
    run, mixco = scale.runs / recipe, [sys.executable, "-m", "mixco"]
    device = ["--device", scale.device.type]
    options = ["--recipe", recipe, *device, "--out", str(run)]
    if scale.dry:
        options += ["--data", "sample", "--size", "32", "--arch", "test_resnet", "--epochs", "1"]
        options += ["--batch-size", "64", "--knn-every", "0"]
    elif scale.data_path is None:
        raise LeftOut("give --data-path, the folder with tiny-imagenet-200")
    else:
        options += ["--data-path", str(scale.data_path)]
    process = subprocess.Popen([*mixco, "pretrain", *options])
    try:
        process.wait(scale.ends - time.monotonic() - TO_SAVE)
    except subprocess.TimeoutExpired:
        process.terminate()  # it finishes its step and saves
        process.wait(TO_SAVE)
        raise LeftOut(f"so far: {run} is stopped and saved, the next piece goes on") from None
    if process.returncode:
        raise RuntimeError(f"mixco pretrain ended with {process.returncode}")
    seconds: dict[str, float] = {}
    for command in ("knn", "linear"):
        if command not in read_json(run / "results.json"):
            left = scale.ends - time.monotonic()
            if left < TO_EVALUATE:
                raise LeftOut(f"so far: {run} is trained, the next piece evaluates it")
            short = ["--epochs", "2"] if scale.dry and command == "linear" else []
            began = time.perf_counter()
            subprocess.run(
                [*mixco, command, "--run", str(run), *device, *short], check=True, timeout=left
            )
            seconds[command] = time.perf_counter() - began
    return [{"recipe": recipe, "evaluation_seconds": seconds, **read_json(run / "results.json")}]


@dataclass(frozen=True)
class Piece:
    seconds: int
    """An estimate, with the starts of all its processes; not yet measured on any card."""
    measure: Callable[[Scale], Rows] | tuple[str, ...]
    """A function, or the options of benchmarks/pretraining.py."""
    call: int
    """Which of the three calls does it; a borrowed card has time for three."""


PEERS = "--subjects ours-streamed 2020 --methods moco+mixco --workers 16 --rounds 1"
PIECES: dict[str, Piece] = {
    "tests": Piece(50, run_tests, 1),
    "sync": Piece(30, find_round_trips, 1),
    "ceilings": Piece(15, ceilings, 1),
    "views-64": Piece(20, functools.partial(measure_views, 64), 1),
    "views-224": Piece(20, functools.partial(measure_views, 224), 1),
    **{
        f"steps-{size}-{batch}": Piece(25, functools.partial(measure_steps, size, batch), 1)
        for size, batch in ((64, 256), (64, 128), (32, 512), (224, 256))
    },
    "peers-64": Piece(90, tuple(PEERS.split()), 2),
    **{
        f"train-{recipe}": Piece(150, functools.partial(train, recipe), 3)
        for base in ("moco", "simclr")
        for recipe in (f"tinyimg64_{base}", f"tinyimg64_{base}_mixco")
    },
}


def command_of(name: str, out: Path, arguments: argparse.Namespace, most: float) -> list[str]:
    measure = PIECES[name].measure
    if isinstance(measure, tuple):
        tiny = "--arch test_resnet --size 32 --batch-size 64 --rounds 1 --steps 1 --workers 1"
        options = [*measure, *(tiny.split() if arguments.dry_run else [])]
        options += ["--device", "cpu" if arguments.dry_run else "cuda", "--out", str(out)]
        return [sys.executable, str(HERE / "pretraining.py"), *options]
    runs = out.parent / "runs" if arguments.dry_run else arguments.runs
    options = ["--piece", name, "--out", str(out), "--budget", str(int(most) - 10)]
    options += ["--runs", str(runs), *["--dry-run"] * arguments.dry_run]
    options += ["--data-path", str(arguments.data_path)] if arguments.data_path else []
    return [sys.executable, sys.argv[0], *options]


def do_piece(name: str, folder: Path, arguments: argparse.Namespace, most: float) -> str:
    """Run a piece; says what became of it."""
    path = folder / f"{name}.log"
    with path.open("w") as log:
        command = command_of(name, folder / f"{name}.json", arguments, most)
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(most)
        except subprocess.TimeoutExpired:
            return f"failed: stopped after {most:.0f} s"
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)  # and all that it started
                process.wait()
    if process.returncode == 0:
        return "done"
    lines = path.read_text().strip().splitlines() or ["nothing printed"]
    return lines[-1] if process.returncode == LEFT_OUT else f"failed: {lines[-1]} (see {path})"


def do_all(arguments: argparse.Namespace, names: list[str], folder: Path) -> int:
    ends = time.monotonic() + arguments.budget
    failed = False
    for name in names:
        left = ends - time.monotonic()
        estimate = 60 if arguments.dry_run else PIECES[name].seconds
        if (folder / f"{name}.json").is_file():
            what = "done before"
        elif estimate > left:
            what = f"not started: about {estimate} s, and {max(0, left):.0f} s are left"
        else:
            what = do_piece(name, folder, arguments, min(left, LONGEST))
        failed = failed or what.startswith("failed")
        print(f"{name}: {what}", flush=True)
    return int(failed)


def run_one(arguments: argparse.Namespace) -> None:
    """In the piece's own process."""
    measure = PIECES[arguments.piece].measure
    assert not isinstance(measure, tuple)
    device = pick_device("cpu" if arguments.dry_run else "cuda")
    ends = time.monotonic() + arguments.budget
    try:
        rows = measure(Scale(arguments.dry_run, device, arguments.data_path, arguments.runs, ends))
    except LeftOut as reason:
        print(f"left out: {reason}", flush=True)
        sys.exit(LEFT_OUT)
    write_figures(arguments.out, rows, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="the pieces and their estimates")
    parser.add_argument("--budget", type=float, default=540, help="seconds for all pieces")
    parser.add_argument("--call", type=int, choices=[1, 2, 3], help="the pieces of one call")
    parser.add_argument("--only", nargs="+", choices=list(PIECES), default=list(PIECES))
    parser.add_argument("--dry-run", action="store_true", help="each for seconds, on the CPU")
    parser.add_argument("--data-path", type=Path, help="where tiny-imagenet-200 lies, for train-*")
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu"), help="where runs are kept")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--piece", choices=list(PIECES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.piece:
        run_one(arguments)
        return
    names = [n for n in arguments.only if arguments.call in (None, PIECES[n].call)]
    out = arguments.out or RESULTS / "gpu"
    if arguments.list:
        for name in names:
            piece, there = PIECES[name], "done" if (out / f"{name}.json").is_file() else ""
            print(f"{name:45} {piece.seconds:>4} s  call {piece.call}  {there}".rstrip())
    elif arguments.dry_run and arguments.out is None:
        with tempfile.TemporaryDirectory() as folder:
            sys.exit(do_all(arguments, names, Path(folder)))
    elif arguments.dry_run or torch.cuda.is_available():
        out.mkdir(parents=True, exist_ok=True)
        sys.exit(do_all(arguments, names, out))
    else:
        print("no GPU")


if __name__ == "__main__":
    main()
