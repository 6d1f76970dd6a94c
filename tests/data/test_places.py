"""Images from several places: folders, lists, patterns and shards, taken together."""

import dataclasses
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
from configs import evaluation_config
from run_folders import random_run
from sample_images import unpack_sample

from mixco.data.datasets import Data, LabelSource, list_images, places, set_name
from mixco.data.datasets.places import expand_braces, spot_of
from mixco.data.image_list import ImageList
from mixco.data.images import Images
from mixco.data.loading import open_images
from mixco.data.run_images import digest
from mixco.evaluation.task import load_task
from mixco.runtime.errors import UserError


@lru_cache
def jpeg(number: int) -> bytes:
    """The bytes of a photograph of the sample."""
    return list_images("sample", None, "train").read(number)


def photos(folder: Path, *numbers: int, prefix: str = "") -> Path:
    """A folder with some photographs of the sample, called by their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{prefix}{number:04}.jpg").write_bytes(jpeg(number))
    return folder


def listed(*data: Path | str, split: str = "pretrain", cache: Path | None = None) -> ImageList:
    texts = tuple(map(str, data))
    return list_images(texts[0] if len(texts) == 1 else texts, None, split, cache)


def write_list(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def refused(*data: Path | str, split: str = "pretrain") -> str:
    with pytest.raises(UserError) as error:
        listed(*data, split=split)
    return str(error.value)


# Folders.


def test_names_are_paths_below_the_folder_that_all_lie_in(tmp_path: Path) -> None:
    first, second = photos(tmp_path / "a" / "x", 1, 2), photos(tmp_path / "b", 3)
    found = listed(first, second)
    assert found.root == tmp_path
    assert found.files == ("a/x/0001.jpg", "a/x/0002.jpg", "b/0003.jpg")
    assert found.name == "b+x/pretrain" and found.labels is None
    assert found.read(2) == jpeg(3)


def test_the_order_of_the_places_does_not_matter(tmp_path: Path) -> None:
    first, second, third = (
        photos(tmp_path / f, n, n + 1) for f, n in (("c", 1), ("a", 3), ("b", 4))
    )
    write_list(tmp_path / "l.txt", "c/0001.jpg", "c/missing.jpg")
    orders = [
        (first, second, third, tmp_path / "l.txt"),
        (tmp_path / "l.txt", third, second, first),
        (third, tmp_path / "l.txt", first, second),
    ]
    found = [listed(*order) for order in orders]
    assert len({digest(each) for each in found}) == 1
    assert len({each.name for each in found}) == 1
    assert len(found[0].files) == 6, "0004 of two folders counts once"


@pytest.mark.parametrize("split", ["pretrain", "train", "test", "all"])
def test_a_folder_alone_is_what_it_was_also_when_it_is_given_twice(
    tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unpack_sample(tmp_path / "photos", train=2, test=1, classes=2)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    alone = list_images("photos", None, split)
    twice = list_images(("photos", "./photos/", str(folder), "link"), None, split)
    assert twice.files == alone.files and twice.labels == alone.labels
    assert twice.classes == alone.classes and twice.notes == alone.notes
    assert twice.root.samefile(alone.root) and digest(alone) == digest(twice)


@pytest.mark.parametrize("turned", [False, True])
def test_a_folder_inside_another(tmp_path: Path, turned: bool) -> None:
    outer = photos(tmp_path / "a", 1, 2)
    inner = photos(outer / "inner", 1, 3)
    found = listed(*((inner, outer) if turned else (outer, inner)))
    assert found.root == outer
    assert found.files == ("0001.jpg", "0002.jpg", "inner/0001.jpg", "inner/0003.jpg")
    assert not any("same images" in note for note in found.notes), "copies in one folder stay"


def test_a_link_to_another_of_the_folders_in_any_order(tmp_path: Path) -> None:
    first, second = photos(tmp_path / "b", 1, 2), photos(tmp_path / "c", 3)
    (tmp_path / "a").symlink_to(first)
    for data in ((first, tmp_path / "a", second), (second, tmp_path / "a", first)):
        found = listed(*data)
        assert found.files == ("a/0001.jpg", "a/0002.jpg", "c/0003.jpg") and found.notes == ()


def test_copies_in_two_places_count_once(tmp_path: Path) -> None:
    first = photos(tmp_path / "a", 1, 2)
    second = photos(tmp_path / "b", 2, prefix="another-name-")
    photos(second, 3)
    (second / "0001.jpg").write_bytes(jpeg(4))  # an equal name, other content
    (first / "same-size.jpg").write_bytes(jpeg(5) + b"\0" * (len(jpeg(6)) % 7))
    (second / "same-size.jpg").write_bytes((first / "same-size.jpg").read_bytes()[:-1] + b"\1")
    found = listed(first, second)
    assert found.files == (
        *("a/0001.jpg", "a/0002.jpg", "a/same-size.jpg"),
        *("b/0001.jpg", "b/0003.jpg", "b/same-size.jpg"),
    )
    assert [note for note in found.notes if "b/another-name-0002.jpg" in note]


def test_copies_that_differ_in_the_middle_are_none(tmp_path: Path) -> None:
    changed = bytearray(jpeg(1) * 4)
    photos(tmp_path / "a"), photos(tmp_path / "b")
    (tmp_path / "a" / "x.jpg").write_bytes(changed)
    changed[100] ^= 1
    (tmp_path / "b" / "x.jpg").write_bytes(changed)
    assert len(listed(tmp_path / "a", tmp_path / "b").files) == 2


def test_copies_inside_one_folder_stay(tmp_path: Path) -> None:
    first = photos(tmp_path / "a", 1)
    photos(first, 1, prefix="copy-")
    assert len(listed(first, photos(tmp_path / "b", 2)).files) == 3
    photos(tmp_path / "b", 1, prefix="copy-")
    found = listed(first, tmp_path / "b")
    assert found.files == ("a/0001.jpg", "a/copy-0001.jpg", "b/0002.jpg")


def test_what_are_copies_is_kept_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (photos(tmp_path / "a", 1, 2), photos(tmp_path / "b", 1))
    cache = tmp_path / "cache"
    hashed: list[str] = []
    hash_file = places._hash

    def counted(path: str, last: int | None = None) -> bytes:
        hashed.append(path)
        return hash_file(path, last)

    monkeypatch.setattr(places, "_hash", counted)
    assert listed(*data, cache=cache).files == ("a/0001.jpg", "a/0002.jpg")
    assert hashed
    hashed.clear()
    assert listed(*data, cache=cache).notes == listed(*reversed(data), cache=cache).notes
    assert not hashed, "not computed again"
    (data[1] / "0001.jpg").write_bytes(jpeg(1)[:-1] + b"\0")
    assert len(listed(*data, cache=cache).files) == 3
    assert hashed


def test_a_cache_that_cannot_be_used_costs_only_time(tmp_path: Path) -> None:
    data = (photos(tmp_path / "a", 1, 2), photos(tmp_path / "b", 1))
    cache = tmp_path / "cache"
    before = listed(*data, cache=cache)
    (kept,) = cache.glob("copies-*.json")
    for damage in ("", kept.read_text()[:-9], "\udcff"):
        kept.write_text(damage, "utf-8", "surrogateescape")
        assert listed(*data, cache=cache) == before, damage


# Splits and labels.


def test_each_folder_has_its_own_train(tmp_path: Path) -> None:
    split = unpack_sample(tmp_path / "a", train=2, test=1, classes=2)
    loose = photos(tmp_path / "b", 900, 901)
    found = listed(split, loose)
    assert len(found.files) == 6 and found.labels is None
    assert {name.split("/")[0] for name in found.files} == {"a", "b"}
    assert not any("/test/" in name for name in found.files)
    assert any("left aside" in note and "test/" in note for note in found.notes)
    everything = listed(split, loose, split="all")
    assert len(everything.files) == 8 and everything.root == tmp_path


def test_the_classes_of_several_folders_are_taken_together(tmp_path: Path) -> None:
    first = unpack_sample(tmp_path / "a", train=2, test=1, classes=2)
    second = unpack_sample(tmp_path / "b", train=5, test=3, classes=3)
    for copied in (first / "train").rglob("*.jpg"):
        (second / "train" / copied.parent.name / copied.name).unlink()
    for copied in (first / "test").rglob("*.jpg"):
        (second / "test" / copied.parent.name / copied.name).unlink()
    train, test, pretrain = (listed(first, second, split=s) for s in ("train", "test", "pretrain"))
    assert len(train.classes) == 3 and train.classes == test.classes == pretrain.classes
    assert train.labels == pretrain.labels and train.files == pretrain.files
    for found in (train, test):
        assert found.labels is not None
        for file, label in zip(found.files, found.labels, strict=True):
            assert found.classes[label] == file.split("/")[-2]
    assert len(train.files) == 4 + 2 * 3 + 5 and len(test.files) == 2 + 2 * 2 + 3


def test_a_class_whose_images_are_all_copies_stays_a_class(tmp_path: Path) -> None:
    """Else the labels of train and test would have different meanings."""
    first = unpack_sample(tmp_path / "a", train=2, test=1, classes=2)
    second = unpack_sample(tmp_path / "b", train=2, test=2, classes=2)
    (second / "train" / "AnnualCrop").rename(second / "train" / "A")
    (second / "test" / "AnnualCrop").rename(second / "test" / "A")
    train, test = (listed(first, second, split=split) for split in ("train", "test"))
    assert train.classes == test.classes == ("A", "AnnualCrop", "Forest")
    assert train.labels is not None and 0 not in train.labels


def test_a_folder_without_labels_beside_one_with_labels(tmp_path: Path) -> None:
    labelled = unpack_sample(tmp_path / "a", train=2, test=1, classes=2)
    loose = photos(tmp_path / "b", 900)
    assert listed(labelled, loose).labels is None
    said = refused(labelled, loose, split="train")
    assert str(loose / "train") in said and "<class>" in said


def test_several_folders_are_evaluated(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", tmp_path / "a")
    first = unpack_sample(tmp_path / "a", train=3, test=1, classes=2)
    second = unpack_sample(tmp_path / "b", train=4, test=2, classes=3)
    config = evaluation_config(
        run, data=(str(first), str(second)), cache=tmp_path / "cache", out=tmp_path / "out"
    )
    task = load_task(config)
    assert len(task.classes) == 3
    assert len(task.train.images) == 3 * 2 + 2 + 4
    assert len(task.test.images) == 2 * 1 + 2 + 2


# Lists.


def test_a_list_names_images_relative_to_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "a", 1, 2, 3, 4), photos(tmp_path / "lists" / "c", 5)
    elsewhere = photos(tmp_path / "elsewhere", 6)
    monkeypatch.chdir(elsewhere)
    names = write_list(
        tmp_path / "lists" / "some.txt",
        "\ufeff# a comment",
        "../a/0002.jpg",
        "",
        "   ",
        f"{tmp_path}/a/0001.jpg\r",
        "../a/./0001.jpg",
        "c",
        "../a/*3.jpg",
    )
    found = listed(names)
    assert found.root == tmp_path
    assert found.files == ("a/0001.jpg", "a/0002.jpg", "a/0003.jpg", "lists/c/0005.jpg")
    assert found.name == "some/pretrain"
    assert listed("../lists/some.txt").files == found.files
    assert listed("../lists/*.txt").files == found.files


def test_a_list_among_other_places(tmp_path: Path) -> None:
    names = write_list(tmp_path / "l.txt", "b/0002.jpg")
    found = listed(photos(tmp_path / "a", 1), names, photos(tmp_path / "b", 2, 3) / "0003.jpg")
    assert found.files == ("a/0001.jpg", "b/0002.jpg", "b/0003.jpg")


def test_a_missing_image_of_a_list_is_reported_as_unreadable(tmp_path: Path) -> None:
    photos(tmp_path / "a", 1, 2)
    source = listed(write_list(tmp_path / "l.txt", "a/0001.jpg", "a/gone.jpg", "a/0002.jpg"))
    assert source.files == ("0001.jpg", "0002.jpg", "gone.jpg")
    with pytest.raises(UserError, match=r"gone\.jpg.*--max-unreadable"):
        opened(source, tmp_path)
    images = opened(dataclasses.replace(source, max_unreadable=0.5), tmp_path)
    said = list(images.unreadable_files)
    assert [file for file, _ in said] == ["gone.jpg"] and "No such file" in said[0][1]


def opened(source: ImageList, folder: Path) -> Images:
    return open_images(
        source, size=32, cache=folder / "cache", loading="packed", workers=0, memory=2**30
    )


def test_a_list_of_a_thousand_images_is_not_looked_up_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"some/{i:04}.jpg" for i in range(1000)]
    path = write_list(tmp_path / "l.txt", *reversed(names))
    asked: list[str] = []
    stat = Path.stat

    def counted(self: Path, **how: bool) -> os.stat_result:
        asked.append(self.name)
        return stat(self, **how)

    monkeypatch.setattr(Path, "stat", counted)
    found = listed(path)
    assert found.files == tuple(name.removeprefix("some/") for name in names)
    assert not [name for name in asked if name.endswith(".jpg")]


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    folder = photos(tmp_path / "a", 1)
    try:
        (folder / name).write_bytes(jpeg(2))
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    (tmp_path / "l.txt").write_bytes(b"a/caf\xe9.jpg\nb/0002.jpg\n")
    photos(tmp_path / "b", 2, 3)
    cache = tmp_path / "cache"
    found = listed(tmp_path / "l.txt", cache=cache)
    assert found.files == (f"a/{name}", "b/0002.jpg"), "places in one list are one place"
    for _ in range(2):  # computed, and from the cache
        joined = listed(folder, tmp_path / "b", cache=cache)
        assert joined.files == ("a/0001.jpg", f"a/{name}", "b/0003.jpg")
        joined.notes[-1].encode()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((), ("empty", "a path in each line")),
        (("# nothing", ""), ("empty", "a path in each line")),
        (("", "more.txt"), ("line 2", "more.txt", "cannot name others")),
        (("a/0001.jpg", "gone"), ("line 2", "gone", "check the path")),
        (("a/9*.jpg",), ("line 1", "9*.jpg", "check the path")),
        (("notes.pdf",), ("line 1", "notes.pdf", "expected a folder, an image, a shard")),
        (("a/0001.jpg\0",), ("UTF-8",)),
    ],
)
def test_what_is_wrong_with_a_list(
    tmp_path: Path, lines: tuple[str, ...], words: tuple[str, ...]
) -> None:
    photos(tmp_path / "a", 1)
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    write_list(tmp_path / "more.txt", "a/0001.jpg")
    said = refused(write_list(tmp_path / "l.txt", *lines))
    assert all(word in said for word in (*words, "l.txt"))


def test_images_that_are_named_alone_have_no_split(tmp_path: Path) -> None:
    said = refused(photos(tmp_path / "a", 1) / "0001.jpg", split="train")
    assert "0001.jpg" in said and "--labels-from" in said


# Patterns.


def test_patterns_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        photos(tmp_path / f"day-{number}", number)
    (tmp_path / "day-1" / "notes.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    every = ("day-0/0000.jpg", "day-1/0001.jpg", "day-2/0002.jpg")
    for pattern in ("day-*", "day-*/*", "day-{0..2}", "**/*.jpg", f"{tmp_path}/day-?"):
        assert listed(pattern).files == every, pattern
    assert listed("day-{1..1}").files == ("0001.jpg",)
    assert listed("day-[02]").name == "day/pretrain"


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    odd = tmp_path / "a[1] {0..2}*"
    photos(odd / "b", 1, 2)
    assert listed(odd).files == ("b/0001.jpg", "b/0002.jpg")
    assert listed(write_list(odd / "l.txt", "b/*1.jpg")).files == ("0001.jpg",)
    (odd / "b" / "x[1].jpg").write_bytes(jpeg(3))
    assert listed(write_list(odd / "l.txt", "b/x[1].jpg")).files == ("x[1].jpg",)
    assert spot_of([str(odd)]).folder == odd.resolve()


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("a-{08..10}.tar", ["a-08.tar", "a-09.tar", "a-10.tar"]),
        ("a-{8..10}.tar", ["a-8.tar", "a-9.tar", "a-10.tar"]),
        ("{0..1}/{00..01}.tar", ["0/00.tar", "0/01.tar", "1/00.tar", "1/01.tar"]),
        ("a-{x,y}.tar", ["a-{x,y}.tar"]),
        ("a-{3..1}.tar", []),
    ],
)
def test_the_braces_of_webdataset(pattern: str, paths: list[str]) -> None:
    assert expand_braces(pattern) == paths


# Shards.


def write_shard(path: Path, *numbers: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for number in numbers:
            member = tarfile.TarInfo(f"{number:04}.jpg")
            member.size = len(jpeg(number))
            file.addfile(member, io.BytesIO(jpeg(number)))
    return path


def test_shards_by_braces_and_in_any_order(tmp_path: Path) -> None:
    shards = [write_shard(tmp_path / "s" / f"{i:02}.tar", 2 * i, 2 * i + 1) for i in range(12)]
    braces = listed(f"{tmp_path}/s/{{00..11}}.tar")
    assert len(braces.files) == 24
    for other in ((tmp_path / "s",), tuple(reversed(shards)), (f"{tmp_path}/s/*.tar", shards[3])):
        found = listed(*other)
        assert digest(found) == digest(braces)
    assert braces.read(5) == jpeg(5)
    names = write_list(tmp_path / "l.txt", "s/{00..02}.tar")
    assert len(listed(names).files) == 6
    said = refused(f"{tmp_path}/s/{{10..12}}.tar")
    assert "12.tar" in said and "check the path" in said


def test_images_beside_shards_are_refused(tmp_path: Path) -> None:
    shard, folder = write_shard(tmp_path / "s" / "0.tar", 1), photos(tmp_path / "a", 2)
    for data in ((shard, folder), (folder, tmp_path / "s"), (folder / "0002.jpg", shard)):
        said = refused(*data)
        assert "0.tar" in said and "either images or shards" in said


# What is not there.


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (("a", "sampel"), ("--data sampel", "did you mean sample?")),
        ("sampel", ("--data sampel", "did you mean sample?")),
        (("a", "nowhere/"), ("--data nowhere/", "known sets are")),
        (("a", "b*"), ("--data b*", "check the path")),
        (("a", "a-{3..1}"), ("--data a-{3..1}", "must rise")),
        (("a", "sample"), ("--data sample", "given alone")),
        (("a", "hf:owner/name"), ("--data hf:owner/name", "given alone")),
        (("a", "notes.pdf"), ("--data notes.pdf", "expected a folder, an image")),
        (("a", ""), ("--data is empty",)),
        ((), ("--data is empty",)),
        (("a", "none"), ("none", "no image")),
    ],
)
def test_what_does_not_exist_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Data, words: tuple[str, ...]
) -> None:
    photos(tmp_path / "a", 1)
    (tmp_path / "none").mkdir()
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        list_images(data, None, "pretrain")
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (LabelSource(label_column="x"), ("--label-column x", "--labels-from")),
        (LabelSource(path_column="x"), ("--path-column x", "--labels-from")),
        (LabelSource(split_column="x"), ("--split-column x", "--labels-from")),
    ],
)
def test_a_column_of_nothing_is_refused(
    tmp_path: Path, labels: LabelSource, words: tuple[str, ...]
) -> None:
    folder = str(photos(tmp_path / "a", 1))
    with pytest.raises(UserError) as error:
        list_images(folder, None, "pretrain", labels=labels)
    assert all(word in str(error.value) for word in words)
    with pytest.raises(UserError, match=r"--data sample|--labels-from"):
        list_images("sample", None, "pretrain", labels=labels)


# Names and spots.


def by_link(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "real")
    return folder / "link"


@pytest.mark.parametrize("start", [lambda folder: folder / "real", by_link])
def test_places_that_move_together(tmp_path: Path, start: Callable[[Path], Path]) -> None:
    photos(tmp_path / "real" / "a", 1), photos(tmp_path / "real" / "b" / "c", 2)
    folder = start(tmp_path)
    spot = spot_of([f"{folder}/b/c", f"{folder}/a/", f"{folder}/a/*.jpg"])
    assert spot.folder == (tmp_path / "real").resolve()
    assert spot.below == ("b/c", "a", "a/*.jpg")
    shutil.move(tmp_path / "real", tmp_path / "moved")
    assert spot.moved(tmp_path / "moved") == tuple(
        str(tmp_path / "moved" / below) for below in spot.below
    )
    assert spot_of([str(tmp_path / "moved")]).moved(tmp_path) == (str(tmp_path),)


def test_what_several_places_are_called(tmp_path: Path) -> None:
    folders = tuple(str(photos(tmp_path / name, 1)) for name in "dbca")
    assert set_name(folders[:3]) == "b+c+d" == set_name(folders[2::-1])
    assert set_name(folders) == "a+3"
    assert set_name("x/train-{0000..0099}.tar") == "train"
