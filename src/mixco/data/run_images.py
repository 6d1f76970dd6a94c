"""Which images a run has, and where they lie: later commands find the same ones from any folder.

images.json    the place, and what tells the list from others: see `Known`
images.txt.gz  the names, one a line, to say what differs

Two lists are the same when they have the same names, classes and labels, in one order. At another place
some files must have the same sizes too: names such as 0001.jpg occur in many folders.
"""

import dataclasses
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixco.data.datasets import DATASETS, LabelSource, Where, is_hub, places_in
from mixco.data.datasets.places import Spot, spot_of
from mixco.data.image_list import ImageList
from mixco.data.pixel_format import spread
from mixco.runtime.errors import UserError
from mixco.runtime.files import at_home, replacing, shown
from mixco.runtime.progress import say
from mixco.runtime.run_folder import read_json, write_json

FACTS, NAMES = "images.json", "images.txt.gz"
MEASURED = 256  # files whose sizes are added up


@dataclass(frozen=True)
class Known:
    """What a run folder remembers of its images."""

    place: str | None
    """The full path of --data, or of a named set's --data-path; None where a set needs none."""
    from_run: str | None
    """The same, seen from the run folder: both may be moved together."""
    cache: str
    """The full path of --cache."""
    name: str
    """As in ImageList, when the run began."""
    files: int
    digest: str
    """SHA-256 of names, classes and labels."""
    bytes: int
    """Sizes of up to 256 files, added up."""
    revision: str = ""
    """As in ImageList."""
    below: tuple[str, ...] = (".",)
    """What --data names, seen from `place`, which is the folder that all of several places lie in."""
    table: str | None = None
    """--labels-from, seen from `place`."""

    def is_at(self, where: Where) -> bool:
        """Are the images at this place, however it is spelled?"""
        spot = _spot_of(where)
        return same_place(self.place, spot and spot.folder) and (
            spot is None or sorted(spot.below) == sorted(self.below)
        )

    def is_of(self, source: ImageList) -> bool:
        """Is it this list, wherever it lies?"""
        return self.digest == digest(source) and self.bytes == some_bytes(source)


def digest(source: ImageList) -> str:
    """SHA-256 of the names in their order, the classes and the labels."""
    found = hashlib.sha256()
    for names in (source.files, source.classes):
        found.update(b"%d\0" % len(names))
        for name in names:
            found.update(name.encode("utf-8", "surrogateescape") + b"\0")
    if source.labels is not None:
        found.update(np.array(source.labels, "<i8").tobytes())
    return found.hexdigest()


def some_bytes(source: ImageList) -> int:
    """The sizes of up to 256 files from all over the list, added up; an unreadable one counts as 0."""
    chosen = spread(len(source.files), MEASURED)
    paths = source.containers or tuple(source.root / source.files[i] for i in chosen)
    return sum(map(_size, paths))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def remember(run: Path, where: Where, cache: Path, source: ImageList) -> None:
    """Write the two files into a run folder."""
    spot = _spot_of(where)
    facts = Known(
        place=str(spot.folder) if spot else None,
        from_run=_relative(spot.folder, _full(run)) if spot else None,
        cache=_full(cache),
        name=source.name,
        files=len(source.files),
        digest=digest(source),
        bytes=some_bytes(source),
        revision=source.revision,
        below=spot.below if spot else (),
        table=_table_from(spot, where) if spot else None,
    )
    names = "".join(f"{shown(name)}\n" for name in source.files).encode()
    with replacing(run / NAMES) as temporary:
        temporary.write_bytes(gzip.compress(names, mtime=0))
    write_json(run / FACTS, asdict(facts))


def known_images(run: Path) -> Known | None:
    """What the run folder remembers; None for a run of an earlier version, or a damaged file."""
    if not (run / FACTS).is_file():
        return None
    try:
        found = Known(**read_json(run / FACTS))
        found = dataclasses.replace(found, below=tuple(found.below))
    except (UserError, TypeError):
        return None
    texts = (found.cache, found.name, found.digest, found.revision, *found.below)
    places = (found.place, found.from_run, found.table)
    whole = all(isinstance(text, str) for text in texts) and all(
        isinstance(place, str | None) for place in places
    )
    return found if whole and type(found.files) is type(found.bytes) is int else None


