"""Your own images: one folder or several, lists of paths, patterns, shards; taken together.

The names of images from several places are paths below the folder that all of them lie in.
"""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import NamedTuple

from mixco.data.datasets import (
    DATASETS,
    Data,
    Wanted,
    is_hub,
    places_in,
    suggestion,
)
from mixco.data.datasets.folders import (
    labelled_folder,
    split_folder,
    unlabelled_folder,
    whole_folder,
)
from mixco.data.datasets.sharded import ENDINGS, list_sharded, shards_in
from mixco.data.formats import ARRAYS, endings
from mixco.data.image_list import ImageList
from mixco.runtime.errors import UserError
from mixco.runtime.files import replacing, shown

LISTS = (".txt", ".lst", ".list")
HASHED = 4096  # bytes at the end of a file, which tell most pictures of one length apart
COPIES = 1  # part of the key: raise it when other files count as copies


def list_places(name: str, data: Data, wanted: Wanted, cache: Path | None = None) -> ImageList:
    """The wanted images of folders, lists, patterns and shards.

    name: of the set. data: folders, images, shards, patterns (`*`, `{000..099}`), and text files that
        list such, one a line, relative to the list.
    cache: see `list_images`.

    Images with the same bytes in two places count once, whatever their names are.

    Raises UserError for what is not there, for shards beside images, and where labels are missing.
    """
    folders, images, files = expand(places_in(data))
    shards = {folder: below for folder in folders if (below := shards_in(folder, cache))}
    folders = [folder for folder in folders if folder not in shards]
    files += [shard for below in shards.values() for shard in below]
    if files and (folders or images):
        raise UserError(
            f"--data: {(folders or images)[0]} holds images and {files[0]} is a shard; give either "
            "images or shards"
        )
    if files:
        return list_sharded(name, _once(files), wanted, cache)
    split = wanted.split
    if column := wanted.labels.in_shards:
        raise UserError(
            f"--label-column {column} is a column of a table or of shards, and --data has "
            "folders or images; leave it out, or give a table by --labels-from"
        )
    if images and split in ("train", "test"):
        raise UserError(
            f"{shown(images[0])}: is named alone, so it has neither split nor label; give folders "
            "with train/<class>/... and test/<class>/..., or --labels-from with a table"
        )

    def of_folder(folder: Path) -> ImageList:
        if split == "all":
            return whole_folder(folder, cache)
        if split == "pretrain":
            return unlabelled_folder(folder, cache)
        if not wanted.labelled:
            return split_folder(folder, split, cache)
        return labelled_folder(
            folder,
            split,
            cache,
            train_folder=wanted.train_folder,
            test_folder=wanted.test_folder,
        )

    parts = [of_folder(folder) for folder in folders]
    if len(parts) == 1 and not images:
        return parts[0]
    if images:
        parts.append(_list_of(images))
    return join(f"{name}/{split}" if split != "all" else name, parts, cache)


class Places(NamedTuple):
    """What --data names, sorted by full path; each once."""

    folders: list[Path]
    images: list[str]
    """Full paths; a list may name a million, of which a Path each would take seconds."""
    shards: list[Path]


def expand(data: Sequence[str]) -> Places:
    """The folders and files that paths, patterns and lists stand for.

    Images that a list names need not be there.

    Raises UserError for what stands for nothing, or for a file of another kind.
    """
    found = Places([], [], [])
    for text in data:
        where = f"--data {text}"
        if Path(text).is_file() and text.lower().endswith(LISTS):
            _read_list(Path(text), found)
        elif Path(text).exists():
            _add(Path(text), where, found)
        elif _is_pattern(text):
            _add_matches(text, Path(), where, found)
        elif text in DATASETS or is_hub(text):
            raise UserError(f"{where}: a data set that has a name is given alone")
        else:
            raise UserError(f"{where}: neither a folder nor a known data set; {suggestion(text)}")
    # Links are followed for folders only: a list may name a million images on a network disk.
    folders = {folder.resolve(): folder for folder in reversed(_once(found.folders))}
    return Places(_once(folders.values()), sorted(set(found.images)), _once(found.shards))


def _once(paths: Iterable[Path]) -> list[Path]:
    by_name = {_absolute(path): path for path in paths}
    return [by_name[name] for name in sorted(by_name)]


