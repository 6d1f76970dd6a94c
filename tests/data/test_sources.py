"""Which files a data set has, and the errors when they are not as expected."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from public_layouts import write_tiny_imagenet
from sample_images import unpack_sample

from mixco.data.datasets import DATASETS, Dataset, list_images
from mixco.data.datasets.sample import MEAN, STD
from mixco.data.image_list import ImageList
from mixco.data.packing import pack
from mixco.runtime.errors import UserError


def test_the_sample_has_ten_classes_in_two_splits() -> None:
    train, test = (list_images("sample", None, split) for split in ("train", "test"))
    assert (len(train.files), len(test.files), len(train.classes)) == (1600, 400, 10)
    assert not set(train.files) & set(test.files)
    for source in (train, test):
        assert source.labels is not None
        # The label is the folder of the file: what the list says and what lies there agree.
        for file, label in zip(source.files, source.labels, strict=True):
            assert source.classes[label] in file
    assert list_images("sample", None, "pretrain") == train


def test_the_samples_mean_and_std_are_those_of_its_training_images(tmp_path: Path) -> None:
    packed = pack(list_images("sample", None, "train"), size=64, cache=tmp_path)
    pixels = packed.images.double() / 255
    torch.testing.assert_close(
        pixels.mean((0, 2, 3)), torch.tensor(MEAN).double(), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(pixels.std((0, 2, 3)), torch.tensor(STD).double(), atol=1e-4, rtol=0)


def list_three(_root: Path | None, split: str, _cache: Path | None) -> ImageList:
    return ImageList(f"three/{split}", Path(), ("a.png", "b.png", "c.png"), None, ())


def test_a_new_set_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Dataset(f"{__name__}:list_three", "no terms", needs_path=False)
    monkeypatch.setitem(DATASETS, "three", line)
    assert list_images("three", None, "pretrain") == list_three(None, "train", None)
    with pytest.raises(UserError, match="did you mean three"):
        list_images("thre", None, "train")


def test_the_names_are_read_without_torch() -> None:
    code = "import sys; from mixco.data.datasets import DATASETS; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_is_read_however_it_is_nested(tmp_path: Path) -> None:
    jpeg = read_one()
    names = ["a.jpg", "b/c.JPEG", "b/d/e.png", "f g/ü.webp"]
    for name in [*names, ".hidden.jpg", ".thumbs/x.jpg", "notes.txt", "b/d.json"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)
    source = list_images(str(tmp_path), None, "pretrain")
    assert source.files == tuple(sorted(names))
    assert source.labels is None


def test_a_folder_with_splits_has_labels_and_pretraining_sees_only_train(tmp_path: Path) -> None:
    unpack_sample(tmp_path, train=3, test=2, classes=4)
    train, test = (list_images(str(tmp_path), None, split) for split in ("train", "test"))
    assert train.labels == (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)
    assert test.labels == (0, 0, 1, 1, 2, 2, 3, 3)
    assert train.classes == test.classes
    pretraining = list_images(str(tmp_path), None, "pretrain")
    assert (pretraining.files, pretraining.labels) == (train.files, train.labels)
    assert pretraining.root == tmp_path / "train"


def test_val_may_stand_for_test(tmp_path: Path) -> None:
    unpack_sample(tmp_path, train=2, test=2, classes=2)
    (tmp_path / "test").rename(tmp_path / "val")
    assert len(list_images(str(tmp_path), None, "test").files) == 4


def read_one() -> bytes:
    return list_images("sample", None, "train").read(0)


def test_tiny_imagenet_in_its_public_layout(tmp_path: Path) -> None:
    root = write_tiny_imagenet(tmp_path)
    for data_path in (tmp_path, root):
        train = list_images("tiny-imagenet", data_path, "train")
        assert train.classes == ("n01443537", "n01629819", "n01641577")
        assert train.labels == (0, 0, 1, 1, 2, 2)
        assert train.files[2] == "train/n01629819/images/n01629819_0.JPEG"
        test = list_images("tiny-imagenet", data_path, "test")
        assert dict(zip(test.files, test.labels or (), strict=True)) == {
            f"val/images/val_{i}.JPEG": i % 3 for i in range(6)
        }


def test_some_classes_of_tiny_imagenet_are_a_set_of_their_own(tmp_path: Path) -> None:
    root = write_tiny_imagenet(tmp_path)
    (root / "train" / "n01629819").rename(tmp_path / "elsewhere")
    test = list_images("tiny-imagenet", root, "test")
    assert test.classes == ("n01443537", "n01641577")
    assert test.files == tuple(f"val/images/val_{i}.JPEG" for i in (0, 2, 3, 5))
    assert test.labels == (0, 1, 0, 1)


def remove(path: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        (root / path).unlink()

    return act


def append(path: str, text: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        (root / path).write_text((root / path).read_text() + text)

    return act


@pytest.mark.parametrize(
    ("damage", "split", "message"),
    [
        (remove("wnids.txt"), "train", r"wnids\.txt: the list of classes .* cannot be read"),
        (remove("val/val_annotations.txt"), "test", r"val_annotations\.txt: the labels of val"),
        (remove("val/images/val_4.JPEG"), "test", r"val_4\.JPEG: .* names it, but it is missing"),
        (
            append("val/val_annotations.txt", "val_9.JPEG\tn99999999\t0\t0\t1\t1\n"),
            "test",
            r"line 7: expected a file and one of wnids\.txt's classes",
        ),
        (
            append("val/val_annotations.txt", "val_9.JPEG\tn01443537\t0\t0\t1\t1\n"),
            "test",
            r"val_9\.JPEG: .* names it, but it is missing",
        ),
        (
            lambda root: (root / "val/images/val_9.JPEG").write_bytes(read_one()),
            "test",
            r"val_9\.JPEG: val_annotations\.txt does not name it",
        ),
        (
            lambda root: [p.unlink() for p in (root / "train/n01641577/images").iterdir()],
            "train",
            r"n01641577/images: no image of this class",
        ),
        (
            lambda root: (root / "train" / "n01443537").rename(root / "train" / "goldfish"),
            "train",
            r"goldfish: this class is not in wnids\.txt",
        ),
    ],
)
def test_a_damaged_tiny_imagenet_is_reported(
    tmp_path: Path, damage: Callable[[Path], object], split: str, message: str
) -> None:
    root = write_tiny_imagenet(tmp_path)
    damage(root)
    with pytest.raises(UserError, match=message):
        list_images("tiny-imagenet", root, split)


def test_what_is_wrong_with_a_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean sample"):
        list_images("sampel", None, "pretrain")
    with pytest.raises(UserError, match="needs --data-path"):
        list_images("tiny-imagenet", None, "pretrain")
    with pytest.raises(UserError, match=r"no image in it; expected \.jpg"):
        list_images(str(tmp_path), None, "pretrain")
    with pytest.raises(UserError, match="evaluation needs labels, laid out as"):
        list_images(str(tmp_path), None, "train")
    unpack_sample(tmp_path, train=1, test=1, classes=3)
    for file in (tmp_path / "test" / "Forest").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"test/Forest: no image of this class, but .*train has"):
        list_images(str(tmp_path), None, "test")
    (tmp_path / "train" / "loose.jpg").write_bytes(read_one())
    with pytest.raises(UserError, match=r"loose\.jpg: lies in no class folder"):
        list_images(str(tmp_path), None, "train")
