"""How long one waits before anything happens: the help, the first step, and packing.

    python benchmarks/startup.py [--rounds 5] [--data FOLDER] [--files 4000] [--side 64 256]

Times are of processes, from outside, in seconds: `mixco --help` and `--version`; `mixco pretrain` on
images that are packed already, to the end of its first step (see few_steps.py); beside them Python
itself and `import torch`, which nothing that trains can do without.

Packing is in files a second, against Pillow alone that decodes the same files in a pool of processes,
one a processor, and drops the pixels. Packing also looks at each header beforehand, reduces what is
larger than twice --size, and writes the pixels. The files are JPEGs of --side pixels, mosaics of the
built-in sample, or the first --files of --data. The disk's cache is warm: an untimed round comes first.
"""

import argparse
import functools
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path

import torch
from loading import make_photos
from measuring import in_turn, ratios, spread, write_figures
from PIL import Image

from mixco.data.datasets import list_images
from mixco.data.image_list import ImageList
from mixco.data.packing import pack
from mixco.runtime.device import processors

MIXCO = [sys.executable, "-m", "mixco"]
TARGETS = {"mixco --help": 0.5, "first step": 10.0}  # seconds


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def until_it_says(word: str, command: list[str]) -> float:
    """Seconds from the start of a process to a line of its output."""
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == word:
                took = time.perf_counter() - began
                process.communicate()
                return took
    raise RuntimeError(f"{command} ended before it said {word}")


def first_step(arguments: argparse.Namespace, work: Path) -> float:
    """Each time a new run folder; the cache, with the packed images in it, stays."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        options = {
            "--out": f"{folder}/run",
            "--cache": str(work / "cache"),
            "--method": "moco",
            "--size": str(arguments.size),
            "--arch": arguments.arch,
            "--batch-size": str(arguments.batch_size),
        }
        script = str(Path(__file__).with_name("few_steps.py"))
        command = [
            sys.executable,
            script,
            "pretrain",
            *(x for pair in options.items() for x in pair),
        ]
        return until_it_says("stepped", command)


def decode(source: ImageList, index: int) -> None:
    with Image.open(BytesIO(source.read(index))) as image:
        image.convert("RGB")


def decoder_rate(pool: ProcessPoolExecutor, source: ImageList) -> float:
    began = time.perf_counter()
    count = len(source.files)
    work = functools.partial(decode, source)
    for _ in pool.map(work, range(count), chunksize=max(1, count // 100)):
        pass
    return count / (time.perf_counter() - began)


def packing_rate(source: ImageList, size: int, work: Path) -> float:
    with tempfile.TemporaryDirectory(dir=work) as cache:
        began = time.perf_counter()
        pack(source, size=size, cache=Path(cache), workers=processors())
        return len(source.files) / (time.perf_counter() - began)


def sources_of(arguments: argparse.Namespace, work: Path) -> dict[str, ImageList]:
    if arguments.data:
        whole = list_images(str(arguments.data.resolve()), None, "pretrain")
        step = max(1, len(whole.files) // arguments.files)
        files = tuple(whole.files[::step][: arguments.files])
        return {arguments.data.name: ImageList(whole.name, whole.root, files, None, ())}
    for side in arguments.side:
        make_photos(work / str(side), arguments.files, side)
    return {
        f"{side} px": list_images(str(work / str(side)), None, "pretrain")
        for side in arguments.side
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="a folder of images, for packing")
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--side", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/startup.json"))
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        first_step(arguments, work)  # packs the sample, and compiles what Python has not yet
        starts: dict[str, Callable[[], float]] = {
            "python": lambda: seconds([sys.executable, "-c", "pass"]),
            "import torch": lambda: seconds([sys.executable, "-c", "import torch"]),
            "mixco --version": lambda: seconds([*MIXCO, "--version"]),
            "mixco --help": lambda: seconds([*MIXCO, "--help"]),
            "mixco pretrain --help": lambda: seconds([*MIXCO, "pretrain", "--help"]),
            "first step": lambda: first_step(arguments, work),
        }
        times = in_turn(starts, arguments.rounds)
        for name, values in times.items():
            row: dict[str, object] = {"what": name, "seconds": spread(values)}
            rows.append({**row, "target": TARGETS[name]} if name in TARGETS else row)

        # Not forked: this process has threads, torch's.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processors(), mp_context=context) as pool:
            for name, source in sources_of(arguments, work).items():
                subjects = {
                    f"packing, {name}": functools.partial(
                        packing_rate, source, arguments.size, work
                    ),
                    f"decoder, {name}": functools.partial(decoder_rate, pool, source),
                }
                in_turn(subjects, 1)  # the processes start, the files are read
                ours, bare = in_turn(subjects, arguments.rounds).values()
                rows.append(
                    {
                        "what": f"packing, {name}",
                        "files": len(source.files),
                        "files_per_second": spread(ours),
                        "decoder_files_per_second": spread(bare),
                        "ratio": ratios(ours, bare),
                    }
                )
    write_figures(arguments.out, rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
