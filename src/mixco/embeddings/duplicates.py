"""The command duplicates: images that are nearly or exactly the same, in a collection or two splits."""

import csv
import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from mixco.data.decode import decode
from mixco.data.opening import UnreadableImage
from mixco.data.pixel_format import infer_pixel_format
from mixco.embeddings.commands import list_collection, load, shown_path, square_of, vectors_of
from mixco.embeddings.knn import neighbours
from mixco.embeddings.search import ROUNDING, near_duplicates
from mixco.embeddings.vectors import KINDS, Vectors, is_vectors, read_vectors
from mixco.plots.images import draw_groups
from mixco.runtime.errors import UserError
from mixco.runtime.files import open_table, replacing
from mixco.runtime.progress import counting, doing, say
from mixco.runtime.run_folder import write_json
from mixco.settings.commands import DuplicatesConfig

ALIKE = 0.95
"""Images with the same pixels are more similar. Not always 1: a JPEG is reduced by its own decoder, and
saved as PNG it gets another vector."""
MOST_GROUPS, MOST_IMAGES = 48, 8  # of a picture, and of each of its groups


@dataclass(frozen=True)
class Duplicates:
    """A group of images, each of them near the first."""

    paths: tuple[str, ...]
    similarities: tuple[float, ...]
    """Cosine similarity of each to the first."""
    same_pixels_as: tuple[str | None, ...]
    """For each the first image of the group with exactly the same pixels, or None."""


Members = list[tuple[Vectors, int]]
"""The images of a group, each as a row of its collection."""


def duplicates(config: DuplicatesConfig) -> list[Duplicates]:
    """Groups of near-duplicates, the tightest first; written to --out and drawn to --picture, if given.

    search.near_duplicates defines a group. With --between a group is an image of the second split and
    the nearest of the first split, if they are near or have the same pixels; the latter come first.

    Raises UserError for mistakes that the user can correct.
    """
    if not 0 < config.threshold <= 1:
        raise UserError(f"--threshold must be above 0 and at most 1, got {config.threshold}")
    if config.out is not None and config.out.suffix not in (".csv", ".json"):
        raise UserError(f"--out must end in .csv or .json, got {config.out}")
    if config.picture is not None and config.picture.suffix != ".png":
        raise UserError(f"--picture must end in .png, got {config.picture}")
    if config.between is None:
        found, members = _within(_collection(config), config.threshold)
        title = "Groups of images that are nearly or exactly the same"
    else:
        first, second = config.between
        found, members = _between(*_two_splits(config), config.threshold)
        title = f"Images of {second} (left) that are, nearly or exactly, in {first} (right)"
    if config.out is not None:
        _write(config.out, found)
    if config.picture is not None:
        most = min(config.show or MOST_GROUPS, MOST_GROUPS)
        title += f": the tightest {most} of {len(found):,}" if most < len(found) else ""
        _draw(config.picture, found[:most], members[:most], title)
    return found


def _collection(config: DuplicatesConfig) -> Vectors:
    if is_vectors(config.run):
        if config.among is not None:
            raise UserError(f"{config.run} already holds the vectors; leave out --among")
        return read_vectors(config.run)
    encoder = load(config.run, config.collection)
    return vectors_of(config.run, encoder, config.among, config.collection)


def _two_splits(config: DuplicatesConfig) -> tuple[Vectors, Vectors]:
    """The splits of --between, in the same pixel format."""
    splits, among = config.between or (), config.among
    option = f"--between {' '.join(splits)}"
    if len(set(splits)) != 2:
        raise UserError(f"{option}: give two different splits, such as train test")
    if config.collection.split is not None:
        raise UserError(f"{option} names the splits; leave out --split")
    for path in (config.run, *([Path(among)] if isinstance(among, str) else [])):
        if is_vectors(path) or (path != config.run and path.suffix in KINDS):
            raise UserError(
                f"{option}: {path} is a file of vectors, which has no splits; give a run or weights, "
                "and with --among a folder that has the splits or the name of a data set"
            )
    encoder = load(config.run, config.collection)
    settings = [replace(config.collection, split=split) for split in splits]
    for one in settings:  # a split that is missing is told before the other one is embedded
        list_collection(config.run, among, one, "--among")
    first, second = (vectors_of(config.run, encoder, among, one) for one in settings)
    formats = (infer_pixel_format(each.source, None, None).pixel for each in (first, second))
    pixel = max(formats)  # grey images are read as RGB where the other split has colours
    return (
        replace(first, source=replace(first.source, pixel=pixel)),
        replace(second, source=replace(second.source, pixel=pixel)),
    )


