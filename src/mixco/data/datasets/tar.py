"""Tar shards, as WebDataset writes them: the members of one key (key.jpg, key.cls) are one sample."""

import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from mixco.data.datasets.shards import Shard, make_shard
from mixco.data.formats import endings
from mixco.runtime.errors import UserError
from mixco.runtime.files import shown

ENDING = ".tar"
COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
LABEL_KEYS = ("label", "cls", "class")  # of a key.json
MOST_BYTES_OF_A_LABEL = 2**20

Member = tuple[str, int, int]
"""Name, offset of its bytes, their number."""


def index_tar(path: Path, label: str | None = None) -> Shard:
    """The images of a tar file, and their labels.

    An image is a member with the ending of an image. Of the images of one key, only those with the
    shortest ending count: key.jpg, not key.seg.png. The label is the text of key.cls, or the value that
    key.json has for `label`; else there is none. Hidden members, links and the like are left aside.

    label: a key of key.json; None for the first of LABEL_KEYS.

    Raises UserError for a compressed file, whose members cannot be read at random, and OSError.
    """
    aside: Counter[str] = Counter()
    facts: dict[str, Any] = {}
    images: list[tuple[str, int, int, str | None]] = []
    with path.open("rb", buffering=0) as file:  # a buffer would read the images too
        start = file.read(6)
        for magic, program in COMPRESSED.items():
            if start.startswith(magic):
                raise UserError(
                    f"{path}: compressed, so that its images cannot be read in random order; "
                    f"decompress it first ({program})"
                )
        members: list[Member] = []
        damage = _list_members(file, members, aside)
        plain = [(name.removeprefix("./"), begin, size) for name, begin, size in members]
        seen = [member for member in plain if "/." not in f"/{member[0]}"]
        for _, sample in groupby(seen, lambda member: _split_name(member[0])[0]):
            images += _images_of(file, list(sample), label, aside, facts)
    return make_shard(images, {"aside": dict(aside), "damage": damage, **facts})


def _list_members(file: BinaryIO, members: list[Member], aside: Counter[str]) -> str:
    """Append the plain files; returns why the rest cannot be read, or ""."""
    begin, size = _list_plain(file, members), file.seek(0, os.SEEK_END)
    if begin > size:
        return f"its last {begin - size:,} bytes are missing"
    file.seek(begin)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
                if member.isreg() and not member.issparse():
                    members.append((member.name, member.offset_data, member.size))
                elif not member.isdir():
                    aside["links and other members"] += 1
            # It ends at a damaged header without a word; a whole tar file has zeros there.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                return f"the header at byte {tar.offset:,} is damaged"
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        return f"{error}"
    return ""


def _list_plain(file: BinaryIO, members: list[Member]) -> int:
    """Append the members up to the first that is no plain file with a short name; returns its offset.

    Most shards consist of such members, and tarfile takes four times as long for each.
    """
    offset = 0
    while True:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
        # Type "0", no prefix of a long name, a size in octal digits.
        if len(block) < tarfile.BLOCKSIZE or block[156] not in b"0\0" or block[345]:
            return offset
        try:
            size = int(block[124:136].strip(b" \0") or b"x", 8)
            told = int(block[148:156].strip(b" \0") or b"x", 8)
            name = block[:100].partition(b"\0")[0].decode()
        except ValueError:
            return offset
        if told != sum(block) - sum(block[148:156]) + 8 * ord(" ") or name.endswith("/"):
            return offset
        members.append((name, offset + tarfile.BLOCKSIZE, size))
        offset += tarfile.BLOCKSIZE * (1 + -(-size // tarfile.BLOCKSIZE))


def _split_name(name: str) -> tuple[str, str]:
    """Key and ending: "a/b.seg.png" -> "a/b", "seg.png"."""
    folder, slash, last = name.rpartition("/")
    key, _, ending = last.partition(".")
    return f"{folder}{slash}{key}", ending.lower()


def _images_of(
    file: BinaryIO,
    sample: list[Member],
    label: str | None,
    aside: Counter[str],
    facts: dict[str, Any],
) -> Iterator[tuple[str, int, int, str | None]]:
    """The images of one sample: name, offset, size, label."""
    found = [member for member in sample if member[0].lower().endswith(endings())]
    least = min((_split_name(name)[1].count(".") for name, *_ in found), default=0)
    images = [member for member in found if _split_name(member[0])[1].count(".") == least]
    text = None
    for member in sample:
        ending = _split_name(member[0])[1]
        if ending in ("cls", "json") and images:
            text = text or _label(file, member, ending, label, facts)
        elif member not in images:
            aside[f".{ending}" if ending else "no ending"] += 1
    for name, offset, size in images:
        yield name, offset, size, text


def _label(
    file: BinaryIO, member: Member, ending: str, label: str | None, facts: dict[str, Any]
) -> str | None:
    """The label in a key.cls or key.json; None without one, or with several, which facts then tell."""
    name, offset, size = member
    if size > MOST_BYTES_OF_A_LABEL:
        return None
    file.seek(offset)
    text = file.read(size).decode("utf-8", "replace").strip()
    if ending == "cls":
        return text if label in (None, "cls") else None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    keys = LABEL_KEYS if label is None else (label,)
    value = next((values[key] for key in keys if key in values), None)
    if isinstance(value, list | dict):
        facts["several"] = f"{shown(name)} has {json.dumps(value)[:60]}"
        return None
    return None if value is None else str(value)
