"""All that is measured on a GPU, in pieces of under nine minutes, of which each is done once.

    python benchmarks/gpu.py --list
    python benchmarks/gpu.py [--budget 540] [--only NAME ...] [--data-path FOLDER]
    python benchmarks/gpu.py --dry-run [--only NAME ...]

Without a GPU it says `no GPU` and ends with 0. Each piece is a process and leaves one file,
OUT/NAME.json, with what it printed in OUT/NAME.log; OUT is benchmarks/results/gpu. A piece whose file
is there is not done again, so the same command goes on where the last one stopped. No piece starts
whose estimate is more than what is left of the budget, and what is still running at its end is stopped
and has no file. Ends with 0 if no piece failed, else with 1.

A dry run does every piece for seconds, on the CPU with tiny models, and by default leaves no files: it
only shows that the pieces run. Its figures mean nothing.

The pieces:
  tests     the tests marked gpu
  rates-*   pretraining against bare passes of its encoder (benchmarks/pretraining.py)
  modes-*   the encoder's forward and backward, torch.compile in one mode against none, in turn
  sync      does a step wait for the device anywhere? torch's own watch, and where
  views-*   two views of resident images, and nothing else
  train-*   a recipe of Tiny-ImageNet, 100 epochs, and its evaluation. What does not fit into one piece
            is stopped there, saved in --runs, and gone on with the next time.
"""

import argparse
import functools
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import in_turn, ratios, spread, write_figures
from torch import Tensor, nn

from mixco.data.packed import take_rows
from mixco.runtime.device import Compute, pick_device, pick_dtype
from mixco.runtime.run_folder import read_json
from mixco.runtime.seeding import generator_for
from mixco.settings.config import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimisationConfig,
    PretrainConfig,
)
from mixco.settings.resolve import resolve
from mixco.training.optimisers import build_optimizer
from mixco.training.pretrain import build_method
from mixco.views import augment as views

HERE = Path(__file__).parent
LONGEST = 540  # seconds of a piece
BATCH = 256
TO_SAVE, TO_EVALUATE = 30, 60  # seconds
Rows = list[dict[str, object]]


@dataclass(frozen=True)
class Scale:
    """How much a piece does."""

    dry: bool
    device: torch.device
    data_path: Path | None
    out: Path
    """The piece's file."""
    runs: Path
    """Where runs are that take several pieces."""
    ends: float
    """Of time.monotonic(): when the piece has to be over."""

    @property
    def batch(self) -> int:
        return 64 if self.dry else BATCH

    @property
    def steps(self) -> int:
        return 1 if self.dry else 20

    @property
    def rounds(self) -> int:
        return 1 if self.dry else 5

    def encoder(self, arch: str, size: int) -> tuple[str, int]:
        return ("test_resnet", 32) if self.dry else (arch, size)


@dataclass(frozen=True)
class Piece:
    seconds: int
    """An estimate, with the starts of all its processes; not yet measured on any card."""
    measure: Callable[[Scale], Rows] | None
    """None: benchmarks/pretraining.py with these options."""
    options: tuple[str, ...] = ()


class LeftOut(Exception):
    """The piece cannot be done here; the message is the reason."""


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def rate(step: Callable[[], object], scale: Scale) -> float:
    """Images a second."""
    finish(scale.device)
    began = time.perf_counter()
    for _ in range(scale.steps):
        step()
    finish(scale.device)
    return scale.steps * scale.batch / (time.perf_counter() - began)


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


