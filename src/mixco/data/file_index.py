"""Lists the images of a folder, with an index in the cache that saves listing a large set at each start.

A folder's modification time moves when a file in it is added, removed or renamed. So a later run lists
only those folders whose times have changed.
"""

import hashlib
import json
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypedDict

from mixco.runtime.errors import UserError
from mixco.runtime.files import replacing, shown

FORMAT = 2  # part of the key: raise it when the same folder is indexed differently

# A second change within one tick of the file system's clock does not move the time; FAT has the longest
# tick, two seconds. So a folder that changed this recently is listed again the next time.
SETTLED_NS = 3_000_000_000

# Thumbnails, deleted files and snapshots of network disks and systems, in lower case.
LITTER = frozenset(
    {
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin"),
        *("system volume information", "__macosx", "lost+found"),
    }
)
RUNS = "folders of runs"
LOOPS = "links to a folder around them"


class Folder(TypedDict):
    state: list[int]
    """Times of modification and of change, in ns, and the inode; empty if it must be listed again."""
    folders: list[str]
    files: list[str]
    aside: dict[str, int]
    """Counts of what is not used: other files by their ending, skipped folders by their name."""


class Listing(NamedTuple):
    """What lies below a folder."""

    files: list[str]
    """Sorted paths with slashes."""
    aside: dict[str, dict[str, int]]
    """Folder -> what is left aside in it -> how many."""

    def left_aside(self, below: str = "") -> Counter[str]:
        """Counts of what is not used: other files by their ending, skipped folders by their name.

        below: only in this folder.
        """
        counts: Counter[str] = Counter()
        for name, aside in self.aside.items():
            if not below or f"{name}/".startswith(f"{below}/"):
                counts.update(aside)
        return counts


def list_files(root: Path, endings: tuple[str, ...], cache: Path | None) -> Listing:
    """The files below root with one of the endings, and what else there is.

    Links to folders are followed. Hidden files and folders do not count. Left aside are the litter of
    network disks, folders of runs (their pictures are no photographs), and links that lead back to a
    folder around them. A folder that does not exist, or vanishes meanwhile, counts as empty.

    cache: folder of the index; None for none. A damaged index is rebuilt; one that cannot be written
    costs only the time to list again.

    Raises UserError for a folder that cannot be listed: nobody should train on a part of the images
    unknowingly.
    """
    known: dict[str, Folder] = {}
    if cache is not None:
        key = hashlib.sha256(repr((FORMAT, str(root.resolve()), endings)).encode())
        path = cache / f"index-{key.hexdigest()[:16]}.json"
        known = _load(path)
    found: dict[str, Folder] = {}
    loops: Counter[str] = Counter()
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        name, around = waiting.pop()
        with _listing(root / name):
            state = _folder_state(root / name)
            if state is None:
                continue
            place = (state.st_dev, state.st_ino)
            if place in around:
                loops[name.rpartition("/")[0]] += 1
                continue
            folder = _list_folder(root / name, state, known.get(name), endings, top=not name)
        found[name] = folder
        around = around | {place}
        waiting += [(f"{name}/{below}" if name else below, around) for below in folder["folders"]]
    if cache is not None and found != known:
        _save(path, found)
    files = [
        f"{name}/{file}" if name else file
        for name, folder in found.items()
        for file in folder["files"]
    ]
    aside = {name: folder["aside"] for name, folder in found.items() if folder["aside"]}
    for name, count in loops.items():
        aside[name] = {**aside.get(name, {}), LOOPS: count}
    return Listing(sorted(files), aside)


@contextmanager
def _listing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{shown(str(path))}: cannot be listed ({error.strerror}); make it readable, or move it out "
            "of the images' folder"
        ) from None


def _folder_state(path: Path) -> os.stat_result | None:
    """None where there is no such folder. Raises OSError."""
    try:
        state = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return state if stat.S_ISDIR(state.st_mode) else None


def _list_folder(
    path: Path, state: os.stat_result, known: Folder | None, endings: tuple[str, ...], *, top: bool
) -> Folder:
    """The content of one folder; `known`, if the folder has not changed since. Raises OSError.

    state: from before the listing, since a change in between moves the time past this one.
    top: is it the folder that the user gave? Then it is listed whatever it is.
    """
    now = [state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    if known is not None and known["state"] == now:
        return known
    folders, names, settled = [], [], True
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                    continue
                names.append(entry.name)
                # A link to nothing may become one to a folder, which does not move this one's time.
                settled = settled and not (entry.is_symlink() and not Path(entry.path).exists())
    except FileNotFoundError:
        return Folder(state=[], folders=[], files=[], aside={})
    files = [name for name in names if name.lower().endswith(endings)]
    aside = Counter(
        Path(name).suffix.lower() or "no ending"
        for name in names
        if not name.lower().endswith(endings)
    )
    litter = [name for name in folders if name.lower() in LITTER]
    if "report" in folders and "report.html" in names:
        litter.append("report")  # the pictures of `mixco report`
    aside.update(f"folders {name}" for name in litter)
    folders = [name for name in folders if name not in litter]
    if not top and _is_of_a_run({*folders, *names}):
        folders, files, aside = [], [], Counter({RUNS: 1})
    settled = settled and time.time_ns() - max(now[:2]) > SETTLED_NS
    return Folder(state=now if settled else [], folders=folders, files=files, aside=dict(aside))


def _is_of_a_run(names: set[str]) -> bool:
    """Is it the folder of a run, of the demo, or of an evaluation?"""
    pictures = {"views.png", "neighbours.png", "comparison.png"}
    return {"config.json", "checkpoints"} <= names or (
        "results.json" in names and not pictures.isdisjoint(names)
    )


def _load(path: Path) -> dict[str, Folder]:
    """Empty if there is no index, or a damaged one."""
    try:
        digest, _, text = path.read_text("ascii").partition("\n")
    except (OSError, ValueError):
        return {}
    if digest != hashlib.sha256(text.encode()).hexdigest():
        return {}
    folders: dict[str, Folder] = json.loads(text)
    return folders


def _save(path: Path, folders: dict[str, Folder]) -> None:
    text = json.dumps(folders)  # all ASCII; other characters are escaped
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}", "ascii")
    except OSError:
        pass  # without the index the next start is only slower
