"""Write the vectors of a collection into a file, in bounded memory; a stopped call can be resumed.

Until the file is finished, a folder <file>.part/ lies beside it: of.json names the images and the
encoder, and each shard-000012.safetensors holds the vectors of a group of 2,048 images. (The shards that
several processes write are files of their own, each with such a folder: see shards.py.)
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mixco.data.image_list import ImageList, any_readable
from mixco.data.images import FEATURE_BATCH
from mixco.embeddings.features import embed_batches
from mixco.embeddings.shards import Shard, refuse_other_work, shards_there
from mixco.embeddings.vectors import check_kind, read_names, read_notes, write_vectors
from mixco.encoders.loading import LoadedEncoder
from mixco.models.encoder import feature_dim
from mixco.runtime.device import Compute
from mixco.runtime.errors import UserError
from mixco.runtime.files import in_line, replacing, shown
from mixco.runtime.locks import LockHeld, locked
from mixco.runtime.run_folder import read_json, write_json

GROUP = 4 * FEATURE_BATCH


def embed_to_file(
    path: Path,
    encoder: LoadedEncoder,
    source: ImageList,
    notes: dict[str, Any],
    *,
    normalise: bool,
    workers: int,
    compute: Compute,
    on_progress: Callable[[int, int], None] | None = None,
    group: int = GROUP,
    may_be_empty: bool = False,
) -> int | None:
    """Write the vectors of all readable images; list the others in <path>.unreadable.txt.

    Returns the number of vectors, None when the file was finished already: then none of its missing
    images can be read now either.

    source: in the pixel format that its files are to be read in (`infer_pixel_format`).
    notes: written into the file (see vectors.py). They identify the work: a file with the same notes
        is finished already, and groups with the same notes are resumed.
    group: images between two saves; a multiple of 512 makes whole batches.
    may_be_empty: write a file without vectors where no image can be read, as for a shard.

    Raises UserError when the file or its groups are of other images or of another encoder, when another
    process is writing it, when no image can be read, and when the disk cannot be written.
    """
    check_kind(path, source.files)
    side, count = encoder.description.size, len(source.files)
    if path.exists() and _is_complete(path, source, notes, side):
        return None
    part = _part(path)
    try:
        part.mkdir(parents=True, exist_ok=True)
        with locked(part / ".lock", seconds=0):
            _claim(part, notes)
            files = [part / f"shard-{i:06d}.safetensors" for i in range(-(-count // group))]
            todo = [
                i
                for i, file in enumerate(files)
                if not file.exists()
                or any_readable(
                    source, _missing_in(file, range(count)[i * group : (i + 1) * group]), side
                )
            ]
            index = [torch.arange(i * group, min((i + 1) * group, count)) for i in todo]
            done = count - sum(map(len, index))
            seen: list[tuple[Tensor, Tensor]] = []
            unreadable: list[tuple[str, str]] = []
            batches = (
                embed_batches(
                    encoder,
                    source,
                    torch.cat(index),
                    normalise=normalise,
                    workers=workers,
                    compute=compute,
                    on_unreadable=lambda file, reason: unreadable.append((file, reason)),
                    batch_size=min(FEATURE_BATCH, group),
                )
                if todo
                else ()
            )
            for wanted, readable, vectors in batches:
                seen.append((readable, vectors))
                last = int(wanted[-1]) + 1
                if last % group == 0 or last == count:
                    _save(files[(last - 1) // group], seen, unreadable)
                    seen.clear()
                    unreadable.clear()
                done += len(wanted)
                if on_progress:
                    on_progress(done, count)
            written = _assemble(path, encoder, source, files, notes, may_be_empty)
        shutil.rmtree(part)
        return written
    except LockHeld:
        raise UserError(f"{path}: another process is writing it; wait for it, or end it") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); the finished part stays in "
            f"{part.name}, and the same command resumes it"
        ) from None


def _is_complete(path: Path, source: ImageList, notes: dict[str, Any], side: int) -> bool:
    """Can none of the images that the file lacks be read now either? Raises UserError."""
    if read_notes(path) != notes:
        raise UserError(
            f"{path}: vectors of other images, or of another encoder; give another --out, or remove it"
        )
    return not _unreadable_list(path).exists() or not any_readable(
        source, _missing(path, source), side
    )


def refuse_other_shards(whole: Path, shard: Shard, notes: dict[str, Any]) -> None:
    """Refuse to write a shard beside others that cannot be read with it, finished or only begun.

    notes: of the shard. Raises UserError for shards of another number of processes, and for other work:
    it looks into the notes of the first one that has any.
    """
    there = shards_there(whole, begun=True)
    for other in there:
        if other.of != shard.of:
            raise UserError(
                f"{other.path(whole)}: begun by process {other.number} of {other.of}, but now there are "
                f"{shard.of}; start as many as before, or give another --out, or remove the file and "
                f"its folder {_part(other.path(whole)).name}"
            )
    for other in there:
        others = None if other == shard else _begun_notes(other.path(whole))
        if others is not None:
            refuse_other_work(shard.path(whole), notes, other.path(whole), others)
            return


def _begun_notes(path: Path) -> dict[str, Any] | None:
    """The notes of a file that is finished or begun; None of one that is hardly begun."""
    try:  # the folder first: it is removed when the file is there
        found: dict[str, Any] = json.loads((_part(path) / "of.json").read_text("utf-8"))
        return found
    except (OSError, ValueError):
        return read_notes(path) if path.exists() else None


def _claim(part: Path, notes: dict[str, Any]) -> None:
    identity = part / "of.json"
    if not identity.exists():
        write_json(identity, notes)
    elif read_json(identity) != json.loads(json.dumps(notes)):
        raise UserError(
            f"{part}: begun with other images, another encoder or other options; give the same ones to "
            "resume, or remove the folder to start again"
        )


def _save(path: Path, seen: list[tuple[Tensor, Tensor]], unreadable: list[tuple[str, str]]) -> None:
    tensors = {
        "index": torch.cat([index for index, _ in seen]),
        "vectors": torch.cat([v for _, v in seen if len(v)] or [torch.empty(0, 0)]),
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"unreadable": json.dumps(unreadable)})


def _assemble(
    path: Path,
    encoder: LoadedEncoder,
    source: ImageList,
    files: list[Path],
    notes: dict[str, Any],
    may_be_empty: bool,
) -> int:
    names: list[str] = []
    unreadable: list[tuple[str, str]] = []
    dim = 0
    for file in files:
        with safe_open(file, "pt") as saved:
            names += [source.files[i] for i in saved.get_tensor("index").tolist()]
            unreadable += json.loads(saved.metadata()["unreadable"])
            dim = max(dim, saved.get_slice("vectors").get_shape()[1])
    if unreadable:
        lines = "".join(f"{in_line(file)}\t{reason}\n" for file, reason in unreadable)
        _unreadable_list(path).write_text(lines, "utf-8", "surrogateescape")
    else:
        _unreadable_list(path).unlink(missing_ok=True)
    if not names and not may_be_empty:
        first, reason = unreadable[0]
        raise UserError(
            f"{source.root}: none of its {len(source.files):,} images can be read "
            f"({shown(first)}: {reason})"
        )
    dim = dim or feature_dim(encoder.backbone, encoder.description.size)
    parts = (vectors for vectors in map(_vectors, files) if len(vectors))
    write_vectors(path, names, dim, parts, notes)
    return len(names)


def _part(path: Path) -> Path:
    """The folder of the work in progress on a file of vectors."""
    return path.with_name(f"{path.name}.part")


def _unreadable_list(path: Path) -> Path:
    """The text file with the images that a file of vectors lacks."""
    return path.with_name(f"{path.name}.unreadable.txt")


def _missing(path: Path, source: ImageList) -> list[int]:
    """The indices of the images that a file of vectors lacks."""
    names = set(read_names(path))
    return [index for index, name in enumerate(source.files) if name not in names]


def _missing_in(file: Path, wanted: range) -> list[int]:
    """The indices of the images that a group lacks."""
    with safe_open(file, "pt") as saved:
        return sorted(set(wanted).difference(saved.get_tensor("index").tolist()))


def _vectors(file: Path) -> Tensor:
    with safe_open(file, "pt") as saved:
        vectors: Tensor = saved.get_tensor("vectors")
        return vectors
