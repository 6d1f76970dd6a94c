"""Lists the files of a folder, with an index in the cache that saves listing a large set at each start.

A folder's modification time moves when a file in it is added, removed or renamed. So a later run lists
only those folders whose times have changed.
"""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import TypedDict

from mixco.runtime.errors import UserError
from mixco.runtime.files import replacing, shown

FORMAT = 1  # part of the key: raise it when the same folder is indexed differently

# A second change within one tick of the file system's clock does not move the time; FAT has the longest
# tick, two seconds. So a folder that changed this recently is listed again the next time.
SETTLED_NS = 3_000_000_000


class Folder(TypedDict):
    times: list[int]
    """Of modification and of change, in ns; empty if the folder changed too recently."""
    folders: list[str]
    files: list[str]


def list_files(root: Path, endings: tuple[str, ...], cache: Path | None) -> list[str]:
    """The files below root with one of the endings, as sorted paths with slashes.

    Hidden files and folders are left out, and links to folders are not followed. A folder that does not
    exist, or vanishes meanwhile, counts as empty. Raises UserError for a folder that cannot be listed:
    nobody should train on a part of the images unknowingly.

    cache: folder of the index; None for none. A damaged index is rebuilt; one that cannot be written
    costs only the time to list again.
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
        folder = _list_folder(root / name, known.get(name), endings)
        found[name] = folder
        waiting += [f"{name}/{below}" if name else below for below in folder["folders"]]
    if cache is not None and found != known:
        _save(path, found)
    return sorted(
        f"{name}/{file}" if name else file
        for name, folder in found.items()
        for file in folder["files"]
    )


def _list_folder(path: Path, known: Folder | None, endings: tuple[str, ...]) -> Folder:
    """The content of one folder; `known`, if the folder has not changed since."""
    result: Folder = {"times": [], "folders": [], "files": []}
    try:
        state = path.stat()  # before listing: a change in between moves the time past this one
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
