"""The files of a folder, kept in the cache, so that a large set need not be listed at each start.

A folder's time of change moves when a file comes, goes or is renamed in it. So a later run asks each
folder for its times and lists anew only those that changed.
"""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import TypedDict

from mixco.runtime.errors import UserError
from mixco.runtime.files import replacing, shown

FORMAT = 1  # part of the key: raise it whenever the same folder would be indexed differently

# A change within the same tick of the file system's clock would leave the time as it was; FAT's tick
# is the longest, of two seconds. What changed just now is listed again the next time.
SETTLED_NS = 3_000_000_000


class Folder(TypedDict):
    times: list[int]
    """Of modification and of change, in ns; empty where they cannot be relied on."""
    folders: list[str]
    files: list[str]


def list_files(root: Path, endings: tuple[str, ...], cache: Path | None) -> list[str]:
    """The files below root with one of the endings, as sorted paths with slashes.

    Hidden files and folders are left out, links to folders are not followed, and what is not there, or
    vanishes meanwhile, is taken as empty. Raises UserError for a folder that cannot be listed: nobody is
    to train on a part of the images without knowing.

    cache: where the index is kept; None for none. A damaged index is built anew; one that cannot be
    written costs only the time to list again.
    """
    known: dict[str, Folder] = {}
    if cache is not None:
        key = hashlib.sha256(repr((FORMAT, str(root.resolve()), endings)).encode())
        path = cache / f"index-{key.hexdigest()[:16]}.json"
        known = _load(path)
    found: dict[str, Folder] = {}
    waiting = [""]
    while waiting:
        name = waiting.pop()
        folder = _look(root / name, known.get(name), endings)
        found[name] = folder
        waiting += [f"{name}/{below}" if name else below for below in folder["folders"]]
    if cache is not None and found != known:
        _save(path, found)
    return sorted(
        f"{name}/{file}" if name else file
        for name, folder in found.items()
        for file in folder["files"]
    )


def _look(path: Path, known: Folder | None, endings: tuple[str, ...]) -> Folder:
    """What lies in one folder: as known, where its times are."""
    result: Folder = {"times": [], "folders": [], "files": []}
    try:
        state = (
            path.stat()
        )  # before it is listed: a change in between moves the time beyond this one
        times = [state.st_mtime_ns, state.st_ctime_ns]
        if known is not None and known["times"] == times:
            return known
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if not entry.is_symlink():
                        result["folders"].append(entry.name)
                elif entry.name.lower().endswith(endings):
                    result["files"].append(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return {"times": [], "folders": [], "files": []}
    except OSError as error:
        raise UserError(
            f"{shown(str(path))}: cannot be listed ({error.strerror}); make it readable, or move it out "
            "of the images' folder"
        ) from None
    if time.time_ns() - max(times) > SETTLED_NS:
        result["times"] = times
    return result


def _load(path: Path) -> dict[str, Folder]:
    """Nothing where there is no index or a damaged one."""
    try:
        digest, _, text = path.read_text("ascii").partition("\n")
    except (OSError, ValueError):
        return {}
    if digest != hashlib.sha256(text.encode()).hexdigest():
        return {}
    folders: dict[str, Folder] = json.loads(text)
    return folders


def _save(path: Path, folders: dict[str, Folder]) -> None:
    text = json.dumps(folders)  # all ASCII: whatever else is in a name is escaped
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}", "ascii")
    except OSError:
        pass  # without the index the next start is as slow as this one, and as right
