"""The named data sets in their public layouts, small, with real images: those of the sample."""

import dataclasses
import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sample_images import mosaics, sample_images

import mixco.data.datasets.cifar
import mixco.data.datasets.stl10
from mixco.data.datasets import list_images
from mixco.data.datasets.cifar import CIFAR10, CIFAR100, Batch, Cifar

CIFARS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
CIFAR10_NAMES = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]


def pictures(count: int, side: int) -> NDArray[np.uint8]:
    """uint8 [count, side, side, 3]: photographs, resized."""
    source = sample_images(count) if side <= 64 else mosaics(count)
    return np.stack(
        [
            np.asarray(Image.fromarray(p.permute(1, 2, 0).numpy()).resize((side, side)))
            for p in source
        ]
    )


def planes(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, H, W, 3] -> [N, 3 * H * W]: all red, then all green, then all blue."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def small(cifar: Cifar, each: int) -> Cifar:
    """The same CIFAR with fewer pictures a file."""
    return dataclasses.replace(
        cifar,
        train=tuple(dataclasses.replace(b, pictures=each) for b in cifar.train),
        test=tuple(dataclasses.replace(b, pictures=each) for b in cifar.test),
    )


def cifar_content(cifar: Cifar) -> dict[str, tuple[NDArray[np.uint8], list[int]]]:
    """File -> its pictures uint8 [N, 32, 32, 3] and labels; each class in each file."""
    batches = (*cifar.train, *cifar.test)
    every = pictures(sum(b.pictures for b in batches), 32)
    content, start = {}, 0
    for k, batch in enumerate(batches):
        labels = [(i + k) % cifar.classes for i in range(batch.pictures)]
        content[batch.file] = (every[start : start + batch.pictures], labels)
        start += batch.pictures
    return content


def class_names(cifar: Cifar) -> list[str]:
    return CIFAR10_NAMES if cifar.classes == 10 else [f"fine_{i:02}" for i in range(100)]


def write_cifar_binary(root: Path, cifar: Cifar) -> Cifar:
    folder = root / cifar.binary
    folder.mkdir(parents=True)
    for file, (images, labels) in cifar_content(cifar).items():
        # Of CIFAR-100 the coarse label comes first.
        prefix = np.array([[label // 5, label][-cifar.label_bytes :] for label in labels], np.uint8)
        np.concatenate([prefix, planes(images)], 1).tofile(folder / f"{file}.bin")
    (folder / cifar.class_names).write_text("\n".join(class_names(cifar)) + "\n\n")
    return cifar


def write_cifar_python(root: Path, cifar: Cifar) -> Cifar:
    """Returns the table with the MD5 sums of what was written."""
    folder = root / cifar.python
    folder.mkdir(parents=True)
    md5 = {}

    def write(file: str, value: dict[str, Any]) -> None:
        data = python2_pickle(value)
        (folder / file).write_bytes(data)
        md5[file] = hashlib.md5(data, usedforsecurity=False).hexdigest()

    for file, (images, labels) in cifar_content(cifar).items():
        write(
            file,
            {
                "batch_label": file,
                "fine_labels" if cifar.classes == 100 else "labels": labels,
                "data": planes(images),
                "filenames": [f"photo_s_{i:06}.png" for i in range(len(labels))],
            },
        )
    key = "fine_label_names" if cifar.classes == 100 else "label_names"
    write(cifar.meta.file, {key: class_names(cifar)})

    def published(batches: tuple[Batch, ...]) -> tuple[Batch, ...]:
        return tuple(dataclasses.replace(b, md5=md5[b.file]) for b in batches)

    return dataclasses.replace(
        cifar,
        train=published(cifar.train),
        test=published(cifar.test),
        meta=published((cifar.meta,))[0],
    )


def use(monkeypatch: pytest.MonkeyPatch, cifar: Cifar) -> None:
    """Let `--data cifar10` or cifar100 mean this smaller one."""
    monkeypatch.setattr(mixco.data.datasets.cifar, cifar.name.upper(), cifar)


def python2_pickle(value: Any) -> bytes:
    """Pickled as Python 2 and the NumPy of 2009 did it, which no newer Python can write."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(k) + _python2(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, int):
        return b"K" + bytes([value]) if value < 256 else b"J" + struct.pack("<i", value)
    if isinstance(value, str):
        return b"U" + bytes([len(value)]) + value.encode()
    assert value.dtype == np.uint8 and value.ndim == 2
    data = value.tobytes()
    dtype = (
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + b"".join(b"J" + struct.pack("<i", side) for side in value.shape)
        + b"\x86"
        + dtype
        + b"\x89T"
        + struct.pack("<i", len(data))
        + data
        + b"tb"
    )


STL10_NAMES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
STL10_SMALL = {"train": 20, "test": 10, "unlabeled": 30}


def stl10_images() -> dict[str, NDArray[np.uint8]]:
    """Split -> uint8 [N, 96, 96, 3]."""
    every = pictures(sum(STL10_SMALL.values()), 96)
    ends = np.cumsum(list(STL10_SMALL.values()))[:-1]
    return dict(zip(STL10_SMALL, np.split(every, ends), strict=True))


def write_stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(mixco.data.datasets.stl10, "IMAGES", STL10_SMALL)
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for split, images in stl10_images().items():
        images.transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")  # column by column
        if split != "unlabeled":
            labels = np.arange(len(images)) % 10 + 1
            labels.astype(np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(STL10_NAMES) + "\n")
    (folder / "fold_indices.txt").write_text("0 1 2\n")
    return folder


def write_tiny_imagenet(root: Path) -> Path:
    """Three classes, two images of each in train and in val."""
    wnids = ["n01443537", "n01629819", "n01641577"]
    jpegs = jpeg_files(12)
    folder = root / "tiny-imagenet-200"
    folder.mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(reversed(wnids)) + "\n")
    (folder / "words.txt").write_text("n01443537\tgoldfish\n")
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for k, wnid in enumerate(wnids):
        (folder / "train" / wnid / "images").mkdir(parents=True)
        for i in range(2):
            (folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG").write_bytes(jpegs.pop())
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("x\t0\t0\t1\t1\n")
        for i in (k, k + 3):
            (folder / "val" / "images" / f"val_{i}.JPEG").write_bytes(jpegs.pop())
            lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return folder


IMAGENET_WNIDS = ("n01440764", "n01443537", "n02119789")
# ILSVRC2012_ID follows no order of the names: this is the devkit's number of each of the three.
IMAGENET_NUMBERS = {"n02119789": 1, "n01440764": 449, "n01443537": 450}


def write_imagenet(root: Path, *, flat: bool) -> list[str]:
    """Three classes; returns the wnid of each of six val images, in their order."""
    jpegs = jpeg_files(12)
    for wnid in IMAGENET_WNIDS:
        for i in range(2):
            path = root / "train" / wnid / f"{wnid}_{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpegs.pop())
    answers = [IMAGENET_WNIDS[k] for k in (2, 0, 1, 1, 0, 2)]
    for number, wnid in enumerate(answers, 1):
        folder = root / "val" if flat else root / "val" / wnid
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(jpegs.pop())
    return answers


def jpeg_files(count: int) -> list[bytes]:
    """Bytes of photographs of the sample, as they lie in it."""
    source = list_images("sample", None, "train")
    return [source.read(i * 130) for i in range(count)]
