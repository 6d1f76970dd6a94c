"""Named data sets in their public layouts: every pixel and label, and the errors of damaged ones."""

import dataclasses
import io
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from public_layouts import (
    CIFAR10_NAMES,
    CIFARS,
    IMAGENET_NUMBERS,
    IMAGENET_WNIDS,
    STL10_NAMES,
    STL10_SMALL,
    cifar_content,
    class_names,
    pictures,
    planes,
    small,
    stl10_images,
    use,
    write_cifar_binary,
    write_cifar_python,
    write_imagenet,
    write_stl10,
)
from sample_images import unpack_sample

from mixco.data.datasets import DATASETS, list_images
from mixco.data.datasets import cifar as cifar_module
from mixco.data.datasets.cifar import CIFAR10, Cifar
from mixco.data.decode import decode
from mixco.data.packing import pack
from mixco.runtime.errors import UserError
from mixco.views.augmentation import IMAGENET_MEAN, IMAGENET_STD

WRITERS = {"binary": write_cifar_binary, "python": write_cifar_python}


@pytest.fixture(params=[(n, v) for n in CIFARS for v in WRITERS], ids="-".join)
def one_cifar(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Cifar:
    """CIFAR-10 and CIFAR-100, each in its binary and its Python version, below tmp_path."""
    name, version = request.param
    cifar = WRITERS[version](tmp_path, small(CIFARS[name], 20 if name == "cifar10" else 100))
    use(monkeypatch, cifar)
    return cifar


def test_cifar_has_the_pixels_and_labels_of_its_files(one_cifar: Cifar, tmp_path: Path) -> None:
    content = cifar_content(one_cifar)
    (folder,) = tmp_path.iterdir()
    for data_path in (tmp_path, folder):
        for split in ("train", "test", "pretrain"):
            batches = one_cifar.test if split == "test" else one_cifar.train
            source = list_images(one_cifar.name, data_path, split)
            pixels = np.concatenate([content[b.file][0] for b in batches])
            assert source.arrays is not None
            assert len(source.arrays) == len(source.files) == len(pixels)
            for i in range(len(pixels)):
                assert np.array_equal(source.arrays[i], pixels[i])
            assert source.labels == tuple(x for b in batches for x in content[b.file][1])
            assert source.classes == tuple(class_names(one_cifar))
            assert source.name == f"{one_cifar.name}/{'test' if split == 'test' else 'train'}"
            assert (source.mean, source.std) == (one_cifar.mean, one_cifar.std)


def test_an_array_is_read_as_an_image_file_too(one_cifar: Cifar, tmp_path: Path) -> None:
    source = list_images(one_cifar.name, tmp_path, "test")
    assert source.arrays is not None
    for i in range(5):
        assert np.array_equal(decode(source.read(i)), source.arrays[i])


@pytest.mark.parametrize("name", CIFARS)
def test_torchvision_reads_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, write_cifar_python(tmp_path, small(CIFARS[name], 100)))
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy dislikes what is in these old pickles
        theirs = kind[name](str(tmp_path), train=False)
    ours = list_images(name, tmp_path, "test")
    assert ours.arrays is not None
    assert list(ours.labels or ()) == theirs.targets
    assert list(ours.classes) == theirs.classes
    assert np.array_equal(np.stack([*ours.arrays]), theirs.data)


