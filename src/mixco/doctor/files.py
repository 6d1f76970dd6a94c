"""Describes the files of a data set in one dictionary, for the page and for `--json`."""

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from mixco.data.image_list import ImageList
from mixco.doctor.near_duplicates import near_copies
from mixco.doctor.survey import Header, Look

LISTED = 1000  # the most names in each list of the JSON file


def describe_files(
    source: ImageList,
    headers: dict[int, Header | str],
    looks: dict[int, Look | str],
    same: list[list[int]],
    compared: int,
) -> dict[str, Any]:
    """Sizes, kinds, copies and classes of the files: all that does not depend on a run."""
    read = [header for header in headers.values() if isinstance(header, Header)]
    reasons = {
        i: what for part in (headers, looks) for i, what in part.items() if isinstance(what, str)
    }
    seen = sorted(i for i, look in looks.items() if isinstance(look, Look))
    pictures = [look for i in seen if isinstance(look := looks[i], Look)]
    # Exact copies look alike too; here only the others count.
    first = {i: group[0] for group in same for i in group}
    pairs = [(seen[a], seen[b]) for a, b in _near(pictures)]
    pairs = [(a, b) for a, b in pairs if first.get(a, a) != first.get(b, b)]
    names: Sequence[str] = source.files
    return {
        "data": source.name,
        "root": str(source.root),
        "files": len(names),
        "headers": len(headers),
        "decoded": len(looks),
        "unreadable": [{"file": names[i], "reason": reasons[i]} for i in sorted(reasons)[:LISTED]],
        "unreadable_files": len(reasons),
        "notes": list(source.notes),
        "bytes": sum(header.length for header in read) * len(names) // max(1, len(headers)),
        "sizes": _sizes(read),
        "kinds": dict(Counter(header.kind for header in read).most_common()),
        "grey": sum(look.grey for look in pictures),
        "copies": {
            "files": sum(len(group) - 1 for group in same),
            "compared": compared,
            "groups": [[names[i] for i in group] for group in same[:LISTED]],
        },
        "near_copies": {
            "files": len({b for _, b in pairs}),
            "compared": len(pictures),
            "pairs": [[names[a], names[b]] for a, b in pairs[:LISTED]],
        },
        "classes": _classes(source),
    }


def _near(pictures: list[Look]) -> list[tuple[int, int]]:
    if len(pictures) < 2:
        return []
    pairs = near_copies(np.stack([look.thumbnail for look in pictures]))
    return [(int(a), int(b)) for a, b in pairs]


def _sizes(read: list[Header]) -> dict[str, Any] | None:
    if not read:
        return None
    by_area = sorted(read, key=lambda header: header.height * header.width)
    aspects = [max(h.height, h.width) / min(h.height, h.width) for h in read]
    return {
        "smallest": [by_area[0].width, by_area[0].height],
        "median": [int(median(h.width for h in read)), int(median(h.height for h in read))],
        "largest": [by_area[-1].width, by_area[-1].height],
        "longest_side": max(max(h.height, h.width) for h in read),
        "aspect": {"median": round(median(aspects), 2), "largest": round(max(aspects), 1)},
    }


def _classes(source: ImageList) -> dict[str, Any] | None:
    """How many files each class has, or each top folder where those may be classes."""
    if source.labels is not None:
        of_each = Counter(source.classes[label] for label in source.labels)
    else:
        of_each = Counter(name.partition("/")[0] for name in source.files if "/" in name)
        if len(of_each) < 2 or of_each.total() < len(source.files):
            return None
    (largest, most), *_, (smallest, fewest) = of_each.most_common()
    return {
        "are": "folders" if source.labels is None else "classes",
        "number": len(of_each),
        "smallest": [smallest, fewest],
        "largest": [largest, most],
    }