def _read_list(path: Path, found: Places) -> None:
    """Add what a list names; a line that begins with # is a comment."""
    try:
        text = path.read_text("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UserError(f"--data {path}: cannot be read ({error.strerror})") from None
    if "\0" in text:
        raise UserError(f"--data {path}: is not text in UTF-8; save the list as such")
    lines = {number: line.strip() for number, line in enumerate(text.split("\n"), 1)}
    lines = {n: line for n, line in lines.items() if line and not line.startswith("#")}
    if not lines:
        raise UserError(f"--data {path}: the list is empty; expected a path in each line")
    base, images = _absolute(path.parent), _images()
    for number, line in lines.items():
        where = f"{path}, line {number}"
        if line.lower().endswith(images) and not _is_pattern(line):
            found.images.append(_absolute(os.path.join(base, line)))  # noqa: PTH118
        elif line.lower().endswith(LISTS):
            raise UserError(f"{where}: names the list {line}; a list cannot name others")
        elif (path.parent / line).exists():
            _add(path.parent / line, where, found)
        else:
            _add_matches(line, path.parent, where, found)


def _add_matches(text: str, base: Path, where: str, found: Places) -> None:
    """Add what a pattern stands for, relative to `base`; files of other kinds are left aside."""
    patterns, lists = expand_braces(text), text.lower().endswith(LISTS)
    wanted = LISTS if lists else (*_images(), *ENDINGS)
    for pattern in patterns:
        exact = (base / pattern).exists()
        names = [pattern] if exact else glob(pattern, root_dir=base, recursive=True)  # noqa: PTH207
        names = [n for n in names if n.lower().endswith(wanted) or (base / n).is_dir()]
        if not names:
            raise UserError(f"{where}: no folder, image or shard {shown(pattern)}; check the path")
        for name in names:
            if lists:
                _read_list(base / name, found)
            else:
                _add(base / name, where, found)
    if not patterns:
        raise UserError(f"{where}: the numbers in braces must rise, as in {{000..099}}")


def _add(path: Path, where: str, found: Places) -> None:
    name = path.name.lower()
    if path.is_dir():
        found.folders.append(path)
    elif name.endswith(ENDINGS):
        found.shards.append(path)
    elif name.endswith(_images()):
        found.images.append(_absolute(path))
    else:
        raise UserError(
            f"{where}: {shown(path.name)} is neither a folder nor an image; expected a folder, an "
            f"image, a shard ({', '.join(ENDINGS)}, not compressed), or a list ({', '.join(LISTS)})"
        )


def _images() -> tuple[str, ...]:
    return (*endings(), *ARRAYS)


def _is_pattern(text: str) -> bool:
    return re.search(r"[*?[{]", text) is not None


def expand_braces(pattern: str) -> list[str]:
    """WebDataset's numbers in braces: "a-{08..10}.tar" -> "a-08.tar", "a-09.tar", "a-10.tar"."""
    numbers = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if numbers is None:
        return [pattern]
    first, last = numbers.groups()
    begin, end = pattern[: numbers.start()], pattern[numbers.end() :]
    return [
        each
        for number in range(int(first), int(last) + 1)
        for each in expand_braces(f"{begin}{number:0{len(first)}}{end}")
    ]


def _list_of(images: list[str]) -> ImageList:
    """Images by their full paths."""
    top = Path(images[0]).anchor
    return ImageList("", Path(top), tuple(path[len(top) :] for path in images), None, ())


def _absolute(path: Path | str) -> str:
    """The full path with slashes; links in it are not followed."""
    return os.path.abspath(path).replace(os.sep, "/")  # noqa: PTH100


def join(name: str, parts: Sequence[ImageList], cache: Path | None = None) -> ImageList:
    """The images of several lists as one list, sorted by their paths.

    Each image is a file. A file that is in several lists belongs to the first of them. Images with the
    same bytes in two lists count once. There are labels if all lists have some; the classes of all are
    taken together.
    """
    labelled = all(part.labels is not None for part in parts)
    of_path: dict[str, tuple[int, str]] = {}
    for number, part in enumerate(parts):
        base = _absolute(part.root).rstrip("/")
        labels = part.labels if labelled and part.labels is not None else [0] * len(part.files)
        for file, label in zip(part.files, labels, strict=True):
            of_path.setdefault(f"{base}/{file}", (number, part.classes[label] if labelled else ""))
    root = _common({os.path.dirname(path) for path in of_path})  # noqa: PTH120
    paths = sorted(of_path)
    copies = _copies(paths, [of_path[path][0] for path in paths], cache) if len(parts) > 1 else {}
    kept = [path for path in paths if path not in copies]
    texts = [of_path[path][1] for path in kept]
    classes = tuple(sorted({each for part in parts for each in part.classes})) if labelled else ()
    index = {text: number for number, text in enumerate(classes)}
    notes = [note for part in parts for note in part.notes]
    if copies:
        copy, first = next(iter(copies.items()))
        notes.append(
            f"left out: {len(copies):,} copies of images in another place; the first is {shown(copy)}, "
            f"a copy of {shown(first)}"
        )
    below = len(root.as_posix().rstrip("/")) + 1
    return ImageList(
        name,
        root,
        tuple(path[below:] for path in kept),
        tuple(index[text] for text in texts) if labelled else None,
        classes,
        notes=tuple(notes),
    )


def _copies(paths: list[str], places: list[int], cache: Path | None) -> dict[str, str]:
    """Path -> an earlier path of another place with the same bytes.

    Files of one length are compared by their last bytes, and then by all. What was found is kept in the
    cache as long as no file changes.
    """
    states = [_state(path) for path in paths]
    key = hashlib.sha256(repr((COPIES, paths, places, states)).encode("utf-8", "surrogateescape"))
    kept = cache / f"copies-{key.hexdigest()[:16]}.json" if cache else None
    if kept is not None:
        with suppress(OSError, ValueError):
            found: dict[str, str] = json.loads(kept.read_text("ascii"))
            return found
    groups: list[list[int]] = [list(range(len(paths)))]
    for alike in (
        lambda i: states[i][:1],
        lambda i: _hash(paths[i], HASHED),
        lambda i: _hash(paths[i]),
    ):
        finer = []
        for group in groups:
            same: defaultdict[object, list[int]] = defaultdict(list)
            for i in group:
                same[alike(i)].append(i)
            finer += [some for kind, some in same.items() if kind]
        groups = [some for some in finer if len({places[i] for i in some}) > 1]
    copies = {
        paths[i]: paths[some[0]]
        for some in groups
        for i in some[1:]
        if places[i] != places[some[0]]
    }
    if kept is not None:
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with replacing(kept) as temporary:
                temporary.write_text(json.dumps(copies), "ascii")
    return copies


def _state(path: str) -> tuple[int, ...]:
    """Size and times; () for a file that is not there, which packing reports."""
    try:
        found = Path(path).stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _hash(path: str, last: int | None = None) -> bytes:
    """A hash of the last bytes of a file, or of all; b"" where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            if last is not None:
                file.seek(-min(last, Path(path).stat().st_size), os.SEEK_END)
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return b""


class Spot(NamedTuple):
    """Where places are."""

    folder: Path
    """The full path of the folder that all of them lie in; a single place itself."""
    below: tuple[str, ...]
    """Each of them, seen from there."""

    def moved(self, folder: Path) -> tuple[str, ...]:
        """The places, as they are called when their folder is another."""
        return tuple(str(folder / each) for each in self.below)


def spot_of(data: Sequence[str]) -> Spot:
    paths = [_absolute(Path(text)) for text in data]
    folder = _common({_fixed(path) for path in paths})
    return Spot(folder.resolve(), tuple(os.path.relpath(path, folder) for path in paths))


def _common(paths: Collection[str]) -> Path:
    """The folder that all of the full paths lie in."""
    try:
        return Path(os.path.commonpath(paths))
    except ValueError:
        raise UserError(
            f"--data: {min(paths)} and {max(paths)} lie on two drives; give places on one of them"
        ) from None


def _fixed(path: str) -> str:
    """The part of a pattern that is no pattern: "/a/b-{0..9}.tar" -> "/a"."""
    if Path(path).exists() or not _is_pattern(path):
        return path
    return re.split(r"[*?[{]", path)[0].rpartition("/")[0] or "/"
