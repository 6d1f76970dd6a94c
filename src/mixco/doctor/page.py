"""What `mixco doctor` prints: in a terminal with colour, in a log file without."""

import textwrap
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

from mixco.methods import run_name
from mixco.runtime.files import shown
from mixco.settings.defaults import memory_text

NAMES_SHOWN = 3


def show(found: dict[str, Any], console: Console | None = None) -> None:
    """Print the page; found: see doctor/doctor.py."""
    console = console or Console(highlight=False)
    console.print(Text(f"Doctor: {shown(found['data'])}", style="bold"))
    _section(console, "Images", _images(found))
    if "config" in found:
        _section(console, "The run that would begin", _run(found))
        machine = f"On this machine ({found['device']}, {found['precision']})"
        _section(console, machine, _needs(found))
    console.print()
    if found["unusable"]:
        _hanging(console, "", f"The run would be refused: {found['unusable']}", "bold red")
    count = len(found["warnings"])
    if count:
        console.print(Text(f"{count} warning{'s' if count > 1 else ''}", style="bold yellow"))
    elif not found["unusable"]:
        console.print(Text("Nothing to warn of.", style="bold green"))
    for warning in found["warnings"]:
        _hanging(console, "  ! ", warning["what"])
        _hanging(console, "    -> ", warning["remedy"], "cyan")


def _section(console: Console, title: str, rows: Iterable[tuple[str, str]]) -> None:
    console.print()
    console.print(Text(title, style="bold"))
    lines = list(rows)
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        _hanging(console, f"  {name:{width}}  ", text)


def _hanging(console: Console, name: str, text: str, style: str = "") -> None:
    """A name, and beside it a text in as many lines as it takes; no word, such as a path, is broken."""
    wrapped = textwrap.wrap(
        shown(text),
        max(20, console.width - len(name)),
        break_long_words=False,
        break_on_hyphens=False,
    )
    for number, line in enumerate(wrapped):
        beside = Text(name if number == 0 else " " * len(name), style="dim")
        console.print(beside + Text(line, style=style), soft_wrap=True)


def _images(found: dict[str, Any]) -> Iterable[tuple[str, str]]:
    files = found["files"]
    all_headers = "all" if found["headers"] == files else f"{found['headers']:,}"
    decoded = "all" if found["decoded"] == files else f"{found['decoded']:,}"
    yield (
        "files",
        f"{files:,}, {memory_text(found['bytes'])}; headers of {all_headers}, {decoded} decoded",
    )
    unreadable = [f"{each['file']}: {each['reason']}" for each in found["unreadable"]]
    yield "unreadable", _some(found["unreadable_files"], unreadable)
    for note in found["notes"]:
        yield "note", note
    sizes = found["sizes"]
    if sizes:
        smallest, middle, largest = (
            " x ".join(map(str, sizes[key])) for key in ("smallest", "median", "largest")
        )
        span = f"median {middle}, from {smallest} to {largest}"
        yield "width, height", f"all {middle}" if smallest == largest else span
        aspect = sizes["aspect"]
        yield "shape", f"median {aspect['median']:g} : 1, at most {aspect['largest']:g} : 1"
    kinds = found["kinds"]
    shares = ", ".join(f"{kind} {_share(n, sum(kinds.values()))}" for kind, n in kinds.items())
    grey = _share(found["grey"], found["decoded"])
    yield "channels", f"{shares}; {grey} of those decoded show no colour"
    copies, near = found["copies"], found["near_copies"]
    groups = [" = ".join(group[:2]) for group in copies["groups"]]
    yield "copies", _some(copies["files"], groups, copies["compared"], files)
    pairs = [" ~ ".join(pair) for pair in near["pairs"]]
    yield "near-copies", _some(near["files"], pairs, near["compared"], files)
    if leaks := found["test_in_train"]:
        pairs = [" = ".join(pair) for pair in leaks["pairs"]]
        yield "test in train", _some(leaks["files"], pairs, leaks["compared"], leaks["of"])
    classes = found["classes"]
    if classes:
        (smallest, fewest), (largest, most) = classes["smallest"], classes["largest"]
        sides = f"of {most:,} files each"
        if fewest != most:
            sides = f"of {fewest:,} ({smallest}) to {most:,} files ({largest})"
        yield classes["are"], f"{classes['number']:,}, {sides}"


def _run(found: dict[str, Any]) -> Iterable[tuple[str, str]]:
    config = found["config"]
    method, optimisation = config["method"], config["optimisation"]
    name = run_name(method["method"], method["mix"])
    yield (
        "what",
        f"{name}, {config['model']['arch']} at {config['data']['size']} px, {optimisation['epochs']} "
        f"epochs, {found['steps']:,} steps of {optimisation['batch_size']}, {config['data']['loading']}",
    )
    for choice in found["choices"]:
        yield choice["option"], f"{choice['value']}: {choice['why']}"


def _needs(found: dict[str, Any]) -> Iterable[tuple[str, str]]:
    trial, memory, disk = found["trial"], found["memory"], found["disk"]
    if trial:
        yield (
            "speed",
            f"{trial['images_per_second']:,.0f} images/s, {trial['slowest']:,.0f} to "
            f"{trial['fastest']:,.0f} in {trial['steps']} steps; waits for images "
            f"{trial['data_wait']:.0%} of the time",
        )
        packing = found["packing_seconds"]
        before = f", and about {duration(packing)} to pack them first" if packing else ""
        yield "time", f"about {duration(trial['seconds_to_the_end'])} to the end{before}"
    else:
        yield "speed", "not tried"
    step = (
        f"{memory_text(memory['peak'])} at its peak"
        if memory["peak"]
        else (f"some {memory_text(memory['step_estimated'])} a step")
    )
    images = (
        f", packed images {memory_text(memory['packed_images'])}" if memory["packed_images"] else ""
    )
    yield "memory", f"{step}{images}, of {memory_text(memory['of_device'])}"
    packing = (
        f"packing {memory_text(disk['packing'])} of {memory_text(disk['packing_free'])} free, "
        if disk["packing"]
        else ""
    )
    yield (
        "disk",
        f"{packing}checkpoints {memory_text(disk['checkpoints'])} of "
        f"{memory_text(disk['checkpoints_free'])} free",
    )


def duration(seconds: float) -> str:
    """In the unit that fits."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def _share(count: int, of: int) -> str:
    share = count / max(1, of)
    return f"{share:.1%}" if 0 < share < 0.1 or 0.9 < share < 1 else f"{share:.0%}"


def _some(count: int, names: list[str], compared: int | None = None, of: int = 0) -> str:
    """A number, among how many, and the first few of them."""
    among = f" among {compared:,} compared" if compared is not None and compared < of else ""
    if not count:
        return f"none{among}"
    more = ", ..." if len(names) > NAMES_SHOWN else ""
    return f"{count:,}{among}: {', '.join(names[:NAMES_SHOWN])}{more}"
