"""Our pretraining against others and against the limit: images/s, memory and waiting, in turn.

    make peers    # once: lightly and lightly-train, in .venv-peers
    python benchmarks/pretraining.py [--size 64] [--methods moco simclr] [--subjects ours lightly]

All have the same encoder, image files, image size and batch. Each subject is a process of its own, a
function of subjects.py, whose docstring says what it does:

    ours              `pretrain`, its images packed before
    ours-streamed     the same, its images decoded anew each time, as all others do
    ours-float32      the same as ours, in float32 also where the device is fast in bfloat16
    bare              the limit: passes of the encoder alone, over random numbers in memory
    bare-plain-norms  the same without splitting MoCo's batch norms into virtual devices
    lightly           the loops of its documentation: MoCo, SimCLR
    lightly-train     its `pretrain`: SimCLR
    2020              the way of the 2020 code: MoCo, and MoCo with MixCo
    commit            `mixco pretrain` of the commit given by --commit; without its memory, since the
                      process that starts it would count too

Images/s counts each image of a batch once, however many views and mixed images are made of it. The
first steps are not timed. ours makes its views while its loop waits, the others' workers make theirs
beside the loop. Peak memory is of the subject's process and all below it. Packing is timed once, apart.
"""

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from harness import (
    METHODS,
    RESULTS,
    Figures,
    arguments_of,
    child,
    in_turn,
    packed,
    ratios,
    spreads,
    usual_batch,
    write_figures,
    write_sample,
)

from mixco.runtime.device import pick_device, processors

MOCO = ("moco", "moco+mixco")
# Each subject: its function, the settings it has beside the common ones, and its methods.
SUBJECTS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "ours": ("ours", {}, METHODS),
    "ours-streamed": ("ours", {"loading": "streamed"}, METHODS),
    "ours-float32": ("ours", {"precision": "float32"}, METHODS),
    "bare": ("bare", {}, METHODS),
    "bare-plain-norms": ("bare", {"plain_norms": True}, MOCO),
    "lightly": ("lightly", {}, ("moco", "simclr")),
    "lightly-train": ("lightly_train", {}, ("simclr",)),
    "2020": ("way_of_2020", {}, MOCO),
    "commit": ("of_commit", {}, METHODS),
}
DEFAULT = ("ours", "bare", "bare-plain-norms", "lightly", "lightly-train", "2020")
PEERS = {"lightly": "lightly", "lightly-train": "lightly_train"}  # what must be importable


def missing(python: Path, peer: str) -> bool:
    """Can the peers' interpreter not import a peer?"""
    code = "import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)"
    command = [str(python), "-c", code, PEERS[peer]]
    return not python.is_file() or subprocess.run(command).returncode != 0


def row_of(name: str, rounds: list[Figures], ours: list[Figures]) -> Figures:
    """The subject's figures over the rounds, and ours over them."""
    if "failed" in rounds[-1]:
        return {"subject": name, "failed": rounds[-1]["failed"].splitlines()[-1:]}
    row = {key: rounds[0][key] for key in ("dtype", "libraries") if key in rounds[0]}
    unused = {"file_mib"} | ({"peak_memory_mib"} if name == "commit" else set())
    rounds = [{k: v for k, v in figures.items() if k not in unused} for figures in rounds]
    row |= spreads(rounds)
    if name != "ours" and ours and "failed" not in ours[-1]:
        for key in ("images_per_second", "peak_memory_mib"):
            if key in rounds[0]:
                row[f"ours_over_theirs_{key}"] = ratios(ours, rounds, key)
    return {"subject": name, **row}


def compare(size: int, method: str, names: list[str], arguments: Any, settings: Figures) -> Any:
    """A row for each subject of one method at one size."""
    subjects = {}
    for name in names:
        function, more, methods = SUBJECTS[name]
        if method in methods:
            python = arguments.peers if name in PEERS else sys.executable
            given = {**settings, "method": method, "size": size, **more}
            given |= {"commit": arguments.commit} if name == "commit" else {}
            subjects[name] = partial(child, f"subjects:{function}", given, python=python)
    print(f"\n{method} at {size} px: {', '.join(subjects)}")
    found = in_turn(subjects, arguments.rounds)
    for name, rounds in found.items():
        yield {"size": size, "method": method, **row_of(name, rounds, found.get("ours", []))}


def measure_size(size: int, arguments: Any, device: str) -> list[Figures]:
    """All methods and subjects at one size."""
    batch = arguments.batch_size or usual_batch(size)
    steps = arguments.steps or (4 if device == "cpu" else 100)
    workers = processors() if arguments.workers is None else arguments.workers
    names = [n for n in arguments.subjects if n not in PEERS or not missing(arguments.peers, n)]
    for name in set(arguments.subjects) - set(names):
        print(f"skipped: {name} is not installed for {arguments.peers}; run `make peers`")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        # An epoch of ours is what is timed; loaders also need what they read ahead of the loop.
        write_sample(data / "epoch", batch * steps)
        write_sample(data / "ample" / "images", batch * (steps + 3 + 2 * max(workers, 8)))
        seconds = packed(data / "epoch", size, data / "cache", workers)
        rows: list[Figures] = [
            {"size": size, "packed_images": batch * steps, "packing_seconds": seconds}
        ]
        settings = {"data": folder, "arch": arguments.arch, "batch_size": batch, "steps": steps}
        settings |= {"queue": arguments.queue, "workers": workers, "device": device}
        for method in arguments.methods:
            rows += compare(size, method, names, arguments, settings)
    return rows


def main() -> None:
    arguments = arguments_of(
        __doc__,
        size={"type": int, "nargs": "+", "default": [64]},
        arch={"default": "resnet18"},
        methods={"nargs": "+", "choices": METHODS, "default": list(METHODS)},
        subjects={"nargs": "+", "choices": list(SUBJECTS), "default": list(DEFAULT)},
        steps={"type": int, "help": "timed steps; default: 4 on a CPU, else 100"},
        batch_size={"type": int, "help": "default: 256 up to 96 pixels, 64 beyond"},
        queue={"type": int, "default": 4096, "help": "MoCo's, of all subjects"},
        workers={"type": int, "help": "of loaders; default: one a processor"},
        commit={"help": "subject commit: the commit to compare with"},
        peers={"type": Path, "default": Path(".venv-peers/bin/python")},
    )
    if arguments.out and len(arguments.size) > 1:
        raise SystemExit("--out names one file: give one --size")
    if "commit" in arguments.subjects and not arguments.commit:
        raise SystemExit("--subjects commit: give --commit, such as HEAD~1")
    device = pick_device(arguments.device)
    for size in arguments.size:
        rows = measure_size(size, arguments, device.type)
        kind = "" if arguments.arch == "resnet18" else f"-{arguments.arch}"
        out = arguments.out or RESULTS / f"pretraining-{device.type}-{size}{kind}.json"
        write_figures(out, rows, device)


if __name__ == "__main__":
    main()
