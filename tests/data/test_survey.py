"""Headers, decoded files, copies and near-copies of real files with planted trouble."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sample_images import mosaics, sample_images
from troubled import troubled_folder

from mixco.data.datasets import list_images
from mixco.data.datasets.folders import unlabelled_folder
from mixco.data.image_list import ImageList
from mixco.data.normalisation import measure
from mixco.data.packing import pack
from mixco.data.streaming import stream
from mixco.doctor.near_duplicates import near_copies
from mixco.doctor.survey import Header, Look, _spread, copies, look_at, read_headers


@pytest.fixture(scope="module")
def trouble(tmp_path_factory: pytest.TempPathFactory) -> ImageList:
    folder = tmp_path_factory.mktemp("survey") / "photos"
    troubled_folder(folder)
    return unlabelled_folder(folder)


def named(source: ImageList, found: dict[int, object]) -> dict[str, object]:
    return {source.files[i]: what for i, what in found.items()}


def test_headers_say_what_the_files_are(trouble: ImageList) -> None:
    found = named(trouble, dict(read_headers(trouble, seconds=60, workers=2)))
    kinds = {name: what.kind for name, what in found.items() if isinstance(what, Header)}
    assert len(found) == len(trouble.files)
    assert found["long.jpg"] == Header(64, 1280, "RGB", (trouble.root / "long.jpg").stat().st_size)
    assert kinds["good-001.jpg"] == kinds["grey-in-rgb.png"] == "RGB"
    assert kinds["grey.png"] == "grey"
    assert kinds["deep.png"] == "16 bits"
    assert kinds["transparent.png"] == "transparent"
    assert kinds["cmyk.jpg"] == "CMYK"
    assert found["empty.jpg"] == "the file is empty"
    assert found["page.jpg"] == "not an image (an HTML page)"
    assert isinstance(found["cut.jpg"], Header), "its header is whole"


def test_colours_of_16_bits_are_known(tmp_path: Path) -> None:
    """Pillow opens such a PNG as one of 8 bits."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(b"\0" + bytes(2 * 3 * 40) for _ in range(40))
    (tmp_path / "deep.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 40, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    header = read_headers(unlabelled_folder(tmp_path), seconds=60, workers=1)[0]
    assert isinstance(header, Header)
    assert header.kind == "16 bits"


def test_decoding_meets_damage_and_sees_what_is_grey(trouble: ImageList) -> None:
    looks = look_at(trouble, seconds=60, workers=2, at_least=0)
    found = named(trouble, dict(looks))
    grey = {name for name, look in found.items() if isinstance(look, Look) and look.grey}
    assert grey == {"grey.png", "grey-in-rgb.png", "deep.png"}
    assert {n for n, look in found.items() if isinstance(look, str)} == {
        *("cut.jpg", "empty.jpg", "page.jpg")
    }
    assert "truncated" in str(found["cut.jpg"])


def test_copies_and_near_copies(trouble: ImageList) -> None:
    groups, compared = copies(trouble, read_headers(trouble, seconds=60, workers=1), seconds=60)
    assert [[trouble.files[i] for i in group] for group in groups] == [["copy.jpg", "good-003.jpg"]]
    assert compared == len(trouble.files) - 2  # but those without a header

    looks = look_at(trouble, seconds=60, workers=2, at_least=0)
    seen = [i for i in sorted(looks) if isinstance(looks[i], Look)]
    pairs = near_copies(np.stack([looks[i].thumbnail for i in seen]))  # type: ignore[union-attr]
    assert [tuple(trouble.files[seen[i]] for i in pair) for pair in pairs] == [
        ("copy.jpg", "good-003.jpg"),
        ("good-004.jpg", "quality.jpg"),
        ("good-005.jpg", "smaller.jpg"),
    ]


def test_near_copies_among_thousands() -> None:
    """Planted ones are found, and the photographs of the sample are told apart."""
    photos = sample_images(1600)
    brighter = (photos[:50].float() + 8).clamp(0, 255).byte()
    shown = [
        np.asarray(Image.fromarray(p).convert("L").resize((16, 16), Image.Resampling.BOX))
        for p in torch.cat([photos, brighter]).permute(0, 2, 3, 1).numpy()
    ]
    pairs = near_copies(np.stack(shown))
    planted = {(i, 1600 + i) for i in range(50)}
    found = {(int(a), int(b)) for a, b in pairs}
    assert len(planted & found) >= 45
    assert len(found - planted) <= 2


def test_images_of_one_colour_are_no_near_copies_and_take_no_time() -> None:
    assert len(near_copies(np.full((3000, 16, 16), 200, np.uint8))) == 0
    assert len(near_copies(np.zeros((1, 16, 16), np.uint8))) == 0


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000, 4096])
def test_blocks_cover_all_once_and_jump(count: int) -> None:
    blocks = list(_spread(count))
    assert sorted(i for block in blocks for i in block) == list(range(count))
    if count == 4096:
        assert abs(blocks[1].start - blocks[0].start) > count // 4


def test_within_no_time_at_least_what_was_asked_for_is_looked_at() -> None:
    source = list_images("sample", None, "pretrain")
    assert 200 <= len(look_at(source, seconds=0, workers=2, at_least=200)) < 400


def test_normalisation_is_measured(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    photos = mosaics(30)
    for i, pixels in enumerate(photos.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels[: 128 - i]).save(folder / f"{i:02}.png")  # of several shapes
    source = unlabelled_folder(folder)
    mean, std = measure(pack(source, size=64, cache=tmp_path / "cache"))
    each = [p[:, : 128 - i].double() / 255 for i, p in enumerate(photos)]
    expected = torch.stack([p.mean((1, 2)) for p in each]).mean(0)
    square = torch.stack([p.square().mean((1, 2)) for p in each]).mean(0)
    torch.testing.assert_close(torch.tensor(mean).double(), expected, atol=1e-4, rtol=0)
    spread = (square - expected**2).sqrt()
    torch.testing.assert_close(torch.tensor(std).double(), spread, atol=1e-4, rtol=0)
    streamed_mean, streamed_std = measure(stream(source, 0))
    assert streamed_mean == pytest.approx(mean, abs=5e-3)
    assert streamed_std == pytest.approx(std, abs=2e-2)  # reduced to 64 px they vary less
