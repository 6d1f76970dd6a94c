"""All measurements on a GPU that is at hand for a quarter of an hour, in three goes.

    make carry DATA=FOLDER     # before: wheels and data, for a machine without internet
    python benchmarks/gpu.py tests rates --out OUT --budget 225
    python benchmarks/gpu.py loading --out OUT --budget 100
    python benchmarks/gpu.py train --out OUT --budget 480 [--row NAME] [--data-path FOLDER]
    python benchmarks/gpu.py tests rates loading train --rehearse --out OUT

Each part writes to OUT as it measures: OUT/PART.jsonl, a line a figure, the first of which names the
command, commit, machine and versions; and OUT/PART.log. What does not fit into the rest of the budget
is not begun. When the budget is over, everything is stopped, with all that it started.

A rehearsal runs the same commands on the CPU, with a tiny encoder and few steps: its figures mean
nothing. Without a GPU and without --rehearse it says `no GPU`. Ends with 0 unless a part failed.

tests    the tests marked gpu
rates    what no step can exceed: bytes copied a second, operations of a matrix product. Then, in one
         process and in turn: steps of ours, captured and eager, and the bare passes of the encoder with
         plain norms in a CUDA graph, at 64, 32 and 224 px. And of three steps each, by the profiler:
         kernels, launches, copies and waits of the host, and the share of the time the GPU is busy
loading  images decoded anew each time: JPEG files a second by nvJPEG; the way of 2020 and
         lightly-train, if it is installed, against ours, by pretraining.py
train    a row of the evidence table: pretraining, kNN and linear probe on the test split, and the
         encoder in parts of 15 MB, by experiments/evidence.py. By default the first row of its list
         that is not finished. Here, then: python experiments/evidence.py add OUT/evidence.json
"""

import argparse
import functools
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from harness import (
    Figures,
    config_of,
    in_turn,
    origin,
    rate,
    ratios,
    rounded,
    spreads,
    write_mosaics,
)
from subjects import LR, bare_step

from mixco.runtime.device import pick_device
from mixco.runtime.run_folder import read_json
from mixco.training import capture
from mixco.training.build import build
from mixco.training.optimisers import build_optimizer
from mixco.training.setup import Setup, prepare
from mixco.training.step import Step, eager_step

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parent / "experiments"
ROWS = [
    row["name"]
    for row in tomllib.loads((EXPERIMENTS / "evidence.toml").read_text("utf-8"))["row"]
    if row.get("needs_gpu")
]
PART = 15 * 2**20  # bytes of a part of the encoder
MIXCO = [sys.executable, "-m", "mixco"]


class Measuring:
    """Where figures go, how much is done, and for how long."""

    def __init__(self, part: str, arguments: argparse.Namespace, ends: float) -> None:
        self.rehearsal: bool = arguments.rehearse
        self.arguments = arguments
        self.device = pick_device("cpu" if self.rehearsal else "cuda")
        self.folder: Path = arguments.out
        self.path = self.folder / f"{part}.jsonl"
        self._ends = ends
        self.write(origin(self.device))

    def write(self, row: Figures) -> None:
        """Append a line, which a stop cannot take back."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rounded(row)) + "\n")
        print(json.dumps(rounded(row)), flush=True)

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self._ends - time.monotonic()

    def fits(self, what: str, seconds: float) -> bool:
        """Is there so much time left? An estimate; where there is not, that is written."""
        if self.left >= seconds or self.rehearsal:
            return True
        self.write({"left_out": what, "about_seconds": seconds, "left_seconds": self.left})
        return False

    def run(self, command: Sequence[str | Path], log: str, **options: Any) -> float:
        """Run a command, its output in a log; returns seconds. Raises CalledProcessError."""
        began = time.perf_counter()
        with (self.folder / log).open("a") as file:
            subprocess.run(
                list(map(str, command)),
                stdout=file,
                stderr=subprocess.STDOUT,
                check=True,
                **options,
            )
        return time.perf_counter() - began


def tests(m: Measuring) -> None:
    """The tests marked gpu, but for those that compile for minutes; in a rehearsal they skip."""
    began = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu and not slow",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run([*command, "tests/gpu"], capture_output=True, text=True, cwd=HERE.parent)
    (m.folder / "tests.log").write_text(done.stdout + done.stderr)
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    row = {"exit_code": done.returncode, "summary": lines[-1:], "failed": failed}
    m.write({**row, "seconds": time.perf_counter() - began})
    if done.returncode not in (0, 5):  # 5: none was collected
        raise RuntimeError("some tests fail")


def rates(m: Measuring) -> None:
    """Ceilings, and steps beside the bare passes of their encoder."""
    ceilings(m)
    for (size, batch), methods in {
        (64, 256): ("moco+mixco", "simclr+mixco", "moco", "simclr"),
        (64, 128): ("moco+mixco",),
        (32, 512): ("moco+mixco", "simclr+mixco"),
        (224, 256): ("moco+mixco",),
    }.items():
        for method in methods[: 1 if m.rehearsal else None]:
            # Compiling takes most of it, and only for the first of a size.
            if m.fits(f"{method} at {size} px, batch {batch}", 20):
                steps_and_bare(m, method, size, batch)


def ceilings(m: Measuring) -> None:
    """Bytes a second of a large copy, operations a second of a large product in bfloat16."""
    side = 256 if m.rehearsal else 8192
    a, b = (torch.randn(side, side, device=m.device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    steps, rounds = (1, 1) if m.rehearsal else (20, 3)
    found = in_turn(
        {
            "copy": lambda: rate(lambda: out.copy_(a), 2 * a.nbytes, steps, m.device),
            "product": lambda: rate(lambda: torch.mm(a, b, out=out), 2 * side**3, steps, m.device),
        },
        rounds,
    )
    units = {"copy": "bytes_per_second", "product": "operations_per_second"}
    for name, each in found.items():
        m.write({"ceiling": name, units[name]: spreads(each)["images_per_second"]})


@contextmanager
def setup_of(m: Measuring, method: str, size: int, batch: int, **more: Any) -> Iterator[Setup]:
    """A run on the sample, or beyond 64 px on mosaics of 256 px; in a rehearsal a tiny encoder's."""
    arch = "test_resnet" if m.rehearsal else "resnet18"
    size, batch = (32, 64) if m.rehearsal else (size, batch)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        data = "sample" if size <= 64 else write_mosaics(Path(folder) / "photos", batch, 256)
        settings = {"arch": arch, "size": size, "batch_size": batch, "cache": folder, **more}
        settings |= {"data": str(data), "epochs": 10**6, "device": m.device.type}
        # As long a queue as Tiny-ImageNet's 100,000 images get.
        settings |= {"queue": 64 if m.rehearsal else 16384, "memory_format": "channels_last"}
        settings |= {"precision": "float32" if m.rehearsal else "bfloat16"}
        yield prepare(config_of(method, **settings), stack)


