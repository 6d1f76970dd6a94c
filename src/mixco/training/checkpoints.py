"""Checkpoints, and resuming a run that was stopped, at whatever moment that was.

A checkpoint holds weights, momentum copy, queue, optimiser, and the sums of an epoch that is not over.
Random numbers need no place in it: each step draws its own from the seed and the step's number
(runtime/seeding.py).
"""

import re
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixco.data.run_images import known_images, same_place
from mixco.encoders.checkpoint import save_checkpoint
from mixco.runtime.device import computes_bfloat16, device_kind
from mixco.runtime.errors import UserError, of_the_machine, out_of_memory
from mixco.runtime.locks import LockHeld, locked
from mixco.runtime.run_folder import new_run_folder, read_config, read_results, write_json
from mixco.settings.parse import affects, with_unsaid

LOCK = ".run.lock"
TEMPORARY = re.compile(r"\.\d+-")  # of files.replacing
# What a checkpoint holds at least.
STATE = {
    **dict.fromkeys(("method", "optimizer", "sums", "data"), dict),
    "step": int,
    "records": list,
    "time": tuple,
}
# Settings that are places, and those of them by which the images are found.
IMAGES = {"data.data", "data.data_path", "data.labels_from"}
PLACES = IMAGES | {"data.cache", "model.init", "run.out"}
# Settings whose "auto" is chosen when a run begins.
CHOSEN = {"data.loading", "method.mix_loss", "run.precision", "run.memory_format"}
ROLLING = 2  # the newest checkpoints, kept beside those of --keep-every


def open_run(
    folder: Path, config: dict[str, Any], say: Callable[[str], None]
) -> AbstractContextManager[object]:
    """Make the run folder, or open one that holds a run with the same settings, and lock it.

    config: the resolved settings, as config.json has them. Settings that have changed and may change are
        said. The images of a run that knows them are compared elsewhere (data/run_images.py), and so
        is the teacher, by its weights (training/run.py).

    Returns the held lock, for a `with` that ends it; so does the end of the process. While it is held,
    other processes are refused.
    Raises UserError when the folder holds something else or another run, or is in use.
    """
    begun = begun_config(folder)
    if begun is None:
        if not _barely_begun(folder):
            new_run_folder(folder)
        lock = _lock(folder)
        write_json(folder / "config.json", config)
        return lock
    if written_by_0_1(begun):
        optimisation = begun.setdefault("optimisation", {})
        optimisation["micro_batches"] = optimisation.pop("pieces", 1)
    compared = {"method.teacher"} | (IMAGES if known_images(folder) else set())
    changed = [each for each in differences(begun, config) if each[0] not in compared]
    kinds = affects()
    fatal = [text for key, text in changed if kinds.get(key, "learning") == "learning"]
    if fatal:
        raise UserError(
            f"--out {folder} holds a run with other settings: {'; '.join(fatal)}. Give the settings "
            "that it began with to resume it, or another --out"
        )
    lock = _lock(folder)
    for key, text in changed:
        if kinds[key] != "nothing":
            say(f"changed since the run began: {text}")
    return lock


def begun_config(folder: Path) -> dict[str, Any] | None:
    """The settings that a run in the folder began with; None where there is no run.

    Raises UserError for a config.json that is damaged or of something else.
    """
    if not (folder / "config.json").exists():
        return None
    config = with_unsaid(read_config(folder))
    run = config["run"]
    if run.get("precision") == "auto":
        kind = device_kind(str(run.get("device")))
        run["precision"] = "bfloat16" if computes_bfloat16(kind) else "float32"
    return config


def written_by_0_1(config: dict[str, Any]) -> bool:
    """Is it a config.json of version 0.1? That said pieces where this one says micro_batches."""
    return "micro_batches" not in config.get("optimisation", {})


def is_finished(folder: Path) -> bool:
    """Does the folder hold a run that came to its end?"""
    results = folder / "results.json"
    return (folder / "encoder.safetensors").exists() and (
        results.exists() and "pretrain" in read_results(results)
    )