def test_the_real_number_of_pictures(tmp_path: Path) -> None:
    """The binary CIFAR-10 at its full size, 184 MB, without any change to the table."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    photos = planes(pictures(1000, 32))
    labels = np.arange(1000, dtype=np.uint8)[:, None] % 10
    records = np.tile(np.concatenate([labels, photos], 1), (10, 1))
    for name in ("data_batch_1", *(f"data_batch_{i}" for i in range(2, 6)), "test_batch"):
        records.tofile(folder / f"{name}.bin")
    (folder / "batches.meta.txt").write_text("\n".join(CIFAR10_NAMES) + "\n")
    train, test = (list_images("cifar10", tmp_path, split) for split in ("train", "test"))
    assert (len(train.files), len(test.files)) == (50_000, 10_000)
    assert train.files[10_001] == "data_batch_2:1"
    packed = pack(test, size=32, cache=tmp_path / "cache")
    assert np.array_equal(packed.images[9_999].reshape(-1), photos[999])


def test_arrays_are_packed_like_files_and_anew_when_they_change(
    one_cifar: Cifar, tmp_path: Path
) -> None:
    source = list_images(one_cifar.name, tmp_path, "test")
    packed = pack(source, size=32, cache=tmp_path / "cache")
    pixels, labels = cifar_content(one_cifar)[one_cifar.test[0].file]
    assert torch.equal(packed.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert packed.labels is not None and packed.labels.tolist() == labels
    assert packed.extents.unique(dim=0).tolist() == [[32, 32]]
    assert pack(source, size=32, cache=tmp_path / "cache").path == packed.path
    os.utime(source.containers[0], (1, 1))
    assert pack(source, size=32, cache=tmp_path / "cache").path != packed.path


def test_cifar_as_class_folders_is_normalised_as_cifar(tmp_path: Path) -> None:
    unpack_sample(tmp_path, train=3, test=2, classes=4)
    for name, cifar in CIFARS.items():
        train = list_images(name, tmp_path, "train")
        assert train.name == f"{name}/train"
        assert train.labels == (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)
        assert (train.mean, train.std) == (cifar.mean, cifar.std)
        assert list_images(name, tmp_path, "pretrain") == train
        assert len(list_images(name, tmp_path, "test").files) == 8


def test_no_pickle_is_opened_that_is_not_the_published_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar = write_cifar_python(tmp_path, small(CIFAR10, 20))
    use(monkeypatch, cifar)
    trap = tmp_path / "sprung"
    evil = pickle.dumps(Trap(str(trap)), protocol=2)
    (tmp_path / cifar.python / "test_batch").write_bytes(evil)
    with pytest.raises(UserError, match=r"not the published file .* a pickle of unknown origin"):
        list_images("cifar10", tmp_path, "test")
    # Were an MD5 sum ever forged, there is a second lock.
    with pytest.raises(pickle.UnpicklingError, match="does not belong in a pickle of CIFAR"):
        cifar_module._ArraysOnly(io.BytesIO(evil)).load()
    assert not trap.exists()


@dataclasses.dataclass
class Trap:
    """What makes a file when it is unpickled."""

    path: str

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, int]]:
        return os.open, (self.path, os.O_CREAT)


def truncate(path: str, by: int) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        os.truncate(root / path, (root / path).stat().st_size - by)

    return act


def remove(path: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        (root / path).unlink()

    return act


def put(path: str, position: int, value: int) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        data = bytearray((root / path).read_bytes())
        data[position] = value
        (root / path).write_bytes(bytes(data))

    return act


def write(path: str, text: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        (root / path).write_text(text)

    return act


def one_label(path: str, step: int, value: int) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        data = bytearray((root / path).read_bytes())
        data[::step] = bytes([value]) * len(data[::step])
        (root / path).write_bytes(bytes(data))

    return act


BIN, PY = "cifar-10-batches-bin", "cifar-10-batches-py"


@pytest.mark.parametrize(
    ("version", "damage", "message"),
    [
        ("binary", truncate(f"{BIN}/test_batch.bin", 1), "61,459 bytes instead of 61,460; unpack"),
        ("binary", truncate(f"{BIN}/test_batch.bin", 3073), "58,387 bytes instead of 61,460"),
        ("binary", remove(f"{BIN}/test_batch.bin"), r"test_batch\.bin: cannot be read \(No such"),
        ("binary", put(f"{BIN}/test_batch.bin", 3073, 10), "10 is the label of an image, expected"),
        ("binary", one_label(f"{BIN}/test_batch.bin", 3073, 7), "no image of class airplane"),
        ("binary", remove(f"{BIN}/batches.meta.txt"), "the list of classes cannot be read"),
        ("binary", write(f"{BIN}/batches.meta.txt", "a\nb\n"), "2 names of classes instead of 10"),
        ("python", truncate(f"{PY}/test_batch", 1), "not the published file"),
        ("python", put(f"{PY}/test_batch", 5000, 0), "not the published file"),
        ("python", remove(f"{PY}/test_batch"), r"test_batch: cannot be read \(No such file"),
        ("python", remove(f"{PY}/batches.meta"), r"batches\.meta: cannot be read"),
    ],
)
def test_a_damaged_cifar_is_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    use(monkeypatch, WRITERS[version](tmp_path, small(CIFAR10, 20)))
    list_images("cifar10", tmp_path, "test")
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        list_images("cifar10", tmp_path, "test")


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "sample"])
def test_where_nothing_is_the_remedy_is_reported(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="needs --data-path"):
        list_images(name, None, "train")
    with pytest.raises(UserError) as told:
        list_images(name, tmp_path, "train")
    assert str(tmp_path) in str(told.value)
    if name.startswith(("cifar", "stl")):
        assert f"mixco download {name} --data-path {tmp_path}" in str(told.value)


def test_stl10_has_the_pixels_and_labels_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_stl10(tmp_path, monkeypatch)
    images = stl10_images()
    for data_path in (tmp_path, folder):
        for split in ("train", "test"):
            source = list_images("stl10", data_path, split)
            assert source.arrays is not None
            assert np.array_equal([*source.arrays], images[split])
            assert source.labels == tuple(i % 10 for i in range(STL10_SMALL[split]))
            assert source.classes == tuple(STL10_NAMES)
            assert source.mean == (0.4467, 0.4398, 0.4066)


def test_stl10_is_pretrained_on_its_unlabelled_images_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stl10(tmp_path, monkeypatch)
    source = list_images("stl10", tmp_path, "pretrain")
    expected = np.concatenate([stl10_images()[split] for split in ("unlabeled", "train")])
    packed = pack(source, size=96, cache=tmp_path / "cache")
    assert torch.equal(packed.images, torch.from_numpy(expected).permute(0, 3, 1, 2))
    assert packed.labels is None
    assert (packed.files[0], packed.files[-1]) == ("unlabeled_X.bin:0", "train_X.bin:19")


def test_torchvision_reads_the_same_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stl10(tmp_path, monkeypatch)
    monkeypatch.setattr(torchvision.datasets.stl10, "check_integrity", lambda *_: True)
    theirs = torchvision.datasets.STL10(str(tmp_path), split="test")
    ours = list_images("stl10", tmp_path, "test")
    assert ours.arrays is not None
    for i, (image, label) in enumerate(theirs):
        assert np.array_equal(ours.arrays[i], np.asarray(image))
        assert ours.labels is not None and ours.labels[i] == label
    assert list(ours.classes) == theirs.classes


def test_the_real_size_of_stl10(tmp_path: Path) -> None:
    """Files of the published lengths, empty, and with holes on the disk."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for file, size in {
        "train_X.bin": 138_240_000,
        "test_X.bin": 221_184_000,
        "unlabeled_X.bin": 2_764_800_000,
    }.items():
        (folder / file).touch()
        os.truncate(folder / file, size)
    (folder / "class_names.txt").write_text("\n".join(STL10_NAMES))
    source = list_images("stl10", tmp_path, "pretrain")
    assert source.arrays is not None
    assert len(source.files) == len(source.arrays) == 105_000
    assert source.arrays[104_999].shape == (96, 96, 3)