def steps_and_bare(m: Measuring, method: str, size: int, batch: int) -> None:
    """A row: images a second of our steps and of the bare passes, in turn; then three steps profiled."""
    began = time.perf_counter()
    with setup_of(m, method, size, batch) as setup, ExitStack() as stack:
        steps = {name: stack.enter_context(stepping(setup, name)) for name in ("captured", "eager")}
        row: Figures = {"method": method, "size": setup.settings.data.size}
        row |= {"batch": setup.settings.optimisation.batch_size}
        row |= {"seconds_to_capture": time.perf_counter() - began}
        plain = setup_of(m, method, size, batch, **({"bn_splits": 1} if "moco" in method else {}))
        bare = bare_step(stack.enter_context(plain))
        steps["bare"] = bare if m.rehearsal else graphed(bare, m.device)
        for step in steps.values():
            for _ in range(1 if m.rehearsal else 5):
                step()
        given = (row["batch"], 1 if m.rehearsal else 20, m.device)
        found = in_turn(
            {n: functools.partial(rate, step, *given) for n, step in steps.items()},
            1 if m.rehearsal else 3,
        )
        row |= {name: spreads(each) for name, each in found.items()}
        row |= {f"{n}_over_bare": ratios(found[n], found["bare"]) for n in ("captured", "eager")}
        m.write(row)
        for name in ("captured", "eager"):
            which = {key: row[key] for key in ("method", "size", "batch")}
            m.write({"profiled": name, **which, **profiled(steps[name])})


@contextmanager
def stepping(setup: Setup, execution: str) -> Iterator[Callable[[], None]]:
    """A function that makes the next step of a run."""
    method = build(setup).train()
    optimizer = build_optimizer(method, "adamw", 0.05)
    with closing(setup.batches(print)) as batches:
        step = eager_step(setup, method, optimizer)
        if execution == "captured":
            on_gpu = setup.compute.device.type == "cuda"
            make = capture.capture if on_gpu else without_a_graph
            step = make(setup, method, optimizer, next(batches))
        count = itertools.count()

        def next_step() -> None:
            step.losses(next(batches), next(count))
            step.update(LR)

        yield next_step


def without_a_graph(setup: Setup, *parts: Any) -> Step:
    """For a rehearsal: the functions that a GPU records."""
    return capture.as_step(capture.pure_step(setup, *parts, compile_views=False))


