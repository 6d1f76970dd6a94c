"""Shards: large files that hold many images each, and the indices of what lies in them.

The index of a shard is kept in the cache, since reading through a million members takes a minute. It is
used as long as the shard has the same size and times.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mixco.data.file_index import SETTLED_NS
from mixco.data.storage import FileNames
from mixco.runtime.errors import UserError
from mixco.runtime.files import replacing

FORMAT = 2  # part of the key: raise it when the same shard is indexed differently
THREADS = (
    2  # shards that are read at once: on a network disk one may wait while the other is parsed
)
UNLABELLED = -1


class Shard(NamedTuple):
    """What lies in one shard."""

    names: FileNames
    """Of the images in it, in their order: paths in a tar file; in a Parquet file the row's number, and
    the name of the file that the image was."""
    offset: Tensor
    """int64 [N]: where an image begins, in bytes; in a Parquet file its row."""
    size: Tensor
    """int64 [N]: in bytes; 0 in a Parquet file."""
    label: Tensor
    """int32 [N]: indices into `classes`; UNLABELLED for none."""
    classes: tuple[str, ...]
    """The labels that occur, as texts."""
    facts: dict[str, Any]
    """What else is known: "aside": what is left aside, with counts; "damage": why its rest cannot be
    read; and what the reader of its kind needs."""


def make_shard(images: Sequence[tuple[str, int, int, str | None]], facts: dict[str, Any]) -> Shard:
    """images: name, offset, size, and the label or None."""
    classes = sorted({label for *_, label in images if label is not None})
    code: dict[str | None, int] = {None: UNLABELLED}
    code |= {label: number for number, label in enumerate(classes)}
    names = FileNames(name for name, *_ in images)
    offset, size, label = (
        torch.tensor(column, dtype=kind)
        for column, kind in (
            ([offset for _, offset, _, _ in images], torch.int64),
            ([size for _, _, size, _ in images], torch.int64),
            ([code[label] for *_, label in images], torch.int32),
        )
    )
    return Shard(names, offset, size, label, tuple(classes), facts)


def read_shards(
    paths: Sequence[Path], index: Callable[[Path], Shard], cache: Path | None, options: str = ""
) -> list[Shard]:
    """The indices of shards, from the cache or read now.

    index: reads through a shard. options: what else its answer depends on.
    cache: folder in which indices are kept; None for none. A damaged index is read anew.

    Raises UserError for a shard that is missing or cannot be opened.
    """

    def one(path: Path) -> Shard:
        try:
            found = path.stat()
            state = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
            if cache is None:
                return index(path)
            key = hashlib.sha256(repr((FORMAT, str(path.resolve()), options)).encode())
            kept = cache / "shards" / f"{key.hexdigest()[:24]}.safetensors"
            if (shard := _load(kept, state)) is not None:
                return shard
            shard = index(path)
            # A change within one tick of the file system's clock would not show.
            if time.time_ns() - max(state[1:3]) > SETTLED_NS:
                _save(kept, shard, state)
            return shard
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror or error}); make it readable, or leave it out"
            ) from None

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, paths))


def joined_names(paths: Iterable[str], shards: Iterable[Shard]) -> FileNames:
    """ "shard.tar/member" of all images."""
    return FileNames(
        f"{path}/{name}" for path, shard in zip(paths, shards, strict=True) for name in shard.names
    )


def _load(path: Path, state: list[int]) -> Shard | None:
    """None if there is no index, a damaged one, or one of another state of the shard."""
    try:
        with safe_open(path, "pt") as file:
            notes = json.loads((file.metadata() or {})["mixco-shard"])
            if notes["state"] != state:
                return None
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if notes["digest"] != _digest(tensors):
            return None
        names = FileNames.of(tensors["text"], tensors["ends"])
        offset, size, label = (tensors[key] for key in ("offset", "size", "label"))
        return Shard(names, offset, size, label, tuple(notes["classes"]), notes["facts"])
    except (OSError, SafetensorError, ValueError, LookupError, TypeError):
        return None


def _save(path: Path, shard: Shard, state: list[int]) -> None:
    tensors = {
        "text": shard.names.text,
        "ends": shard.names.ends,
        "offset": shard.offset,
        "size": shard.size,
        "label": shard.label,
    }
    notes = {
        "state": state,
        "classes": shard.classes,
        "facts": shard.facts,
        "digest": _digest(tensors),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"mixco-shard": json.dumps(notes)})
    except OSError:
        pass  # without the index the next start is only slower


def _digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for key in sorted(tensors):
        found.update(tensors[key].numpy().tobytes())
    return found.hexdigest()