STL = "stl10_binary"


@pytest.mark.parametrize(
    ("damage", "split", "message"),
    [
        (truncate(f"{STL}/test_X.bin", 1), "test", "276,479 bytes instead of 276,480; unpack"),
        (truncate(f"{STL}/unlabeled_X.bin", 27648), "pretrain", r"unlabeled_X\.bin: .* instead of"),
        (truncate(f"{STL}/test_y.bin", 1), "test", r"test_y\.bin: 9 bytes instead of 10"),
        (put(f"{STL}/test_y.bin", 3, 0), "test", "0 is the label of an image, expected 1 to 10"),
        (put(f"{STL}/test_y.bin", 3, 11), "test", "11 is the label of an image"),
        (put(f"{STL}/test_y.bin", 0, 2), "test", r"test_y\.bin: no image of class airplane"),
        (remove(f"{STL}/train_y.bin"), "train", r"train_y\.bin: cannot be read"),
        (remove(f"{STL}/class_names.txt"), "train", "the list of classes cannot be read"),
        (write(f"{STL}/class_names.txt", "a\n"), "train", "1 classes instead of 10"),
    ],
)
def test_a_damaged_stl10_is_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    split: str,
    message: str,
) -> None:
    write_stl10(tmp_path, monkeypatch)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        list_images("stl10", tmp_path, split)


