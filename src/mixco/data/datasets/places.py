"""Your own images: one folder or several, lists of paths, patterns, shards; taken together.

The names of images from several places are paths below the folder that all of them lie in.
"""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from glob import glob
from pathlib import Path

from mixco.data.datasets import DATASETS, USUAL, Data, LabelSource, places_in, suggestion
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


def list_places(
    name: str,
    data: Data,
    split: str,
    cache: Path | None = None,
    *,
    labelled: bool = True,
    labels: LabelSource = USUAL,
    train_folder: str | None = None,
    test_folder: str | None = None,
) -> ImageList:
    """The images of a split: "pretrain", "train", "test" or "all".

    name: of the set. data: folders, images, shards, patterns (`*`, `{000..099}`), and text files that
        list such, one a line, relative to the list.
    The other arguments: see `list_images`.

    Images with the same bytes in two places count once, whatever their names are.

    Raises UserError for what is not there, for shards beside images, and where labels are missing.
    """
    paths = list(dict.fromkeys(expand(places_in(data))))
    folders: list[Path] = []
    images: list[Path] = []
    shards: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = shards_in(path, cache)
            shards += below
            folders += [] if below else [path]
        else:
            (shards if path.suffix.lower() in ENDINGS else images).append(path)
    if shards and (folders or images):
        raise UserError(
            f"--data: {(folders or images)[0]} holds images and {shards[0]} is a shard; give either "
            "images or shards"
        )
    if shards:
        return list_sharded(
            name,
            shards,
            split,
            cache,
            labelled=labelled,
            label_column=labels.in_shards,
            train_folder=train_folder,
            test_folder=test_folder,
        )
    must = labelled and split in ("train", "test")
    if images and must:
        raise UserError(
            f"{images[0]}: has no label, as it is listed alone; evaluation needs labels: give folders "
            "with train/<class>/... and test/<class>/..., or --labels-from with a table"
        )

    def of_folder(folder: Path) -> ImageList:
        if split == "all":
            return whole_folder(folder, cache)
        if split == "pretrain":
            return unlabelled_folder(folder, cache)
        if not labelled:
            return split_folder(folder, split, cache)
        return labelled_folder(
            folder, split, cache, train_folder=train_folder, test_folder=test_folder
        )

    parts = [of_folder(folder) for folder in folders]
    if images:
        parts.append(_list_of(images))
    if len(parts) == 1 and folders:
        return parts[0]
    return join(f"{name}/{split}" if split != "all" else name, parts, cache)


def expand(data: Sequence[str]) -> Iterator[Path]:
    """The folders and files that paths, patterns and lists stand for, in order.

    Raises UserError for those that stand for nothing.
    """
    for text in data:
        if Path(text).is_file() and text.lower().endswith(LISTS):
            yield from _listed(Path(text))
        elif Path(text).exists() or _is_pattern(text):
            yield from _matches(text, f"--data {text}")
        elif text in DATASETS:
            raise UserError(f"--data {text}: a data set that has a name is given alone")
        else:
            raise UserError(
                f"--data {text}: neither a folder nor a known data set; {suggestion(text)}"
            )


def _listed(path: Path) -> Iterator[Path]:
    """What a list names; a line that begins with # is a comment."""
    try:
        lines = path.read_text("utf-8-sig", "surrogateescape").splitlines()
    except OSError as error:
        raise UserError(f"--data {path}: cannot be read ({error.strerror})") from None
    named = [line.strip() for line in lines]
    named = [line for line in named if line and not line.startswith("#")]
    if not named:
        raise UserError(f"--data {path}: the list is empty; expected a path in each line")
    images = (*endings(), *ARRAYS)
    for number, line in enumerate(named, 1):
        # Not looked for one by one: a million files on a network disk would take minutes.
        if line.lower().endswith(images) and not _is_pattern(line):
            yield path.parent / line
        elif line.lower().endswith(LISTS):
            raise UserError(f"{path}: names the list {line}; a list cannot name others")
        else:
            yield from _matches(str(path.parent / line), f"{path}, path {number}")


def _matches(text: str, where: str) -> list[Path]:
    if Path(text).exists():
        return [Path(text)]
    found: list[str] = []
    for pattern in expand_braces(text):
        some = [pattern] if Path(pattern).exists() else glob(pattern, recursive=True)  # noqa: PTH207
        if not some:
            raise UserError(f"{where}: no folder or file {shown(pattern)}; check the path")
        found += sorted(some)
    return [Path(each) for each in found]


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


def _list_of(images: list[Path]) -> ImageList:
    """Images that are named one by one."""
    top = Path(images[0].absolute().anchor)
    return ImageList("", top, tuple(_absolute(p)[len(top.as_posix()) :] for p in images), None, ())


def _absolute(path: Path) -> str:
    """The full path with slashes; links in it are not followed."""
    return Path(os.path.abspath(path)).as_posix()  # noqa: PTH100


def join(name: str, parts: Sequence[ImageList], cache: Path | None = None) -> ImageList:
    """The images of several lists as one list, sorted by their paths.

    Each image is a file. A file that is in several lists, or has the same bytes as one of another list,
    counts once. There are labels if all lists have some; the classes of all are taken together.
    """
    labelled = all(part.labels is not None for part in parts)
    of_path: dict[str, tuple[int, str]] = {}
    for number, part in enumerate(parts):
        base = _absolute(part.root).rstrip("/")
        labels = part.labels if labelled and part.labels is not None else [0] * len(part.files)
        for file, label in zip(part.files, labels, strict=True):
            of_path.setdefault(f"{base}/{file}", (number, part.classes[label] if labelled else ""))
    root = Path(os.path.commonpath([os.path.dirname(path) for path in of_path]))  # noqa: PTH120
    paths = sorted(of_path)
    copies = _copies(paths, [of_path[path][0] for path in paths], cache) if len(parts) > 1 else {}
    kept = [path for path in paths if path not in copies]
    texts = [of_path[path][1] for path in kept]
    classes = tuple(sorted(set(texts))) if labelled else ()
    index = {text: number for number, text in enumerate(classes)}
    notes = [note for part in parts for note in part.notes]
    if copies:
        copy, first = next(iter(copies.items()))
        notes.append(
            f"left out, since another of the places has the same images: {len(copies):,}, the first of "
            f"them {shown(copy)}, which is {shown(first)}"
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


def common_folder(data: Sequence[str]) -> Path:
    """The full path of the folder that all of the places lie in; of a single place the place itself."""
    starts = [_fixed(_absolute(Path(text))) for text in data]
    return Path(os.path.commonpath(starts)).resolve()


def _fixed(path: str) -> str:
    """The part of a pattern that is no pattern: "/a/b-{0..9}.tar" -> "/a"."""
    if Path(path).exists() or not _is_pattern(path):
        return path
    return re.split(r"[*?[{]", path)[0].rpartition("/")[0] or "/"


def moved(data: Sequence[str], folder: Path, to: Path) -> tuple[str, ...]:
    """The places, as they are called when the folder that all lie in is at `to`."""
    return tuple(
        str(to / below)
        if (below := os.path.relpath(_absolute(Path(text)), folder)) != "."
        else str(to)
        for text in data
    )
