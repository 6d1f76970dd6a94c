"""Tar and Parquet shards: the same images as the folder that they were made from."""

import dataclasses
import gzip
import json
import os
import shutil
import tarfile
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from sample_images import unpack_sample
from shards import images_of, samples, write_parquets, write_tar, write_tars

from mixco.data import rows
from mixco.data.datasets import LabelSource, list_images, shards, tar
from mixco.data.decode import decode
from mixco.data.image_list import ImageList
from mixco.data.loading import open_images
from mixco.data.opening import UnreadableImage
from mixco.data.packed import PackedImages
from mixco.data.packing import pack
from mixco.data.rows import Rows
from mixco.data.storage import FileNames, Slices
from mixco.data.streaming import stream
from mixco.runtime.device import Compute
from mixco.runtime.errors import UserError
from mixco.views.augmentation import Input, moco_v2

SETTLED = 10**9  # seconds before now: indices of files that have just changed are not kept


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_sample(tmp_path_factory.mktemp("photos") / "photos", train=9, test=4)


@pytest.fixture(scope="module")
def forms(folder: Path) -> dict[str, Path]:
    """The same images in each form."""
    out = folder.parent
    found = {"folder": folder}
    for label in ("cls", "json", "folder"):
        for split in ("train", "test"):
            write_tars(folder / split, out / label, label=label)
        found[label] = out / label
    for compression in ("snappy", "none"):
        for split in ("train", "test"):
            write_parquets(folder / split, out / compression, compression=compression)
        found[compression] = out / compression
    with_folders = [
        (f"photos/{path.relative_to(folder).as_posix()}", path.read_bytes())
        for split in ("test", "train")
        for path, _ in images_of(folder / split)
    ]
    write_tar(out / "whole" / "photos.tar", with_folders)
    return found | {"whole": out / "whole" / "photos.tar"}


FORMS = ("cls", "json", "folder", "snappy", "none", "whole")


def listed(path: Path, split: str = "pretrain", cache: Path | None = None, **how: Any) -> ImageList:
    return list_images(str(path), None, split, cache, **how)


def old(path: Path) -> Path:
    """A file that has not changed for long; so its index is kept."""
    os.utime(path, (SETTLED, SETTLED))
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("split", ["pretrain", "train", "test"])
def test_shards_hold_the_images_of_the_folder(
    forms: dict[str, Path], form: str, split: str, tmp_path: Path
) -> None:
    there, here = listed(forms["folder"], split), listed(forms[form], split, tmp_path)
    assert here.name.endswith(f"/{split}")
    assert (here.labels, here.classes) == (there.labels, there.classes)
    assert len(here.files) == len(there.files) == len(set(here.files))
    assert [here.read(i) for i in range(len(here.files))] == [
        there.read(i) for i in range(len(there.files))
    ]


@pytest.mark.parametrize("form", FORMS)
def test_shards_pack_to_the_same_pixels(forms: dict[str, Path], form: str, tmp_path: Path) -> None:
    there, here = (pack(listed(forms[each]), size=32, cache=tmp_path) for each in ("folder", form))
    assert torch.equal(there.images, here.images) and torch.equal(there.extents, here.extents)
    assert there.labels is not None and here.labels is not None
    assert torch.equal(there.labels, here.labels)
    again = pack(listed(forms[form]), size=32, cache=tmp_path)
    assert again.path == here.path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("workers", [0, 2])
def test_shards_stream_the_same_views(
    forms: dict[str, Path], form: str, workers: int, tmp_path: Path
) -> None:
    seen = []
    for each in ("folder", form):
        images = open_images(
            listed(forms[each]),
            size=32,
            cache=tmp_path,
            loading="streamed",
            workers=workers,
            memory=2**30,
        )
        assert not isinstance(images.source.stored, Rows)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
        batches = images.evaluation_batches(
            order,
            Input(32, (0.5,) * 3, (0.2,) * 3),
            compute=Compute(torch.device("cpu"), torch.float32),
            on_unreadable=lambda *_: pytest.fail("an image is unreadable"),
            batch_size=16,
        )
        seen.append(torch.cat([batch for _, batch in batches]))
    assert torch.equal(*seen)


def test_a_worker_gets_offsets_and_names_in_shared_memory() -> None:
    count = 100_000
    numbers = torch.arange(count)
    stored = Slices((Path("a.tar"),), numbers.int(), numbers, numbers)
    names = FileNames(f"a.tar/{number}.jpg" for number in range(count))
    sent = ForkingPickler.dumps(ImageList("a", Path(), names, None, (), stored=stored))
    assert len(sent) < 10_000


