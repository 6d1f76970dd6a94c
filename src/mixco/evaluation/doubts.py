"""What makes an evaluation worthless: a single class, and test images that were learned from."""

from collections.abc import Iterator

from mixco.data.copies import exact_copies
from mixco.data.datasets.folders import plain
from mixco.data.image_list import ImageList
from mixco.data.images import Images
from mixco.runtime.errors import UserError
from mixco.runtime.files import shown

MOST_SHARED = 0.01


def refuse_one_class(train: ImageList) -> None:
    """Raises UserError for fewer than two classes: every answer would be right."""
    if len(train.classes) < 2:
        found = ", ".join(map(shown, train.classes)) or "none"
        raise UserError(
            f"{train.root}: at least two class folders are expected, found one: {found}; sort the "
            "images into a folder for each class, or look at them without labels (mixco neighbours, "
            "mixco report)"
        )


def doubts(train: Images, test: Images, shown_by: str | None = None) -> Iterator[str]:
    """What may make the accuracy say something else than it seems to.

    shown_by: the command that shows which test images are in train.
    """
    seen: dict[str, str] = {}
    for name in train.classes:
        if (other := seen.setdefault(plain(name), name)) != name:
            yield f"the classes {other!a} and {name!a} look alike, but count as two"
    copies, (in_train, in_test) = exact_copies(train, test)
    if not copies:
        return
    of = f"{in_test:,} test images"
    if in_train < train.readable or in_test < test.readable:
        of = f"the {of} that were compared with {in_train:,} train images"
    image, original = map(_place, (test, train), copies[0])
    parts = [
        f"{len(copies):,} of {of} are exact copies of train images (such as {image} of {original})"
    ]
    if len(copies) > MOST_SHARED * in_test:
        parts.append(
            "the accuracy says little about new images; remove them from one of the two splits"
        )
    if shown_by:
        parts.append(f"`{shown_by}` shows them")
    yield "; ".join(parts)


def _place(images: Images, name: str) -> str:
    source = images.source
    return shown(name if source.containers else str(source.root / name))