def as_begun(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The config, its unset settings (None, or some with "auto") as they were when the run began.

    The images, the device, memory and disk may have changed since, and with them the choice.

    Raises UserError for a run that cannot be resumed.
    """
    begun = begun_config(folder)
    if begun is not None and written_by_0_1(begun) and not is_finished(folder):
        raise UserError(
            f"--out {folder} holds a run of mixco 0.1, which this version cannot resume; finish it with "
            "mixco 0.1, or give another --out"
        )
    return _filled(config, begun or {}, "", affects())


def left_out_before(folder: Path) -> dict[str, str]:
    """Shown name -> reason, of the files that the run in the folder left out when it began.

    It goes on without them, also where they can be read by now: its batches would be others.
    """
    try:
        lines = (folder / "unreadable.txt").read_text("utf-8", "surrogateescape").split("\n")
    except OSError:
        return {}
    return (
        dict(line.split("\t", 1) for line in lines if "\t" in line) if checkpoints(folder) else {}
    )


def _filled(
    config: dict[str, Any], begun: dict[str, Any], prefix: str, kinds: Mapping[str, str]
) -> dict[str, Any]:
    result = dict(config)
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            section = begun.get(key)
            section = section if isinstance(section, dict) else {}
            result[key] = _filled(value, section, f"{name}.", kinds)
        elif (value is None and kinds[name] == "learning") or (value == "auto" and name in CHOSEN):
            result[key] = begun.get(key, value)
    return result


def _barely_begun(folder: Path) -> bool:
    """Does it hold only what a process leaves that was killed before it wrote config.json?"""
    inside = folder / "checkpoints"
    return inside.is_dir() and not any(inside.iterdir()) and not any(_of_others(folder))


def _of_others(folder: Path) -> Iterator[Path]:
    ours = {"checkpoints", LOCK}
    return (p for p in folder.iterdir() if p.name not in ours and not TEMPORARY.match(p.name))


def _lock(folder: Path) -> AbstractContextManager[object]:
    held = ExitStack()
    try:
        held.enter_context(locked(folder / LOCK, seconds=0))
    except LockHeld:
        raise UserError(
            f"--out {folder}: another process is training there; wait for it, stop it, or give "
            "another --out"
        ) from None
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror})") from None
    for place in (folder, folder / "checkpoints"):
        for path in place.iterdir():
            if TEMPORARY.match(path.name):  # half written, by a process that was killed
                path.unlink()
    return held


def differences(
    before: dict[str, Any], now: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """The settings in which two configs differ: the dotted name, and the change in words.

    Two spellings of one place are no difference.
    """
    for key in sorted(before.keys() | now.keys()):
        old, new, name = before.get(key), now.get(key), f"{prefix}{key}"
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{name}.")
        elif old != new and not (name in PLACES and _one_place(old, new)):
            option = name.rpartition(".")[2].replace("_", "-")
            yield name, f"--{option} was {old}, is {new}"


def _one_place(old: Any, new: Any) -> bool:
    """The old one is from a file, and may be anything."""
    return isinstance(old, str) and isinstance(new, str) and same_place(old, new)


def save_step(folder: Path, step: int, state: dict[str, Any], *, keep: bool) -> None:
    """Save the state after `step` steps. The last two stay, and those to be kept.

    Raises UserError when it cannot be written; the checkpoints before it are then still there.
    """
    path = folder / "checkpoints" / f"step-{step:08d}{'-kept' if keep else ''}.pt"
    try:
        save_checkpoint(path, state)
    except (OSError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        if not path.parent.is_dir():
            raise UserError(
                f"{path.parent}: the folder is gone, so step {step} cannot be saved; put it back where "
                "it was and start the same command again, which resumes from what is in it"
            ) from None
        # On a full disk torch's writer raises a RuntimeError whose text only counts bytes.
        reason = getattr(error, "strerror", None) or "not all of it: the disk is full"
        raise UserError(
            f"{path}: cannot be written ({reason}); the checkpoints before it are whole. Make room "
            "and start the same command again, which resumes from them"
        ) from None
    rolling = [p for p in checkpoints(folder) if not p.stem.endswith("-kept")]
    for old in rolling[:-ROLLING]:
        old.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, the oldest first."""
    return sorted((folder / "checkpoints").glob("step-*.pt"), key=lambda p: p.stem.split("-")[1])


def newest_state(folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The content of the newest whole checkpoint, on the CPU; None where a run has none yet.

    A damaged one is put aside with a warning, and the one before it is taken. Raises UserError when all
    are damaged.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip()  # reads everything against its checksums
            if damaged is None:
                state = torch.load(path, map_location="cpu", weights_only=True)
                if _is_of_a_run(state):
                    return dict(state)
                damaged = "it holds something else"
        except Exception as error:  # damaged files raise many kinds of errors
            if of_the_machine(error):  # too little memory, or the disk: the file may be whole
                raise
            damaged = str(error).splitlines()[0] if str(error) else type(error).__name__
        aside = path.replace(path.with_suffix(".damaged"))
        say(f"warning: {aside} is damaged ({damaged}) and put aside; the one before it is taken")
    if found:
        raise UserError(
            f"{folder}: all {len(found)} checkpoints are damaged; restore one of them, or begin anew "
            "with another --out"
        )
    return None


def _is_of_a_run(state: Any) -> bool:
    return (
        isinstance(state, dict)
        and all(isinstance(state.get(key), kind) for key, kind in STATE.items())
        and {"name", "images"} <= state["data"].keys() <= {"name", "images", "digest"}
        and len(state["time"]) == 3
    )


def restore(method: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state's weights and optimiser. Raises UserError when they are of another network."""
    try:
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        if of_the_machine(error):
            raise
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"the checkpoint after step {state['step']} does not fit this run's network ({reason}); "
            "remove it from checkpoints/, and the one before it is taken, or give another --out"
        ) from None


class Due:
    """Is it time for a checkpoint? minutes, steps: between two; zero means never."""

    def __init__(self, minutes: float, steps: int) -> None:
        self.minutes, self.steps = minutes, steps
        self.last = time.monotonic()

    def __call__(self, step: int) -> bool:
        by_time = self.minutes > 0 and time.monotonic() - self.last >= 60 * self.minutes
        return by_time or self.by_steps(step)

    def by_steps(self, step: int) -> bool:
        return self.steps > 0 and step % self.steps == 0

    def saved(self) -> None:
        self.last = time.monotonic()


@contextmanager
def signals_noticed() -> Iterator[Callable[[], int]]:
    """Inside, a first SIGINT, SIGTERM or SIGHUP is only noted; a second one acts at once, as usual.

    SIGHUP comes when the terminal is closed; Windows has none. A signal that is ignored, as SIGHUP is
    under nohup, stays ignored.

    Yields a function that returns the signal that has come, 0 for none. Signals reach only the main
    thread; elsewhere the function always returns 0.
    """
    came = 0
    if threading.current_thread() is not threading.main_thread():
        yield lambda: came
        return
    before: dict[int, Any] = {}

    def note(number: int, _: Any) -> None:
        nonlocal came
        came = number
        put_back()

    def put_back() -> None:
        while before:
            number, handler = before.popitem()
            signal.signal(number, handler)

    names = ("SIGINT", "SIGTERM", "SIGHUP")
    for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
        # A shell lets what it starts in the background ignore Ctrl-C; that stays so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, note)
    try:
        yield lambda: came
    finally:
        put_back()