def _within(among: Vectors, threshold: float) -> tuple[list[Duplicates], list[Members]]:
    """The groups of one collection."""
    among = replace(among, source=infer_pixel_format(among.source, None, None))
    with counting("comparing") as on_progress:
        groups = near_duplicates(among.vectors, threshold, on_progress)
    names = among.paths()
    found = []
    with counting("comparing pixels") as on_progress:
        for done, group in enumerate(groups, 1):
            paths = tuple(shown_path(names[row]) for row, _ in group)
            first_with: dict[str, str] = {}
            same = []
            for (row, _), path in zip(group, paths, strict=True):
                pixels = _pixel_hash(among, row)
                same.append(first_with.get(pixels) if pixels else None)
                first_with.setdefault(pixels, path)
            found.append(Duplicates(paths, tuple(value for _, value in group), tuple(same)))
            on_progress(done, len(groups))
    return found, [[(among, row) for row, _ in group] for group in groups]


def _between(
    first: Vectors, second: Vectors, threshold: float
) -> tuple[list[Duplicates], list[Members]]:
    """A pair for each image of the second collection that is in the first, nearly or exactly."""
    say(f"comparing {len(second):,} images with {len(first):,}")
    with doing("comparing"):
        similarities, nearest = (
            part[:, 0] for part in neighbours(first.vectors, second.vectors, 1)
        )
    same = _same_pixels(first, second, similarities)
    rows = (similarities >= threshold - ROUNDING).nonzero().squeeze(1).tolist()
    pairs = [(row, same.get(row, int(nearest[row]))) for row in sorted({*rows, *same})]
    values = F.cosine_similarity(
        second.vectors[[row for row, _ in pairs]], first.vectors[[near for _, near in pairs]]
    )
    order = sorted(
        zip(pairs, values.clamp(max=1).tolist(), strict=True),
        key=lambda pair: (pair[0][0] not in same, -pair[1]),
    )
    names, others = second.paths(), first.paths()
    found = []
    for (row, near), value in order:
        image = shown_path(names[row])
        paths = (image, shown_path(others[near]))
        found.append(Duplicates(paths, (1.0, value), (None, image if row in same else None)))
    return found, [[(second, row), (first, near)] for (row, near), _ in order]


def _same_pixels(first: Vectors, second: Vectors, similarities: Tensor) -> dict[int, int]:
    """Row of the second collection -> the first row of the first one that has the same pixels.

    similarities: [M], of each row of the second one to its nearest. Only images that are alike are read.
    """
    alike = (similarities >= ALIKE).nonzero().squeeze(1)
    if not len(alike):
        return {}
    backwards = neighbours(second.vectors[alike], first.vectors, 1)[0][:, 0]
    others = (backwards >= ALIKE).nonzero().squeeze(1).tolist()
    found: dict[str, int] = {}
    same: dict[int, int] = {}
    count = len(others) + len(alike)
    with counting("comparing pixels") as on_progress:
        for done, row in enumerate(others, 1):
            found.setdefault(_pixel_hash(first, row), row)
            on_progress(done, count)
        found.pop("", None)
        for done, row in enumerate(alike.tolist(), len(others) + 1):
            if (pixels := _pixel_hash(second, row)) in found:
                same[row] = found[pixels]
            on_progress(done, count)
    return same


def _pixel_hash(among: Vectors, row: int) -> str:
    """A hash of shape and pixels; "" where the image can no longer be read."""
    source = among.source
    try:
        pixels = decode(source.read(int(among.index[row])), pixel=source.pixel)
    except UnreadableImage:
        return ""
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()


def _draw(path: Path, groups: list[Duplicates], members: list[Members], title: str) -> None:
    if not groups:
        say(f"no picture {path}: nothing was found")
        return
    captions = []
    for group in groups:
        notes = [f"{value:.4f}" for value in group.similarities]
        notes = [
            "same pixels" if a else b for a, b in zip(group.same_pixels_as, notes, strict=True)
        ]
        names = (Path(name).name for name in group.paths)
        captions.append([*zip(names, ["", *notes[1:]], strict=True)][:MOST_IMAGES])
    pictures = [
        [square_of(among.source, int(among.index[row])) for among, row in some[:MOST_IMAGES]]
        for some in members
    ]
    draw_groups(path, pictures, captions, title)


def _write(path: Path, groups: list[Duplicates]) -> None:
    if path.suffix == ".json":
        write_json(path, [asdict(group) for group in groups])
        return
    with replacing(path) as temporary, open_table(temporary, "w") as file:
        writer = csv.writer(file)
        writer.writerow(("group", "path", "similarity", "same_pixels_as"))
        for number, group in enumerate(groups, 1):
            for row in zip(group.paths, group.similarities, group.same_pixels_as, strict=True):
                writer.writerow((number, row[0], f"{row[1]:.4f}", row[2] or ""))