def test_stl10_as_class_folders(tmp_path: Path) -> None:
    unpack_sample(tmp_path, train=2, test=1, classes=3)
    assert list_images("stl10", tmp_path, "pretrain").labels is not None
    (tmp_path / "unlabeled").mkdir()
    for i, image in enumerate(pictures(4, 96)):
        Image.fromarray(image).save(tmp_path / "unlabeled" / f"{i}.png")
    source = list_images("stl10", tmp_path, "pretrain")
    assert (len(source.files), source.labels) == (10, None)
    assert len(pack(source, size=64, cache=tmp_path / "cache").images) == 10
    assert list_images("stl10", tmp_path, "train").mean == (0.4467, 0.4398, 0.4066)


def expected_of_imagenet(root: Path, answers: list[str]) -> None:
    """Both splits, with the labels that the files of write_imagenet have."""
    for split in ("train", "pretrain"):
        train = list_images("imagenet", root, split)
        assert train.classes == IMAGENET_WNIDS
        assert train.labels == (0, 0, 1, 1, 2, 2)
        assert all(train.read(i) for i in range(6))
        assert (train.mean, train.std) == (IMAGENET_MEAN, IMAGENET_STD)
    test = list_images("imagenet", root, "test")
    assert test.classes == IMAGENET_WNIDS
    assert test.labels is not None and all(test.read(i) for i in range(6))
    found = {int(file[-13:-5]): IMAGENET_WNIDS[k] for file, k in zip(test.files, test.labels)}  # noqa: B905
    assert [found[i] for i in range(1, 7)] == answers


def write_solution(path: Path, answers: list[str]) -> None:
    lines = [f"ILSVRC2012_val_{i:08},{w} 85 1 499 272 " for i, w in enumerate(answers, 1)]
    path.write_text("\n".join(["ImageId,PredictionString", *reversed(lines)]) + "\n")


def test_imagenet_with_val_in_class_folders(tmp_path: Path) -> None:
    expected_of_imagenet(tmp_path, write_imagenet(tmp_path, flat=False))


def test_imagenet_with_kaggles_list_of_labels(tmp_path: Path) -> None:
    answers = write_imagenet(tmp_path, flat=True)
    write_solution(tmp_path / "LOC_val_solution.csv", answers)
    expected_of_imagenet(tmp_path, answers)


def test_imagenet_as_kaggle_packs_it(tmp_path: Path) -> None:
    answers = write_imagenet(tmp_path / "ILSVRC" / "Data" / "CLS-LOC", flat=True)
    write_solution(tmp_path / "LOC_val_solution.csv", answers)
    expected_of_imagenet(tmp_path, answers)


def write_devkit(root: Path, answers: list[str]) -> Path:
    data = root / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    lines = [str(IMAGENET_NUMBERS[wnid]) for wnid in answers]
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(lines) + "\n")
    return data


def write_meta(path: Path) -> None:
    """As in the devkit: a structure a class, and one that is a kind of classes."""
    scipy_io = pytest.importorskip("scipy.io", reason="meta.mat needs SciPy")
    rows = [(n, w, 0) for w, n in IMAGENET_NUMBERS.items()] + [(1001, "n02084071", 118)]
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
    scipy_io.savemat(path, {"synsets": np.array(rows, dtype=kinds)[:, None]})


