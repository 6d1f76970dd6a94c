import dataclasses
import hashlib
import math
from collections import Counter
from pathlib import Path

import pytest
from public_layouts import CIFARS, small, use, write_cifar_binary
from sample_images import unpack_sample

from mixco.data.datasets import list_images
from mixco.data.datasets.subsets import choose, published, subset_name, with_labels
from mixco.data.image_list import ImageList
from mixco.runtime.errors import UserError

SAMPLE = list_images("sample", None, "train")


def tiny_imagenet() -> ImageList:
    """The names of Tiny-ImageNet's 100,000 training images: 200 classes, numbered from 0 to 499."""
    classes = tuple(sorted({name.split("/")[1] for name in published("tiny-imagenet", 1)}))
    names = sorted(f"train/{c}/images/{c}_{i}.JPEG" for c in classes for i in range(500))
    labels = tuple(classes.index(name.split("/")[1]) for name in names)
    return ImageList("tiny-imagenet/train", Path("somewhere"), tuple(names), labels, classes)


def reference(source: ImageList, share: float) -> set[str]:
    """The published rule, word for word."""
    data = source.name.split("/")[0]
    chosen = set()
    for label in range(len(source.classes)):
        names = [
            n for n, own in zip(source.files, source.labels or (), strict=True) if own == label
        ]
        names.sort(key=lambda n: hashlib.sha256(f"mixco/{data}/{n}".encode()).hexdigest())
        chosen |= set(names[: math.ceil(share * len(names))])
    return chosen


@pytest.mark.parametrize("percent", [1, 10])
@pytest.mark.parametrize("source", [SAMPLE, tiny_imagenet()], ids=lambda s: s.name)
def test_the_published_lists_are_the_rules(source: ImageList, percent: int) -> None:
    listed = published(source.name.split("/")[0], percent)
    assert listed == choose(source, percent)
    assert set(listed) == reference(source, percent / 100)
    assert list(listed) == sorted(set(listed))


@pytest.mark.parametrize(
    ("source", "percent", "each"),
    [(SAMPLE, 1, 2), (SAMPLE, 10, 16), (tiny_imagenet(), 1, 5), (tiny_imagenet(), 10, 50)],
)
def test_each_class_has_its_share(source: ImageList, percent: int, each: int) -> None:
    subset = with_labels(source, f"{percent}%")
    assert subset.labels is not None
    assert Counter(subset.labels) == dict.fromkeys(range(len(source.classes)), each)
    label_of = dict(zip(source.files, source.labels or (), strict=True))
    assert all(label_of[n] == own for n, own in zip(subset.files, subset.labels, strict=True))


@pytest.mark.parametrize("source", [SAMPLE, tiny_imagenet()], ids=lambda s: s.name)
def test_the_small_subset_lies_within_the_large(source: ImageList) -> None:
    assert set(choose(source, 1)) < set(choose(source, 10)) < set(source.files)


def test_no_test_image_is_on_a_list() -> None:
    test = set(list_images("sample", None, "test").files)
    assert not test & set(published("sample", 10))
    assert all(name.startswith("train/") for name in published("tiny-imagenet", 10))


def test_the_rule_serves_any_folder_and_its_smallest_class(tmp_path: Path) -> None:
    unpack_sample(tmp_path / "photos", train=12, test=2, classes=3)
    rare = next((tmp_path / "photos" / "train").iterdir())
    for path in sorted(rare.iterdir())[1:]:
        path.unlink()
    source = list_images(str(tmp_path / "photos"), None, "train")
    subset = with_labels(source, "10%")
    assert sorted(Counter(subset.labels).values()) == [1, 2, 2]
    assert set(subset.files) == reference(source, 0.1)


def test_some_classes_of_a_published_set_keep_their_images() -> None:
    whole = tiny_imagenet()
    some = [i for i, label in enumerate(whole.labels or ()) if label < 3]
    part = dataclasses.replace(
        whole,
        files=tuple(whole.files[i] for i in some),
        labels=tuple((whole.labels or ())[i] for i in some),
        classes=whole.classes[:3],
    )
    assert set(with_labels(part, "1%").files) < set(published("tiny-imagenet", 1))


def test_a_copy_that_is_not_whole_is_refused() -> None:
    gone = published("sample", 1)[0]
    keep = [i for i, name in enumerate(SAMPLE.files) if name != gone]
    broken = dataclasses.replace(
        SAMPLE,
        files=tuple(SAMPLE.files[i] for i in keep),
        labels=tuple((SAMPLE.labels or ())[i] for i in keep),
    )
    with pytest.raises(UserError, match=r"published list.*unpack it again"):
        with_labels(broken, "1%")


def test_a_folder_that_is_called_like_a_known_set_is_its_own(tmp_path: Path) -> None:
    unpack_sample(tmp_path / "sample", train=5, test=1, classes=2)
    source = list_images(str(tmp_path / "sample"), None, "train")
    assert len(with_labels(source, "1%").files) == 2


def test_an_own_list(tmp_path: Path) -> None:
    names = [SAMPLE.files[(SAMPLE.labels or ()).index(label)] for label in range(10)]
    path = tmp_path / "first of each.txt"
    path.write_text("\n".join([*names, names[0], ""]))
    subset = with_labels(SAMPLE, str(path))
    assert subset.files == tuple(sorted(names))
    assert sorted(subset.labels or ()) == list(range(10))
    assert subset_name(str(path)) == "first-of-each"

    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(names).encode())  # as some editors write it
    assert with_labels(SAMPLE, str(path)).files == subset.files
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match=r"txt: \\udcff\\udcfe is not among the train images"):
        with_labels(SAMPLE, str(path))

    path.write_text("\n".join(names[:-1]))
    with pytest.raises(UserError, match=f"no image of class {SAMPLE.classes[9]}"):
        with_labels(SAMPLE, str(path))
    path.write_text("AnnualCrop_1.jpg")
    with pytest.raises(UserError, match=r"AnnualCrop_1\.jpg is not among the train images"):
        with_labels(SAMPLE, str(path))
    with pytest.raises(UserError, match=r"--labels must be 1%, 10%, or a text file.*25%"):
        with_labels(SAMPLE, "25%")


def test_all_labels_change_nothing() -> None:
    assert with_labels(SAMPLE, None) is SAMPLE


def test_a_subset_of_arrays_keeps_each_picture_with_its_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, write_cifar_binary(tmp_path, small(CIFARS["cifar10"], 20)))
    source = list_images("cifar10", tmp_path, "train")
    subset = with_labels(source, "10%")
    assert len(subset.files) == 10
    assert subset.labels is not None and source.labels is not None
    for i, name in enumerate(subset.files):
        j = source.files.index(name)
        assert subset.read(i) == source.read(j)
        assert subset.labels[i] == source.labels[j]
