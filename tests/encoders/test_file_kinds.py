"""What is given for weights and is none is called by its name, with a remedy; never torch's advice."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mixco.encoders.loading import load_encoder
from mixco.models.encoder import build_backbone
from mixco.runtime.errors import UserError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 46830571\n" % 0


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("weights/model.bin", "x" * 100)
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        file.addfile(tarfile.TarInfo("model.pth"))
    return content.getvalue()


def saved() -> bytes:
    content = io.BytesIO()
    torch.save(nn.Linear(64, 64).state_dict(), content)
    return content.getvalue()


def scripted() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("model/constants.pkl", "")
        file.writestr("model/data.pkl", "")
    return content.getvalue()


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "pointer": (lambda: POINTER, "Git LFS pointer.*`git lfs pull`"),
    "page": (lambda: b"\n<!DOCTYPE html><html>Quota exceeded</html>", "a web page.*download"),
    "old page": (lambda: b"<HTML>Sign in</HTML>" + b" " * 5000, "a web page.*download"),
    "empty": (lambda: b"", "is empty; download"),
    "text": (lambda: b'{"error": "not found"}', "a text file.*not found.*torch.save"),
    "text with accents": (lambda: "naïve café\n".encode() * 600, "a text file"),
    "zip": (zipped, r"zip archive of other files \(weights/model\.bin\); unpack"),
    "tar": (tarred, "a tar archive; unpack"),
    "gzip": (lambda: gzip.compress(b"x" * 100), "gzip; unpack"),
    "program": (scripted, r"TorchScript.*torch\.jit\.load"),
    "cut short": (lambda: saved()[:-300], "cut short.*download"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), "a picture"),
    "noise": (lambda: bytes(range(128, 256)) * 9, "damaged or not"),
    "pickle": (
        lambda: b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os.",
        "damaged or not",
    ),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", FILES)
def test_a_file_without_weights_is_called_by_its_name(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    content, sentence = FILES[kind]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content())
    with pytest.raises(UserError, match=sentence) as refused:
        load_encoder(path)
    assert str(refused.value).startswith(f"{path}: ")
    for advice in ("weights_only", "Re-running", "trust"):
        assert advice not in str(refused.value)


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    weights = build_backbone("resnet18", 224).state_dict()
    save_file(weights, tmp_path / "a.pth")
    torch.save(weights, tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        assert load_encoder(tmp_path / name).matched == len(weights)