def test_a_member_is_read_as_far_as_needed(forms: dict[str, Path]) -> None:
    source = listed(forms["cls"])
    for i in (0, 89):
        whole = source.read(i)
        with source.open(i) as file:
            assert file.read(7) == whole[:7]
            assert file.seek(-5, os.SEEK_END) == len(whole) - 5
            assert file.read() == whole[-5:] and file.read(1) == b""
            assert file.seek(3) == 3 and file.read(4) == whole[3:7]
            with pytest.raises(OSError, match="Invalid"):
                file.seek(-1)
        with source.open(i) as file:
            assert file.read() == whole


def test_a_process_reads_only_the_rows_of_its_part(
    forms: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under torchrun, where each process makes its rows of every batch."""
    images = stream(listed(forms["cls"]), 0)
    read: list[int] = []
    whole = Slices.read

    def counted(self: Slices, index: int) -> bytes:
        read.append(index)
        return whole(self, index)

    monkeypatch.setattr(Slices, "read", counted)
    batch, mine = torch.arange(7, 23), torch.tensor([1, 4, 5])
    batches = images.draw_batches(
        [(batch, torch.Generator())],
        moco_v2(Input(32)),
        members=torch.arange(90),
        batch_size=16,
        device=torch.device("cpu"),
        on_unreadable=lambda *_: pytest.fail("an image is unreadable"),
        rows=mine,
    )
    (drawn,) = batches
    assert drawn.images.tolist() == read == [8, 11, 12]


def test_all_images_and_splits_without_labels(forms: dict[str, Path]) -> None:
    for form in FORMS:
        assert len(listed(forms[form], "all").files) == 130
        test = listed(forms[form], "test", labelled=False)
        assert len(test.files) == 40 and test.labels is None
    notes = listed(forms["cls"]).notes
    assert any("test (40)" in note for note in notes)


def test_patterns_name_some_of_the_shards(forms: dict[str, Path]) -> None:
    folder = forms["cls"]
    every = listed(folder).files
    assert list(listed(folder / "train-*.tar").files) == list(every)
    assert list(listed(folder / "train-{000000..000002}.tar").files) == list(every)
    assert len(listed(folder / "train-00000{0..1}.tar").files) == 60
    assert len(listed(folder / "train-000002.tar").files) == 30
    with pytest.raises(UserError, match=r"train-000003\.tar.*check the path"):
        listed(folder / "train-{000000..000003}.tar")


def test_splits_have_other_names(folder: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "fit" / "0.tar", samples(images_of(folder / "train"), "cls"))
    write_tar(tmp_path / "val" / "0.tar", samples(images_of(folder / "test"), "cls"))
    assert len(listed(tmp_path).files) == 130  # no train: everything
    with pytest.raises(UserError, match=r"split train.*--train-folder"):
        listed(tmp_path, "train")
    shutil.move(tmp_path / "fit", tmp_path / "training")
    assert [len(listed(tmp_path, split).files) for split in ("train", "test")] == [90, 40]
    assert listed(tmp_path, "test").name == f"{tmp_path.name}/validation"


def test_splits_have_names_of_your_own(folder: Path, tmp_path: Path) -> None:
    write_tars(folder / "train", tmp_path / "fit_2")
    for path in (tmp_path / "fit_2").iterdir():
        path.rename(path.with_name(path.name.replace("train", "photos")))
    write_tar(tmp_path / "held-out" / "0.tar", samples(images_of(folder / "test"), "cls"))
    names = {"train_folder": "fit_2", "test_folder": "held-out"}
    for split, count in (("train", 90), ("test", 40)):
        found = listed(tmp_path, split, **names)
        assert len(found.files) == count and found.name.endswith(names[f"{split}_folder"])


@pytest.mark.parametrize("test", ["test", "val", "validation"])
@pytest.mark.parametrize("top", ["", "photos/", "./photos/"])
def test_folders_in_a_tar_file_are_splits_and_classes(
    folder: Path, tmp_path: Path, test: str, top: str
) -> None:
    members = [
        (f"{top}{name}/{path.relative_to(folder / split).as_posix()}", path.read_bytes())
        for split, name in (("train", "train"), ("test", test))
        for path, _ in images_of(folder / split)
    ]
    write_tar(tmp_path / "a.tar", members)
    for split in ("pretrain", "train", "test"):
        found, there = listed(tmp_path / "a.tar", split), listed(folder, split)
        assert (found.labels, found.classes) == (there.labels, there.classes)
    # Without a train folder, test is a class like others.
    write_tar(tmp_path / "b.tar", [(n.replace("train/", "x/"), data) for n, data in members])
    assert set(listed(tmp_path / "b.tar").classes) == {"x", test}


def test_a_test_split_without_labels_gives_way_to_validation(folder: Path, tmp_path: Path) -> None:
    for name, split in (("train", "train"), ("validation", "test")):
        write_tar(tmp_path / f"{name}.tar", samples(images_of(folder / split), "cls"))
    write_tar(tmp_path / "test.tar", samples(images_of(folder / "test"), "none"))
    assert listed(tmp_path, "test").name.endswith("/validation")
    assert listed(tmp_path, "test", labelled=False).name.endswith("/test")
    assert listed(tmp_path, "test", test_folder="validation").labels is not None


def test_images_beside_shards_are_the_images(folder: Path, tmp_path: Path) -> None:
    some = unpack_sample(tmp_path / "some", train=2, test=1)
    write_tar(some / "train" / "a.tar", samples(images_of(folder / "test"), "cls"))
    found = listed(some)
    assert found.stored is None and len(found.files) == 20
    assert ".tar (1)" in " ".join(found.notes)


def test_two_kinds_of_shards_are_refused(forms: dict[str, Path], tmp_path: Path) -> None:
    for form in ("cls", "snappy"):
        shutil.copytree(forms[form], tmp_path, dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"\.parquet and \.tar.*--data"):
        listed(tmp_path)


def test_labels_are_missing(folder: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_tars(folder / split, tmp_path, label="none")
    assert listed(tmp_path).labels is None
    with pytest.raises(UserError, match=r"train-000000\.tar/.*no label.*key\.cls.*--label-column"):
        listed(tmp_path, "train")


def test_several_labels_are_refused_only_where_labels_are_needed(
    folder: Path, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        members = []
        for number, (path, name) in enumerate(images_of(folder / split)):
            members.append((f"{number}.jpg", path.read_bytes()))
            about = {"label": [name, "x"], "kind": name}
            members.append((f"{number}.json", json.dumps(about).encode()))
        write_tar(tmp_path / f"{split}.tar", members)
    assert listed(tmp_path).labels is None
    with pytest.raises(UserError, match=r"can have only one label.*--label-column"):
        listed(tmp_path, "test")
    kind = LabelSource(label_column="kind")
    assert listed(tmp_path, "test", labels=kind).classes == listed(folder, "test").classes


def test_numbers_are_classes_in_their_order(folder: Path, tmp_path: Path) -> None:
    images = images_of(folder / "train")
    numbered = [(path, str(i % 11)) for i, (path, _) in enumerate(images)]
    write_tar(tmp_path / "train.tar", samples(numbered, "cls"))
    found = listed(tmp_path)
    assert found.classes == tuple(map(str, range(11)))
    assert found.labels is not None and found.labels[:12] == (*range(11), 0)


def test_what_a_tar_file_holds_beside_images(folder: Path, tmp_path: Path) -> None:
    (path, _), (other, _), *_ = images_of(folder / "train")
    image, second = path.read_bytes(), other.read_bytes()
    write_tar(
        tmp_path / "a.tar",
        [
            ("./1.jpg", image),
            ("1.txt", b"a caption"),
            ("2.jpg", second),
            ("2.seg.png", second),
            ("._2.jpg", b"litter of a Mac"),
            (".hidden/3.jpg", image),
            ("x.y/4.JPG", image),
            ("img.001.jpg", image),
            ("img.002.jpg", second),
            ("ünï/5.jpg", image),
            ("long/" * 40 + "6.jpg", image),
        ],
    )
    found = listed(tmp_path / "a.tar")
    names = ["1.jpg", "2.jpg", "x.y/4.JPG", "img.001.jpg", "img.002.jpg", "ünï/5.jpg"]
    assert list(found.files) == [f"a.tar/{name}" for name in [*names, "long/" * 40 + "6.jpg"]]
    assert found.read(1) == second and found.read(6) == image
    assert found.notes == ("left aside: .seg.png (1), .txt (1)",)


@pytest.mark.parametrize("kind", ["pax", "gnu", "ustar"])
def test_formats_of_tar(folder: Path, tmp_path: Path, kind: str) -> None:
    formats = {
        "pax": tarfile.PAX_FORMAT,
        "gnu": tarfile.GNU_FORMAT,
        "ustar": tarfile.USTAR_FORMAT,
    }
    members = samples(images_of(folder / "test"), "folder")
    long = [(f"{'long/' * 30}{number}/{name}", data) for number, (name, data) in enumerate(members)]
    members = [member for pair in zip(members, long, strict=True) for member in pair]
    write_tar(tmp_path / "a.tar", members, format=formats[kind])
    found = listed(tmp_path / "a.tar")
    assert list(found.files) == [f"a.tar/{name}" for name, _ in members]
    assert [found.read(i) for i in range(80)] == [data for _, data in members]


def test_a_compressed_tar_is_refused(folder: Path, tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", samples(images_of(folder / "test"), "cls"))
    whole.write_bytes(gzip.compress(whole.read_bytes()))
    with pytest.raises(UserError, match=r"a\.tar: compressed.*gunzip"):
        listed(tmp_path / "a.tar")


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def test_a_damaged_shard_is_named_and_left_out(forms: dict[str, Path], tmp_path: Path) -> None:
    shards_of = tmp_path / "some"
    shutil.copytree(forms["cls"], shards_of)
    cut(shards_of / "train-000001.tar", 0.5)
    source = listed(shards_of)
    (damaged,) = source.damaged
    assert damaged[0] == "train-000001.tar" and "damaged after" in damaged[1]
    with pytest.raises(UserError, match=r"1 of 3 shards.*train-000001\.tar.*--max-unreadable"):
        pack(source, size=32, cache=tmp_path / "cache")
    packed = pack(
        dataclasses.replace(source, max_unreadable=0.5), size=32, cache=tmp_path / "cache"
    )
    assert 60 < len(packed) < 90
    assert packed.unreadable_files[0] == damaged
    # The member at the cut is an image that cannot be read.
    assert any("bytes are missing" in why for _, why in packed.unreadable_files[1:])


def test_a_damaged_header_ends_a_shard_with_a_word(forms: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "train.tar"
    data = bytearray((forms["cls"] / "train-000000.tar").read_bytes())
    third = data.index(b"000002.jpg")
    data[third : third + 300] = b"x" * 300
    path.write_bytes(data)
    source = listed(path)
    assert len(source.files) == 2
    assert f"byte {third:,}" in source.damaged[0][1]


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 100])
def test_what_is_no_shard(tmp_path: Path, content: bytes) -> None:
    for name in ("a.tar", "a.parquet"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"no image in its 1 shards \({name}"):
            listed(tmp_path / name)


def test_a_damaged_parquet_file_is_left_out(forms: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(forms["none"], tmp_path / "some")
    cut(tmp_path / "some" / "data" / "train-00001-of-00002.parquet", 0.5)
    source = dataclasses.replace(listed(tmp_path / "some"), max_unreadable=0.5)
    assert len(source.files) == 45 and len(source.damaged) == 1
    for loading in ("packed", "streamed"):
        images = open_images(
            source,
            size=32,
            cache=tmp_path / "cache",
            loading=loading,  # type: ignore[arg-type]
            workers=0,
            memory=2**30,
        )
        assert images.unreadable_files[0][0].endswith("train-00001-of-00002.parquet")


def test_rows_without_an_image_are_unreadable(folder: Path, tmp_path: Path) -> None:
    images = [path.read_bytes() for path, _ in images_of(folder / "test")]
    rows_of = [{"bytes": image, "path": None} for image in images]
    rows_of[3] = {"bytes": None, "path": "elsewhere.jpg"}  # type: ignore[dict-item]
    rows_of[4] = None  # type: ignore[call-overload]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table({"image": pyarrow.array(rows_of, kind)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    source = dataclasses.replace(listed(tmp_path / "a.parquet"), max_unreadable=0.1)
    for stored in (source.stored, rows.sliced(source.stored, tmp_path / "cache")):  # type: ignore[arg-type]
        assert stored is not None and stored.read(2) == images[2]
        for row in (3, 4):
            with pytest.raises(UnreadableImage, match=r"no bytes|empty"):
                decode(stored.read(row))
    packed = pack(source, size=32, cache=tmp_path)
    assert len(packed) == 38
    assert [name for name, _ in packed.unreadable_files] == [
        "a.parquet/3/elsewhere.jpg",
        "a.parquet/4",
    ]


def test_rows_have_the_names_of_their_files(
    folder: Path, forms: dict[str, Path], tmp_path: Path
) -> None:
    """So a table fits them, too."""
    images = images_of(folder / "train")
    found = listed(forms["snappy"])
    first = "train-00000-of-00002.parquet"
    assert found.files[3] == f"{first}/3/{images[3][0].name}"
    table = tmp_path / "labels.csv"
    rows_of = [f"{path.name},{'even' if i % 2 else 'odd'}" for i, (path, _) in enumerate(images)]
    table.write_text("\n".join(["file,label", *rows_of]))
    found = listed(forms["snappy"] / "data" / "train-*.parquet", labels=LabelSource(table))
    assert found.classes == ("even", "odd") and found.labels == (1, 0) * 45


def test_columns_of_a_parquet_file(folder: Path, tmp_path: Path) -> None:
    images = [path.read_bytes() for path, _ in images_of(folder / "test")]
    names = [name for _, name in images_of(folder / "test")]
    for split in ("train", "test"):
        table = pyarrow.table({"jpg": images, "kind": names, "number": [-1] * len(images)})
        pyarrow.parquet.write_table(table, tmp_path / f"{split}.parquet")
    with pytest.raises(UserError, match=r"no label.*--label-column"):
        listed(tmp_path, "test")
    with pytest.raises(UserError, match=r"--label-column nothing.*jpg, kind, number"):
        listed(tmp_path, "test", labels=LabelSource(label_column="nothing"))
    found = listed(tmp_path, "test", labels=LabelSource(label_column="kind"))
    assert found.classes == tuple(sorted(set(names))) and found.read(5) == images[5]
    # -1 is the hub's "no label"
    assert listed(tmp_path, labels=LabelSource(label_column="number")).labels is None
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet: no column of images.*columns are x"):
        listed(tmp_path / "x.parquet")


def test_indices_are_kept_and_verified(
    forms: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = tmp_path / "some", tmp_path / "cache"
    shutil.copytree(forms["cls"], folder)
    monkeypatch.setattr(shards, "SETTLED_NS", 0)
    read: list[str] = []
    whole = tar.index_tar

    def counted(path: Path, label: str | None = None) -> shards.Shard:
        read.append(path.name)
        return whole(path, label)

    monkeypatch.setattr(tar, "index_tar", counted)
    first = listed(folder, "pretrain", cache)
    assert sorted(read) == sorted(path.name for path in folder.iterdir())
    read.clear()
    again = listed(folder, "pretrain", cache)
    assert not read
    assert list(again.files) == list(first.files) and again.labels == first.labels
    assert isinstance(first.stored, Slices) and isinstance(again.stored, Slices)
    assert torch.equal(first.stored.offset, again.stored.offset)
    # A shard that is written anew, and an index that is damaged
    changed = folder / "train-000001.tar"
    write_tar(changed, samples(images_of(forms["folder"] / "train")[:5], "cls"))
    listed(folder, "pretrain", cache)
    assert read == ["train-000001.tar"]
    read.clear()
    for index in (cache / "shards").iterdir():
        data = bytearray(index.read_bytes())
        data[-3] ^= 1
        index.write_bytes(data)
    listed(folder, "pretrain", cache)
    assert len(read) == 6


def test_parquet_is_copied_once_to_be_streamed(
    forms: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = listed(forms["snappy"])
    assert isinstance(source.stored, Rows)
    seen: list[tuple[int, int]] = []
    stored = rows.sliced(source.stored, tmp_path, lambda *done: seen.append(done))
    assert seen[-1] == (90, 90)
    assert [stored.read(i) for i in range(90)] == [source.read(i) for i in range(90)]
    seen.clear()
    rows.sliced(source.stored, tmp_path, lambda *done: seen.append(done))
    assert not seen
    # Half of a copy counts for nothing.
    copy = next((tmp_path / "shards").glob("*.images"))
    cut(copy, 0.5)
    stored = rows.sliced(source.stored.take([80, 2]), tmp_path)
    assert [stored.read(0), stored.read(1)] == [source.read(80), source.read(2)]
    monkeypatch.setattr(rows, "free_space", lambda _: 10)
    with pytest.raises(UserError, match=r"--cache.*--loading packed"):
        rows.sliced(source.stored, tmp_path / "other")


def test_a_packed_file_is_made_anew_when_a_shard_changes(
    forms: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "a.tar"
    shutil.copy(forms["cls"] / "train-000000.tar", path)
    first = pack(listed(path), size=32, cache=tmp_path)
    os.utime(old(path))
    second = pack(listed(path), size=32, cache=tmp_path)
    assert isinstance(first, PackedImages) and first.path != second.path
    assert np.array_equal(first.images.numpy(), second.images.numpy())
