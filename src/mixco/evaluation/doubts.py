"""What makes an evaluation worthless: a single class, and test images that were learned from."""

from collections.abc import Iterator

from mixco.data.datasets.folders import plain
from mixco.data.image_list import ImageList
from mixco.data.pixel_format import spread
from mixco.runtime.errors import UserError
from mixco.runtime.files import shown

LOOKED_AT = 100  # test images that are compared with those of train
MOST_TRAIN = 100_000  # train images whose sizes are asked for
MOST_READ = 20  # files of equal size that are read for a test image
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


def doubts(train: ImageList, test: ImageList) -> Iterator[str]:
    """What may make the accuracy say something else than it seems to."""
    seen: dict[str, str] = {}
    for name in train.classes:
        if (other := seen.setdefault(plain(name), name)) != name:
            yield f"the classes {other!a} and {name!a} look alike, but count as two"
    looked_at, shared = shared_images(train, test)
    if shared > MOST_SHARED * looked_at:
        yield (
            f"{shared} of {looked_at} test images that were looked at are copies of train images, so "
            "the accuracy says little about new ones; remove them from one of the two"
        )


def shared_images(train: ImageList, test: ImageList) -> tuple[int, int]:
    """How many test images were compared, and how many of them are copies of train images.

    At most 100 are compared. None is if the images lie in archives, or if train is large.
    """
    if train.containers or test.containers or len(train.files) > MOST_TRAIN:
        return 0, 0
    chosen = spread(len(test.files), LOOKED_AT)
    wanted = {size for i in chosen if (size := _size(test, i))}
    of_size: dict[int, list[int]] = {}
    for i in range(len(train.files)):
        if (size := _size(train, i)) in wanted:
            of_size.setdefault(size, []).append(i)
    shared = sum(_is_among(test, i, train, of_size.get(_size(test, i), [])) for i in chosen)
    return len(chosen), shared


def _is_among(test: ImageList, index: int, train: ImageList, candidates: list[int]) -> bool:
    """candidates: train images of the same size in bytes; where all have one size, only namesakes."""
    name = test.files[index].rpartition("/")[2]
    if len(candidates) > MOST_READ:
        candidates = [i for i in candidates if train.files[i].rpartition("/")[2] == name]
    try:
        content = (test.root / test.files[index]).read_bytes()
        paths = [train.root / train.files[i] for i in candidates[:MOST_READ]]
        return any(path.read_bytes() == content for path in paths)
    except OSError:
        return False


def _size(source: ImageList, index: int) -> int:
    try:
        return (source.root / source.files[index]).stat().st_size
    except OSError:
        return 0
