"""Files in a folder that are not images: each is left out with its reason, or refused."""

import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from sample_images import sample_images

from mixco.data.datasets import list_images
from mixco.data.packing import pack
from mixco.data.storage import FileNames
from mixco.data.streaming import stream
from mixco.runtime.device import Compute
from mixco.settings.config import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimisationConfig,
    PretrainConfig,
    RunConfig,
)
from mixco.training.pretrain import pretrain
from mixco.views.augmentation import Input


def photos(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(sample_images(count)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:03}.png")
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and such names are Unix's")
def test_each_is_left_out_with_its_reason(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos.zip", 4)  # a folder, whatever it is called
    for i in range(4, 500):
        (folder / f"{i:03}.png").symlink_to(folder / f"{i % 4:03}.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    with (folder / "huge.png").open("wb") as file:
        file.truncate(2**31)  # takes no room on the disk
    (folder / "page.png").write_text("<html>not found</html>")
    source = list_images(str(folder), None, "pretrain")
    (folder / "123.png").unlink()  # vanishes meanwhile
    reasons = {
        "123.png": "No such file or directory",
        "gone.png": "No such file or directory",
        "huge.png": "more than 1 GiB",
        "page.png": "not an image (an HTML page)",
        "pipe.png": "not a regular file",
    }
    packed = pack(source, size=32, cache=tmp_path / "cache")
    assert dict(packed.unreadable_files) == reasons
    assert len(packed) == 499

    streamed, told = stream(source, 0), {}
    index = torch.arange(len(streamed))
    batches = streamed.evaluation_batches(
        index,
        Input(32, source.mean, source.std),
        compute=Compute(torch.device("cpu"), torch.float32),
        on_unreadable=told.__setitem__,
    )
    assert sum(len(part) for part, _ in batches) == 499
    assert told == reasons


def test_an_image_of_a_pixel_and_a_very_long_one_are_images(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 14)
    Image.new("RGB", (1, 1), "red").save(folder / "pixel.png")
    Image.new("RGB", (30_000, 1), "red").save(folder / "long.png")
    for how in ("packed", "streamed"):
        run = pretrain(config(folder, tmp_path / how, how))
        assert (run / "encoder.safetensors").exists()
        assert not (run / "unreadable.txt").exists()


def config(folder: Path, out: Path, how: str) -> PretrainConfig:
    return PretrainConfig(
        data=DataConfig(
            data=str(folder),
            size=32,
            cache=out.parent / "cache",
            loading=how,  # type: ignore[arg-type]
            workers=0,
        ),
        model=ModelConfig(arch="test_resnet", stem="standard"),
        method=MethodConfig(),
        optimisation=OptimisationConfig(epochs=1, batch_size=8),
        run=RunConfig(out=out, device="cpu"),
    )


NAMES = [
    *(
        "a b.png",
        " a.png",
        "-rf.png",
        "$x$.png",
        "[b]x.png",
        "%s{0}.png",
        "'\".png",
        "ä猫😀.png",
    ),
    *(
        "line\nend.png",
        "tab\t.png",
        "\x1b[31mred.png",
        "back\\slash.png",
        "..png",
        "a.PNG",
        "a;b|c.png",
    ),
    "x" * 251 + ".png",
]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names must be text")
@pytest.mark.parametrize("how", ["packed", "streamed"])
def test_names_with_every_awkward_character(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """Read, or reported in one line, whatever its name; no list breaks."""
    folder = photos(tmp_path / "$x$[" / "b]\udcff", 116)
    pixels = (folder / "000.png").read_bytes()
    for name in NAMES:
        (folder / name).write_bytes(pixels)
    (folder / "not\na\udcfe picture.png").write_bytes(b"")
    run = pretrain(config(folder, tmp_path / "run", how))
    listed = (run / "unreadable.txt").read_bytes().splitlines()
    assert listed == [b"not\\na\xfe picture.png\tthe file is empty"]
    assert "unreadable" in capsys.readouterr().err or how == "streamed"
    names = list_images(str(folder), None, "pretrain").files
    assert len(names) == 116 + len(NAMES) - 1 + 1  # "..png" is hidden
    assert list(FileNames(names)) == list(names)