def test_imagenet_with_its_devkit(tmp_path: Path) -> None:
    answers = write_imagenet(tmp_path, flat=True)
    write_meta(write_devkit(tmp_path, answers) / "meta.mat")
    expected_of_imagenet(tmp_path, answers)


def test_without_scipy_the_devkit_has_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_devkit(tmp_path, write_imagenet(tmp_path, flat=True))
    (data / "meta.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(UserError, match=r"mixco\[imagenet\].*LOC_val_solution\.csv.*val/<wnid>"):
        list_images("imagenet", tmp_path, "test")
    assert list_images("imagenet", tmp_path, "train").labels == (0, 0, 1, 1, 2, 2)


def test_some_classes_of_imagenet_are_a_set_of_their_own(tmp_path: Path) -> None:
    answers = write_imagenet(tmp_path, flat=True)
    write_solution(tmp_path / "LOC_val_solution.csv", answers)
    (tmp_path / "train" / "n01443537").rename(tmp_path / "elsewhere")
    test = list_images("imagenet", tmp_path, "test")
    assert test.classes == ("n01440764", "n02119789")
    assert test.labels == (1, 0, 0, 1)


VAL = "val/ILSVRC2012_val_00000003.JPEG"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("LOC_val_solution.csv"), "its labels are needed; expected LOC_val_solution.csv or"),
        (remove(VAL), "00000003.JPEG: val's list of labels names it, but it is missing"),
        (write("LOC_val_solution.csv", "a,b\n"), "begins with 'a,b'; expected ImageId,"),
        (
            write("LOC_val_solution.csv", "ImageId,PredictionString\nILSVRC2012_val_00000001,\n"),
            "line 2: expected a file, a comma and a class, found 'ILSVRC2012_val_00000001,'",
        ),
        (
            write(
                "LOC_val_solution.csv", "ImageId,PredictionString\nILSVRC2012_val_00000001,n 1\n"
            ),
            "00000002.JPEG: val's list of labels does not name it",
        ),
        (
            lambda root: write_solution(root / "LOC_val_solution.csv", ["n01440764"] * 6),
            r"val: no image of class n01443537, but train has some",
        ),
        (
            lambda root: [p.unlink() for p in (root / "train/n01440764").iterdir()],
            "n01440764: no image of this class",
        ),
    ],
)
def test_a_damaged_imagenet_is_reported(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    write_solution(tmp_path / "LOC_val_solution.csv", write_imagenet(tmp_path, flat=True))
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        for split in ("train", "test"):
            list_images("imagenet", tmp_path, split)


def test_a_whole_train_must_have_every_class_of_val(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixco.data.datasets.imagenet.ALL_CLASSES", 3)
    write_solution(
        tmp_path / "LOC_val_solution.csv", [*write_imagenet(tmp_path, flat=True)[:5], "n99999999"]
    )
    with pytest.raises(UserError, match="has no class n99999999, which val's list of labels names"):
        list_images("imagenet", tmp_path, "test")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (write(TRUTH, "1\n449\n"), "2 labels, but 6 images in val; unpack val again"),
        (
            lambda root: (root / VAL).rename(root / "val/ILSVRC2012_val_00000007.JPEG"),
            r"00000004\.JPEG: expected ILSVRC2012_val_00000003\.JPEG as file 3",
        ),
        (write(TRUTH, "1\n449\nx\n450\n449\n1\n"), "line 3: 'x' is not the number of a class"),
        (
            write(TRUTH, "1\n449\n1001\n450\n449\n1\n"),
            "line 3: '1001' is not the number of a class",
        ),
        (write("ILSVRC2012_devkit_t12/data/meta.mat", "?"), r"meta\.mat: cannot be read \("),
    ],
)
def test_a_devkit_that_disagrees_is_reported(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    write_meta(write_devkit(tmp_path, write_imagenet(tmp_path, flat=True)) / "meta.mat")
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        list_images("imagenet", tmp_path, "test")
