"""The commands for a collection of images: embed and neighbours. duplicates.py has the third."""

import hashlib
import json
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixco.data.datasets import DATASETS, Data, Where, is_hub, places_in
from mixco.data.image_list import ImageList
from mixco.data.images import FEATURE_BATCH
from mixco.data.packing import state_key
from mixco.data.pixel_format import infer_pixel_format
from mixco.data.run_images import digest, find_images, pinned, place_of, where_in
from mixco.data.streaming import stream
from mixco.embeddings.embedding import Embedder, load_encoder
from mixco.embeddings.features import fastest_compute
from mixco.embeddings.knn import neighbours as nearest_rows
from mixco.embeddings.shards import Shard, part_of
from mixco.embeddings.vectors import KINDS, Vectors, check_kind, is_vectors, read_vectors
from mixco.embeddings.writing import embed_to_file, refuse_other_shards
from mixco.encoders.checkpoint import fingerprint
from mixco.encoders.published import is_published
from mixco.plots.images import draw_neighbours
from mixco.runtime.device import keep_freed_memory, pick_device, processors
from mixco.runtime.distributed import launch_env
from mixco.runtime.errors import UserError
from mixco.runtime.locks import one_at_a_time
from mixco.runtime.progress import counting, say, speaking
from mixco.runtime.run_folder import read_json
from mixco.settings.commands import (
    CollectionConfig,
    EmbedConfig,
    NeighboursConfig,
)
from mixco.views.augment import evaluation_view
from mixco.views.augmentation import Input

SIDE = 96  # pixels of an image in --picture


def embed(config: EmbedConfig) -> Path:
    """Write the vectors of a collection into a file. The same call resumes one that was stopped.

    Of several processes (RANK and WORLD_SIZE, as torchrun gives them) each embeds its range of the
    images and writes a shard of the file: see shards.py. None waits for another.

    Returns the file, or this process's shard. Raises UserError for mistakes that the user can correct.
    """
    if config.out is None:
        raise UserError(f"give --out, a file that ends in {', '.join(KINDS)}")
    check_kind(config.out)
    # Each process works for itself, so the first one of every machine speaks.
    with speaking(launch_env().local_rank == 0):
        encoder = load(config.run, config.collection)
        return _embed(
            config.out, encoder, config.run, config.data, config.normalise, config.collection
        )


@dataclass(frozen=True)
class Neighbours:
    """The images nearest to one image, the nearest first."""

    image: str
    paths: tuple[str, ...]
    similarities: tuple[float, ...]
    """Cosine similarities, in [-1, 1]."""


def neighbours(config: NeighboursConfig) -> list[Neighbours]:
    """For each image the k nearest images of a collection, without itself.

    Raises UserError for mistakes that the user can correct.
    """
    if not config.images:
        raise UserError("neighbours: give at least one image")
    if config.k < 1:
        raise UserError(f"--k must be at least 1, got {config.k}")
    encoder = load(config.run, config.collection)
    among = vectors_of(config.run, encoder, config.among, config.collection)
    paths = among.paths()
    places = {path: row for row, path in enumerate(paths)}
    own = [places.get(image, places.get(_whole(image))) for image in config.images]
    outside = [image for image, row in zip(config.images, own, strict=True) if row is None]
    for image in outside:
        if not Path(image).is_file():
            raise UserError(
                f"{image}: neither an image file nor the name of an image in {among.source.name}; check "
                "the path"
            )
    device, precision = config.collection.device, config.collection.precision
    cache = config.collection.cache
    embedded = iter(
        encoder.embed(outside, device=device, precision=precision, cache=cache) if outside else ()
    )
    queries = torch.stack([next(embedded) if row is None else among.vectors[row] for row in own])
    similarities, rows = nearest_rows(among.vectors, queries, config.k + 1)
    found = []
    for image, row, values, near in zip(config.images, own, similarities, rows, strict=True):
        others = (near != (-1 if row is None else row)).nonzero().squeeze(1)[: config.k]
        names = tuple(shown_path(paths[i]) for i in near[others].tolist())
        found.append(Neighbours(image, names, tuple(values[others].tolist())))
    if config.picture is not None:
        _draw(config.picture, found, among, places)
    return found


def load(run: Path, settings: CollectionConfig) -> Embedder:
    """The encoder of a command, and what there is to say of it."""
    encoder = load_encoder(run, **vars(settings.encoder))
    for line in encoder.report:
        say(line)
    return encoder


def vectors_of(
    run: Path, encoder: Embedder, among: Data | None, settings: CollectionConfig
) -> Vectors:
    """The vectors to search: from a file, or kept beside the run, or made now."""
    if isinstance(among, str) and is_vectors(Path(among)):
        vectors = read_vectors(Path(among))
        if vectors.notes["encoder"] != fingerprint(encoder.backbone):
            raise UserError(
                f"--among {among}: vectors of another encoder ({vectors.notes['training']}); embed the "
                f"images with {run}"
            )
        return vectors
    return read_vectors(_embed(None, encoder, run, among, True, settings))