def compare_modes(arch: str, size: int, mode: str, scale: Scale) -> Rows:
    """Forward and backward of a batch in bfloat16, channels_last: compiled in a mode, and not."""
    arch, size = scale.encoder(arch, size)
    config = configured("simclr", "none", arch, size, scale)
    encoder: nn.Module = build_method(config).encoder
    encoder = encoder.to(scale.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    dtype = pick_dtype(scale.device, "auto")
    images = torch.randn(scale.batch, 3, size, size, device=scale.device)
    images = images.to(dtype, memory_format=torch.channels_last)

    def step(network: Callable[[Tensor], Tensor]) -> None:
        with Compute(scale.device, dtype).autocast():
            outputs = network(images)
        outputs.float().square().mean().backward()
        encoder.zero_grad(set_to_none=True)

    if scale.dry:
        compiled = torch.compile(encoder, backend="eager")  # no compiler needed
    else:
        compiled = torch.compile(encoder, mode=mode)
    began = time.perf_counter()
    for _ in range(3):
        step(compiled)
        step(encoder)
    finish(scale.device)
    took = time.perf_counter() - began
    subjects = {
        mode: lambda: rate(lambda: step(compiled), scale),
        "eager": lambda: rate(lambda: step(encoder), scale),
    }
    rates = in_turn(subjects, scale.rounds)
    return [
        {
            "arch": arch,
            "size": size,
            "batch": scale.batch,
            "mode": mode,
            "first_steps_seconds": took,
            "images_per_second": spread(rates[mode]),
            "eager_images_per_second": spread(rates["eager"]),
            "ratio_to_eager": ratios(rates[mode], rates["eager"]),
        }
    ]


def configured(method: str, mix: str, arch: str, size: int, scale: Scale) -> PretrainConfig:
    config = PretrainConfig(
        data=DataConfig(size=size),
        model=ModelConfig(arch=arch),
        method=MethodConfig(method=method, mix=mix),  # type: ignore[arg-type]
        optimisation=OptimisationConfig(batch_size=scale.batch),
    )
    return resolve(config, 100_000)  # as many as Tiny-ImageNet has


def random_images(count: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Canvases on the device, and their extents."""
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)
    return images.to(device), torch.full((count, 2), side)


def find_round_trips(scale: Scale) -> Rows:
    """A step of each method, once with torch telling each wait for the device, once forbidding them."""
    rows: Rows = []
    arch, size = scale.encoder("resnet18", 64)
    canvases, extents = random_images(4 * scale.batch, size, scale.device)
    dtype = pick_dtype(scale.device, "auto")
    for name in ("moco", "simclr"):
        for mix in ("none", "mixco"):
            config = configured(name, mix, arch, size, scale)
            method = build_method(config).to(scale.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            augmentation = views.AUGMENTATIONS[config.method.augmentation](views.Input(size))
            optimizer = build_optimizer(method.train(), "adamw", 0.05)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
            made: dict[str, object] = {}

            # As in training/pretrain.py, cut where it is asked who waits.
            def make_views(augmentation=augmentation, made=made) -> None:
                index = torch.randint(len(canvases), (scale.batch,))
                batch = take_rows(canvases, index, scale.device)
                made["views"] = views.two_views(
                    batch, extents[index], augmentation, generator_for(0, "views"), dtype
                )

            def forward(method=method, made=made) -> None:
                with Compute(scale.device, dtype).autocast():
                    made["losses"] = method(*made["views"], generator_for(0, "method"))

            def backward(made=made) -> None:
                made["losses"]["loss"].backward()

            def update(optimizer=optimizer) -> None:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            stages = {
                "views": make_views,
                "method": forward,
                "backward": backward,
                "optimizer": update,
            }
            for _ in range(2):
                for stage in stages.values():
                    stage()
            finish(scale.device)
            where = {stage: waits(run, scale.device) for stage, run in stages.items()}
            rows.append(
                {
                    "method": name,
                    "mix": mix,
                    "waits": where,
                    "forbidden": forbidden(stages, scale.device),
                }
            )
            print(rows[-1], flush=True)
    return rows


def waits(run: Callable[[], None], device: torch.device) -> list[str]:
    """File and line of each wait for the device, as often as it happens."""
    if device.type != "cuda":
        run()
        return []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    synchronizing = [w for w in caught if "synchroniz" in str(w.message)]
    return [f"{'/'.join(Path(w.filename).parts[-3:])}:{w.lineno}" for w in synchronizing]


def forbidden(stages: dict[str, Callable[[], None]], device: torch.device) -> str:
    """ "passes", or the stage that is the first to wait."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    stage = ""
    try:
        for stage, run in stages.items():  # noqa: B007
            run()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return f"{stage} waits"
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return "passes"


def measure_views(size: int, side: int, scale: Scale) -> Rows:
    """Two views of each image of a batch, from canvases on the device."""
    rows: Rows = []
    if scale.dry:
        size, side = 32, 32
    canvases, extents = random_images(4 * scale.batch, side, scale.device)
    dtype = pick_dtype(scale.device, "auto")
    for name in ("moco-v2", "simclr"):
        augmentation = views.AUGMENTATIONS[name](views.Input(size))
        generator = torch.Generator().manual_seed(0)

        def step(augmentation=augmentation, generator=generator) -> None:
            index = torch.randint(len(canvases), (scale.batch,), generator=generator)
            batch = take_rows(canvases, index, scale.device)
            views.two_views(batch, extents[index], augmentation, generator, dtype)

        step()
        rates = in_turn({name: functools.partial(rate, step, scale)}, scale.rounds)
        rows.append(
            {
                "augmentation": name,
                "size": size,
                "side": side,
                "batch": scale.batch,
                "images_per_second": spread(rates[name]),
            }
        )
    return rows


def train(recipe: str, scale: Scale) -> Rows:
    """A recipe, then its evaluation; what is not done when the piece ends, the next one does."""
    run = scale.runs / recipe
    options = ["--recipe", recipe, "--device", scale.device.type, "--out", str(run)]
    if scale.dry:
        options += ["--data", "sample", "--size", "32", "--arch", "test_resnet", "--epochs", "1"]
        options += ["--batch-size", "64", "--knn-every", "0"]
    elif scale.data_path is None:
        raise LeftOut("give --data-path, the folder with tiny-imagenet-200")
    else:
        options += ["--data-path", str(scale.data_path)]

    process = subprocess.Popen([sys.executable, "-m", "mixco", "pretrain", *options])
    try:
        process.wait(scale.ends - time.monotonic() - TO_SAVE)
    except subprocess.TimeoutExpired:
        process.terminate()  # it finishes its step and saves
        process.wait(TO_SAVE)
        raise LeftOut(f"so far: {run} is stopped and saved, the next piece goes on") from None
    if process.returncode:
        raise RuntimeError(f"mixco pretrain ended with {process.returncode}")
    seconds: dict[str, float] = {}
    for verb in ("knn", "linear"):
        if verb not in read_json(run / "results.json"):
            if scale.ends - time.monotonic() < TO_EVALUATE:
                raise LeftOut(f"so far: {run} is trained, the next piece evaluates it")
            command = [sys.executable, "-m", "mixco", verb, "--run", str(run)]
            command += [
                "--device",
                scale.device.type,
                *["--epochs", "2"] * (scale.dry and verb == "linear"),
            ]
            started = time.perf_counter()
            subprocess.run(command, check=True)
            seconds[verb] = time.perf_counter() - started
    return [{"recipe": recipe, "evaluation_seconds": seconds, **read_json(run / "results.json")}]


PIECES: dict[str, Piece] = {
    "tests": Piece(300, run_tests),
    "sync": Piece(90, find_round_trips),
    "views-64": Piece(60, functools.partial(measure_views, 64, 64)),
    "views-224": Piece(90, functools.partial(measure_views, 224, 256)),
    **{
        f"rates-{arch}-{size}": Piece(500, None, ("--arch", arch, "--size", str(size)))
        for size in (64, 224)
        for arch in ("resnet18", "resnet50")
    },
    **{
        f"modes-{arch}-{size}-{mode}": Piece(
            seconds, functools.partial(compare_modes, arch, size, mode)
        )
        for arch, size in (("resnet18", 64), ("resnet50", 224))
        for mode, seconds in (
            ("default", 150),
            ("reduce-overhead", 150),
            ("max-autotune-no-cudagraphs", 500),
        )
    },
    **{
        f"train-{recipe}": Piece(150, functools.partial(train, recipe))
        for recipe in (
            "tinyimg64_moco",
            "tinyimg64_moco_mixco",
            "tinyimg64_simclr",
            "tinyimg64_simclr_mixco",
        )
    },
}


def command_of(name: str, out: Path, arguments: argparse.Namespace, most: float) -> list[str]:
    piece = PIECES[name]
    if piece.measure is not None:
        command = [sys.argv[0], "--piece", name, "--out", str(out), "--budget", str(int(most) - 10)]
        command += ["--runs", str(out.parent / "runs" if arguments.dry_run else arguments.runs)]
        command += ["--dry-run"] * arguments.dry_run
        if arguments.data_path:
            command += ["--data-path", str(arguments.data_path)]
        return [sys.executable, *command]
    script = str(Path(sys.argv[0]).with_name("pretraining.py"))
    if arguments.dry_run:
        options = ["--arch", "test_resnet", "--size", "32", "--rounds", "1", "--steps", "1"]
    else:
        options = [*piece.options, "--rounds", "3"]
    options += ["--subjects", "ours", "bare", "--device", "cpu" if arguments.dry_run else "cuda"]
    return [sys.executable, script, *options, "--out", str(out)]


def do_piece(name: str, folder: Path, arguments: argparse.Namespace, most: float) -> str:
    """Run a piece; what became of it, in words."""
    with (folder / f"{name}.log").open("w") as log:
        try:
            done = subprocess.run(
                command_of(name, folder / f"{name}.json", arguments, most),
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=most,
            )
        except subprocess.TimeoutExpired:
            return f"failed: stopped after {most:.0f} s"
    if done.returncode == 0:
        return "done"
    lines = (folder / f"{name}.log").read_text().strip().splitlines() or ["nothing printed"]
    if done.returncode == LEFT_OUT:
        return lines[-1]
    return f"failed: {lines[-1]} (see {folder / f'{name}.log'})"


LEFT_OUT = 3  # how a piece's process ends that cannot be done here


def run_one(name: str, scale: Scale) -> None:
    measure = PIECES[name].measure
    assert measure is not None
    try:
        rows = measure(scale)
    except LeftOut as reason:
        print(f"left out: {reason}", flush=True)
        sys.exit(LEFT_OUT)
    write_figures(scale.out, rows, scale.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="the pieces and their estimates")
    parser.add_argument("--budget", type=float, default=540, help="seconds for all pieces")
    parser.add_argument("--only", nargs="+", choices=list(PIECES), default=list(PIECES))
    parser.add_argument("--dry-run", action="store_true", help="each for seconds, on the CPU")
    parser.add_argument("--data-path", type=Path, help="where tiny-imagenet-200 lies, for train-*")
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu"), help="where runs are kept")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--piece", choices=list(PIECES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.piece:
        device = pick_device("cpu" if arguments.dry_run else "cuda")
        ends = time.monotonic() + arguments.budget
        data_path, out, runs = arguments.data_path, arguments.out, arguments.runs
        run_one(arguments.piece, Scale(arguments.dry_run, device, data_path, out, runs, ends))
        return
    if arguments.dry_run and arguments.out is None:
        with tempfile.TemporaryDirectory() as folder:
            sys.exit(do_all(arguments, Path(folder)))
    out = arguments.out or HERE / "results" / "gpu"
    if arguments.list:
        for name, piece in PIECES.items():
            there = "done" if (out / f"{name}.json").is_file() else ""
            print(f"{name:45} {piece.seconds:>4} s  {there}".rstrip())
    elif not (arguments.dry_run or torch.cuda.is_available()):
        print("no GPU")
    else:
        out.mkdir(parents=True, exist_ok=True)
        sys.exit(do_all(arguments, out))


def do_all(arguments: argparse.Namespace, folder: Path) -> int:
    ends = time.monotonic() + arguments.budget
    failed = False
    for name in arguments.only:
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


if __name__ == "__main__":
    main()
