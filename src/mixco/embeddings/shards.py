"""A file of vectors in shards, one for each process: vectors-00000-of-00002.parquet, ...

Each process embeds a range of the images, and writes a file of its own with everything beside it. So no
process waits for another, and each may be stopped, resumed or started at any time, on any machine.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mixco.data.image_list import ImageList
from mixco.data.images import FEATURE_BATCH
from mixco.runtime.errors import UserError

OWN_NOTES = ("images", "first", "count")  # what the notes of one shard have for themselves


class Shard(NamedTuple):
    """A part of a file of vectors; the whole file is shard 0 of 1."""

    number: int
    of: int

    def path(self, whole: Path) -> Path:
        """The file of this shard of `whole`."""
        if self.of == 1:
            return whole
        return whole.with_stem(f"{whole.stem}-{self.number:05d}-of-{self.of:05d}")

    def images(self, count: int) -> range:
        """Which of `count` images it holds: consecutive ones, nearly as many as each other shard.

        All ranges begin at multiples of 512, so the batches are those of one process, and so are the
        vectors, bit for bit where the processes compute alike. With fewer batches than shards some are
        empty.
        """
        batches = -(-count // FEATURE_BATCH)
        ends = [-(-batches * number // self.of) for number in (self.number, self.number + 1)]
        return range(*(min(end * FEATURE_BATCH, count) for end in ends))


def part_of(source: ImageList, images: range) -> ImageList:
    """Consecutive images of a list, without their labels."""
    return dataclasses.replace(source, labels=None, classes=()).take(images)


def shards_there(whole: Path, *, begun: bool = False) -> list[Shard]:
    """The finished shards of a file, by their names, in order; the whole file too, if it is there.

    begun: also those that have only a folder of work in progress.
    """
    end = re.escape(whole.suffix) + (r"(?:\.part)?" if begun else "")
    name = re.compile(re.escape(whole.stem) + r"(?:-(\d{5,})-of-(\d{5,}))?" + end)
    beside = whole.parent.iterdir() if whole.parent.is_dir() else ()
    found = filter(None, (name.fullmatch(path.name) for path in beside))
    return sorted({Shard(int(each[1] or 0), int(each[2] or 1)) for each in found})


def files_of(whole: Path) -> list[Path]:
    """The files with the vectors of `whole`: this file, or where it is missing its shards, in order.

    Raises UserError when a shard is missing, or when there are shards of several counts.
    """
    found = [] if whole.exists() else shards_there(whole)
    if not found:
        return [whole]  # reading it says what is wrong
    of = found[0].of
    others = [shard for shard in found if shard.of != of]
    if others:
        raise UserError(
            f"{found[0].path(whole)} and {others[0].path(whole)}: shards of {of} and of {others[0].of} "
            "processes; remove those of one of them"
        )
    missing = [Shard(number, of) for number in range(of) if Shard(number, of) not in found]
    if missing:
        first, more = missing[0], len(missing) - 1
        raise UserError(
            f"{first.path(whole)}: this shard of {whole} is missing"
            + (f", with {more} more" if more else "")
            + "; the command that wrote the others, under torchrun or with "
            f"RANK={first.number} WORLD_SIZE={of}, writes it"
        )
    return [shard.path(whole) for shard in found]


def refuse_other_work(
    path: Path, notes: Mapping[str, Any], other: Path, other_notes: Mapping[str, Any]
) -> None:
    """Raises UserError unless two shards are of the same images, encoder and options."""
    keys = sorted((notes.keys() | other_notes.keys()) - set(OWN_NOTES))
    differ = [key for key in keys if notes.get(key) != other_notes.get(key)]
    if differ:
        raise UserError(
            f"{other}: a shard of other work than {path}; in their notes {', '.join(differ)} "
            "differ; remove the wrong one, and embed it with the command of the others"
            + (", all with one --precision" if differ == ["precision"] else "")
        )