def graphed(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The step as a CUDA graph."""
    with capture._side_stream(device):
        for _ in range(3):
            step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def profiled(step: Callable[[], None], steps: int = 3) -> Figures:
    """Count what the host asks of the GPU in a step, and the share of the time the GPU is busy."""
    activity = torch.profiler.ProfilerActivity
    given = [activity.CPU, *([activity.CUDA] if torch.cuda.is_available() else [])]
    with torch.profiler.profile(activities=given) as profile:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        host = time.perf_counter() - began
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        whole = time.perf_counter() - began
    events = profile.events() or []
    kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(e.device_time for e in kernels) / 1e6

    def count(*names: str) -> float:
        return sum(e.name.startswith(names) for e in events) / steps

    return {
        "kernels": len(kernels) / steps,
        "launches": count(*LAUNCHES),
        "copies": count("cudaMemcpy"),
        "waits": max(0.0, count(*WAITS) - 1 / steps),  # the last one is ours
        "busy_share": busy / whole,
        "host_ms": 1e3 * host / steps,
        "ms": 1e3 * whole / steps,
    }


def loading(m: Measuring) -> None:
    """Images that are decoded anew: by the GPU's own decoder alone, then whole steps with workers."""
    decoded_on_device(m)
    subjects = "--subjects ours ours-streamed 2020 lightly-train --rounds 1"
    tiny = "--arch test_resnet --size 32 --batch-size 64 --steps 1 --workers 1"
    options = [*subjects.split(), *(tiny.split() if m.rehearsal else ["--workers", "16"])]
    for method in ("moco+mixco", "simclr"):
        if m.fits(f"loading for {method}", 45):
            out = m.folder / f"loading-{method}.json"
            given = ["--methods", method, "--device", m.device.type, "--out", out]
            command = [sys.executable, HERE / "pretraining.py", *options, *given]
            m.run([*command, "--peers", sys.executable], "loading.log")
            for row in read_json(out)["rows"]:
                m.write(row)


def decoded_on_device(m: Measuring) -> None:
    """JPEG files of 256 px a second by torchvision, on CUDA by nvJPEG: would it pay for streaming?"""
    from torchvision.io import decode_jpeg

    with tempfile.TemporaryDirectory() as folder:
        photos = write_mosaics(Path(folder) / "photos", 16 if m.rehearsal else 512, 256)
        files = [
            torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
            for path in sorted(photos.iterdir())
        ]

    def decode() -> None:
        decode_jpeg(files, device=m.device.type)

    decode()
    rounds = [rate(decode, len(files), 1 if m.rehearsal else 5, m.device) for _ in range(3)]
    m.write({"decoded_by": "torchvision", "on": m.device.type, "side": 256, **spreads(rounds)})


def train(m: Measuring) -> None:
    """A row of the evidence table."""
    known, found = EXPERIMENTS / "evidence.json", m.folder / "evidence.json"
    finished = read_json(known) if known.exists() else {}
    missing = [name for name in ROWS if "linear" not in finished.get(name, {}).get("0", {})]
    name = m.arguments.row or next(iter(missing), None)
    if name is None:
        m.write({"left_out": "all rows have figures"})
        return
    more = f"--device {m.device.type} --knn-every 50 --checkpoint-minutes 0"
    if m.rehearsal:
        more += (
            " --data sample --size 32 --arch test_resnet --epochs 1 --batch-size 64 --stem standard"
        )
    place = m.arguments.data_path or m.folder
    options = ["--row", name, "--seed", "0", "--data-path", place, "--more", more, "--nice", "0"]
    command = ["python", "experiments/evidence.py", "run", *options]
    m.write({"row": name, "command": shlex.join(map(str, command))})
    where = ["--out", m.folder, "--found", found]
    seconds = m.run(
        [sys.executable, EXPERIMENTS / "evidence.py", *command[2:], *where], "train.log"
    )
    keep_encoder(m.folder / f"{name}-s0", m.folder)
    m.write({"row": name, "seconds": seconds, "results": read_json(found)[name]["0"]})


def keep_encoder(run: Path, folder: Path) -> None:
    """Copy the encoder in parts; `cat encoder-* > encoder.safetensors` puts them together."""
    content = (run / "encoder.safetensors").read_bytes()
    for number, start in enumerate(range(0, len(content), PART)):
        (folder / f"encoder-{number}").write_bytes(content[start : start + PART])


PARTS: dict[str, Callable[[Measuring], None]] = {
    "tests": tests,
    "rates": rates,
    "loading": loading,
    "train": train,
}


def measure(arguments: argparse.Namespace, ends: float) -> int:
    """All parts, in this process; 1 if one failed."""
    failed = 0
    for part in arguments.parts:
        m = Measuring(part, arguments, ends)
        try:
            PARTS[part](m)
        except Exception as error:  # the other parts are still wanted
            failed = 1
            m.write({"failed": f"{type(error).__name__}: {error}"})
    return failed


def watched(arguments: argparse.Namespace) -> int:
    """Run the parts in a process of their own, and stop it when the budget is over."""
    process = subprocess.Popen([sys.executable, *sys.argv, "--inner"], start_new_session=True)
    try:
        return process.wait(arguments.budget)
    except subprocess.TimeoutExpired:
        print(f"stopped after {arguments.budget:g} s", flush=True)
        return 1
    finally:
        # What it has started may outlive it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=list(PARTS))
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("--budget", type=float, default=540, help="seconds for all parts")
    parser.add_argument("--rehearse", action="store_true", help="each for seconds, on the CPU")
    parser.add_argument("--row", choices=ROWS, help="train: which row")
    parser.add_argument("--data-path", type=Path, help="train: where the data set lies")
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.rehearse and not torch.cuda.is_available():
        print("no GPU")
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.inner:
        sys.exit(measure(arguments, time.monotonic() + arguments.budget))
    sys.exit(watched(arguments))


if __name__ == "__main__":
    main()