def _embed(
    out: Path | None,
    encoder: Embedder,
    run: Path,
    data: Data | None,
    normalise: bool,
    settings: CollectionConfig,
) -> Path:
    """Embed a collection into a file, and return the file. out: None for a file kept beside the run.

    Of several processes each embeds its shard of `out`; a file beside the run is never divided.
    """
    here = launch_env()
    shard = Shard(0, 1) if out is None else Shard(here.rank, here.processes)
    # One process lists the files and keeps an index, and the others on its machine read that.
    with one_at_a_time(settings.cache / ".several.lock") if shard.of > 1 else nullcontext():
        source, where = list_collection(run, data, settings, "--among" if out is None else "DATA")
    for note in source.notes:
        say(note)
    device = pick_device(settings.device, here.local_rank)
    keep_freed_memory(device)
    compute = fastest_compute(encoder, device, settings.precision, settings.cache)
    size = encoder.description.size
    images = shard.images(len(source.files))
    part = part_of(source, images)
    notes = {
        "images": state_key(part, size),
        "root": str(source.root.resolve()),
        "packed": bool(source.containers),
        **(where if source.containers else {}),
        "encoder": fingerprint(encoder.backbone),
        "training": encoder.description.training,
        "size": size,
        "normalised": normalise,
    }
    if out is None:
        beside = settings.cache if is_published(str(run)) else run if run.is_dir() else run.parent
        key = hashlib.sha256(json.dumps(notes).encode()).hexdigest()[:16]
        out = beside / "embeddings" / f"{source.name.split('/')[0]}-{key}.safetensors"
    elif shard.of > 1:
        precision = str(compute.dtype).removeprefix("torch.")  # may differ between machines
        notes |= {"list_of_images": digest(source), "precision": precision, "shards": shard.of}
        notes |= {"first": images.start, "count": len(images)}
    refuse_other_shards(out, shard, notes)
    out = shard.path(out)
    # By the headers of files of the whole list: all shards are read in one format.
    pixel = infer_pixel_format(source, encoder.description.channels, None).pixel
    del source  # a process keeps the names of its own images only
    workers = settings.workers
    if workers is None:
        workers = max(1, processors() // here.local_processes)
    if len(images) <= FEATURE_BATCH:
        workers = 0  # one batch: this process decodes it sooner than a worker starts
    name = part.name if shard.of == 1 else f"{part.name}, shard {shard.number + 1} of {shard.of}"
    with counting(f"embedding {name}") as on_progress:
        written = embed_to_file(
            out,
            encoder,
            replace(part, pixel=pixel),
            notes,
            normalise=normalise,
            workers=workers,
            compute=compute,
            on_progress=on_progress,
            may_be_empty=shard.of > 1,
        )
    if written is not None:
        with speaking(True):  # every process, of its own file
            if written < len(images):
                say(
                    f"warning: {len(images) - written:,} of {len(images):,} images cannot be "
                    f"read; {out}.unreadable.txt lists them"
                )
            say(f"{out}: the vectors of {written:,} images")
    return out


def list_collection(
    run: Path, data: Data | None, settings: CollectionConfig, option: str
) -> tuple[ImageList, dict[str, Any]]:
    """The images of a collection, and the settings that list them again.

    option: of the command, by which a user gives the images.
    """
    cache = settings.cache
    split: str | None = settings.split
    config = run / "config.json"
    own = where_in(read_json(config)["data"]) if config.is_file() else None
    if own is not None and (data is None or (data == own.data and data in DATASETS)):
        where = own._replace(data_path=settings.data_path)
        if settings.data_path is None:
            where = find_images(run, own, cache, option)
        split = split or "pretrain"
    elif data is None:
        raise UserError(f"{run} is no run folder, so its data are unknown; give the images too")
    else:
        where = Where(data, settings.data_path)
    place = place_of(where)
    split = split or ("pretrain" if where.data in DATASETS or place is None else "all")
    source = where.images(split, cache, labelled=False)
    if where.data in DATASETS:
        return source, {
            "data": where.data,
            "data_path": None if place is None else str(place),
            "split": split,
        }
    places: Data = pinned(where, source.revision).data
    if not is_hub(where.data):
        places = tuple(str(Path(text).absolute()) for text in places_in(where.data))
    # A table's splits are not known when the list is read again; all images hold those of a split.
    listed = "all" if where.labels.table else split
    return source, {"data": places, "data_path": None, "split": listed}


def _whole(image: str) -> str:
    """The full path of a file, as in `Vectors.paths`; a link at its end is not followed."""
    path = Path(image)
    return str(path.parent.resolve() / path.name)


def shown_path(path: str) -> str:
    """The path for people: relative to the current folder, where it lies below it."""
    below = Path(path).is_relative_to(Path.cwd())
    return str(Path(path).relative_to(Path.cwd())) if below else path


def square_of(source: ImageList, index: int) -> Tensor:
    """The central square of an image: float [C, SIDE, SIDE] in [0, 1]; of 16 bits the brightest is 1."""
    images, extents = stream(source, 0).canvases(torch.tensor([index]), 2 * SIDE)
    channels = images.shape[1]
    as_it_is = Input(SIDE, (0.0,) * channels, (1.0,) * channels)
    seen = evaluation_view(images, extents, as_it_is)[0]
    return seen if images.dtype == torch.uint8 else seen / seen.amax().clamp(min=1e-6)


def _draw(path: Path, found: list[Neighbours], among: Vectors, places: dict[str, int]) -> None:
    k = min(len(each.paths) for each in found)
    if k == 0:
        raise UserError(f"--picture {path}: {among.source.name} has no other image to draw")

    source = infer_pixel_format(among.source, None, None)

    def square(name: str) -> Tensor:
        row = places.get(name, places.get(_whole(name)))
        if row is not None:
            return square_of(source, int(among.index[row]))
        outside = ImageList("", Path(), (_whole(name),), None, ())
        return square_of(infer_pixel_format(outside, None, None), 0)

    draw_neighbours(
        path,
        torch.stack([square(each.image) for each in found]),
        torch.stack([torch.stack([square(name) for name in each.paths[:k]]) for each in found]),
        torch.tensor([each.similarities[:k] for each in found]),
        None,
        [Path(each.image).name for each in found],
        f"{among.notes['training']}: the nearest of {len(among):,} images",
    )