def where_in(data: dict[str, Any]) -> Where:
    """The images of the section "data" of a config.json. Raises UserError for a damaged one."""
    given, path, table = data.get("data"), data.get("data_path"), data.get("labels_from")
    if isinstance(given, list) and all(isinstance(text, str) for text in given):
        given = tuple(given)
    columns = [data.get(f"{column}_column") for column in ("path", "label", "split")]
    texts = (path, table, *columns)
    if not isinstance(given, str | tuple) or not all(isinstance(t, str | None) for t in texts):
        raise UserError(
            "config.json is damaged: data, data_path or labels_from has no valid value; restore it, or "
            "give the images by --data and the encoder as --checkpoint"
        )
    labels = LabelSource(Path(table) if table else None, *columns)
    return Where(given, Path(path) if path else None, labels)


def place_of(where: Where) -> Path | None:
    """The full path of the folder or file that is given with --data or --data-path.

    Of several places it is the folder that all lie in. None for what has no place of the user's.
    """
    spot = _spot_of(where)
    return spot and spot.folder


def _spot_of(where: Where) -> Spot | None:
    """Where the images are; None for those that have no place of the user's."""
    if is_hub(where.data):
        return None
    named = isinstance(where.data, str) and DATASETS.get(where.data)
    if not named:
        return spot_of([str(_at_home(Path(text))) for text in places_in(where.data)])
    if not named.needs_path or where.data_path is None:
        return None
    return Spot(Path(_full(where.data_path)), (".",))


def _table_from(spot: Spot, where: Where) -> str | None:
    table = where.labels.table
    return (
        None if table is None else _relative(Path(_full(table)), str(spot.folder)) or _full(table)
    )


def _full(path: Path) -> str:
    return str(_at_home(path).resolve())


def _at_home(path: Path, option: str = "--data") -> Path:
    """Runs of version 0.1 and 0.2 have a `~` in their config.json."""
    return Path(at_home(str(path), option))


def _relative(place: Path, start: str) -> str | None:
    try:
        return os.path.relpath(place, start)
    except ValueError:  # another drive of Windows
        return None


def same_place(first: Path | str | None, second: Path | str | None) -> bool:
    """Do two paths lead to one place, however they are spelled? None is no place at all."""
    if first is None or second is None:
        return first is second
    first, second = _at_home(Path(first)), _at_home(Path(second))
    try:
        return first.samefile(second)
    except (OSError, ValueError):
        return _full(first) == _full(second)


def under_first_name(run: Path, where: Where, source: ImageList) -> ImageList:
    """The images of a run that goes on, by the name they had when it began, wherever they lie now.

    Raises UserError when the run began on another list.
    """
    known = known_images(run)
    if known is None:
        return source
    # The names in a file of the hub say little.
    moved = known.place is None or not known.is_at(where)
    if known.digest != digest(source) or (moved and known.bytes != some_bytes(source)):
        raise UserError(
            f"--out {run}: the run began on {known.files:,} images of {known.name}, now there are "
            f"{len(source.files):,} of {source.name}: {_changes(run, source)}; give the same images "
            "to resume it, or another --out"
        )
    return dataclasses.replace(source, name=known.name)


def find_images(run: Path, where: Where, cache: Path, option: str = "") -> Where:
    """Where a run's images lie now, from any working folder.

    where: as the run's config.json has it; a relative path is tried first as it stands, then as it was
        when the run began, then beside the run, since both may have been moved. A place other than the
        one that the run began with is taken only if it has the same list.
    option: of the command, by which a user says where the images are; "" where it has none.

    Raises UserError when they are nowhere.
    """
    known = known_images(run)
    if known is not None and is_hub(where.data):
        return pinned(where, known.revision)
    given = _spot_of(where)
    if known is None or known.place is None or given is None:
        return where
    table = _table_from(given, where)
    if given.folder.exists() and known.is_at(where) and table == known.table:
        return where
    began = Spot(Path(known.place), known.below)
    candidates = [(given.folder, given, table), (began.folder, began, known.table)]
    if known.from_run is not None:
        candidates.append((Path(_full(run / known.from_run)), began, known.table))
    for folder, spot, its_table in candidates:
        found = _moved(where, folder, spot, its_table)
        if folder.exists() and is_list_of(known, found, cache):
            if not same_place(folder, known.place):
                say(f"the images are now at {folder}")
            return found
    if began.folder.exists():
        found = _moved(where, began.folder, began, known.table)
        changed = _changes(run, found.images("pretrain", cache))
        say(f"warning: the images in {known.place} have changed since the run began: {changed}")
        return found
    raise UserError(
        f"{run}: its images were in {known.place}, and are neither there nor beside the run"
        + (f"; give {option}, the folder that they are in now" if option else "")
    )


def labels_of(run: Path, where: Where) -> LabelSource:
    """Where a run's labels are, from any working folder, when its images may be elsewhere."""
    known, table = known_images(run), where.labels.table
    if table is None or table.exists() or known is None or not (known.place and known.table):
        return where.labels
    began = Path(os.path.normpath(Path(known.place) / known.table))
    return where.labels._replace(table=began)


def pinned(where: Where, revision: str) -> Where:
    """Images of the hub at a commit, unless they name a revision; others as they are."""
    if not (revision and isinstance(where.data, str) and is_hub(where.data)) or "@" in where.data:
        return where
    repository, colon, config = where.data.partition("hf:")[2].partition(":")
    return where._replace(data=f"hf:{repository}@{revision}{colon}{config}")


def are_own(run: Path, own: Where, other: Where, cache: Path) -> bool:
    """Are these a run's own images? Those of the same name, of the same place, or the same list.

    own: as the run's config.json has it.
    """
    if any(each.data in DATASETS or is_hub(each.data) for each in (own, other)):
        return own.data == other.data
    known = known_images(run)
    if known is None:
        return same_place(place_of(own), place_of(other))
    return known.is_at(other) or is_list_of(known, other, cache)


def is_list_of(known: Known, where: Where, cache: Path) -> bool:
    """Do the images of a place have the list that a run has?"""
    try:
        return known.is_of(where.images("pretrain", cache))
    except UserError:
        return False


def cache_of(run: Path, given: Path, otherwise: Path) -> Path:
    """The folder of packed images that a run had; `otherwise`, if it is gone or another user's.

    given: as config.json has it.
    """
    known = known_images(run)
    places = [_at_home(given, "--cache"), *([Path(known.cache)] if known else [])]
    usable = (place for place in places if place.is_dir() and os.access(place, os.W_OK))
    return next(usable, None) or _at_home(otherwise, "--cache")


def _moved(where: Where, folder: Path, spot: Spot, table: str | None) -> Where:
    """The same images, where their folder is now another; spot, table: seen from their own."""
    if where.data in DATASETS:
        return where._replace(data_path=folder)
    data = spot.moved(folder)
    labels = where.labels
    if table is not None:
        labels = labels._replace(table=Path(os.path.normpath(folder / table)))
    return where._replace(data=data[0] if len(data) == 1 else data, labels=labels)


def _changes(run: Path, source: ImageList) -> str:
    """What a list has more or less than when the run began, in words."""
    try:
        before = gzip.decompress((run / NAMES).read_bytes()).decode().splitlines()
    except (OSError, EOFError, ValueError, zlib.error):
        return "another list of files"
    return changes(before, [shown(name) for name in source.files])


def changes(before: Iterable[str], now: Sequence[str]) -> str:
    """ "3 images more, the first of them x.jpg; 1 image fewer, y.jpg" """
    old, new = set(before), set(now)
    parts = [
        f"{_images(len(names))} {word}, {'the first of them ' if len(names) > 1 else ''}{min(names)}"
        for names, word in ((new - old, "more"), (old - new, "fewer"))
        if names
    ]
    return "; ".join(parts) or "the names are the same, but not the classes or the files"


def _images(count: int) -> str:
    return f"{count:,} image{'s' if count > 1 else ''}"
