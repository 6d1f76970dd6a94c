"""Every mode of file becomes right RGB; the picture is a real one of the sample."""

import struct
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image
from sample_images import mosaics, sample_images

from mixco.data.decode import GREY as GREY_PIXEL
from mixco.data.decode import Box, as_decoded, decode, decode_crops, read_header, reduce
from mixco.data.opening import UnreadableImage

RGB: NDArray[np.uint8] = sample_images(4)[2].permute(1, 2, 0).numpy()
PICTURE = Image.fromarray(RGB)
GREY = np.asarray(PICTURE.convert("L"))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def close(a: NDArray[np.uint8], b: NDArray[np.uint8], tolerance: float) -> bool:
    assert a.shape == b.shape
    assert a.dtype == b.dtype == np.uint8
    return float(np.abs(a.astype(int) - b.astype(int)).mean()) <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_rgb_is_as_it_is(kind: str) -> None:
    assert close(decode(encoded(PICTURE, kind)), RGB, 0)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {})])
def test_lossy_formats_are_near(kind: str, options: dict[str, Any]) -> None:
    assert close(decode(encoded(PICTURE, kind, **options)), RGB, 6)


def test_greyscale_is_repeated() -> None:
    expected = np.repeat(GREY[:, :, None], 3, 2)
    assert close(decode(encoded(PICTURE.convert("L"), "PNG")), expected, 0)


def test_a_palette_is_resolved() -> None:
    palette = PICTURE.quantize(256)
    assert close(decode(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")), 0)
    assert close(decode(encoded(palette, "PNG")), RGB, 6)


def test_cmyk_is_converted() -> None:
    assert close(decode(encoded(PICTURE.convert("CMYK"), "JPEG", quality=95)), RGB, 6)


def test_black_and_white() -> None:
    expected = np.repeat(np.where(GREY[:, :, None] > 99, 255, 0).astype(np.uint8), 3, 2)
    bits = Image.fromarray(GREY > 99)
    assert bits.mode == "1"
    assert close(decode(encoded(bits, "PNG")), expected, 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_parts_show_white(mode: str) -> None:
    image = PICTURE.convert(mode)
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 32, 64))  # the left half
    image.putalpha(alpha)
    expected = np.asarray(PICTURE.convert("L" if mode == "LA" else "RGB").convert("RGB")).copy()
    expected[:, :32] = 255
    assert close(decode(encoded(image, "PNG")), expected, 0)


def test_a_transparent_palette_colour_shows_white() -> None:
    palette = PICTURE.quantize(16)
    first = np.asarray(palette) == 0
    expected = np.asarray(palette.convert("RGB")).copy()
    expected[first] = 255
    assert first.any()
    assert close(decode(encoded(palette, "PNG", transparency=0)), expected, 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_cut_off(kind: str) -> None:
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    assert close(decode(encoded(deep, kind)), np.repeat(GREY[:, :, None], 3, 2), 0)


def turned(wide: Image.Image, orientation: int) -> tuple[Image.Image, Image.Exif]:
    """As a camera stores it that was held in that way."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {
        1: wide,
        2: wide.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: wide.transpose(Image.Transpose.ROTATE_180),
        4: wide.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: wide.transpose(Image.Transpose.TRANSPOSE),
        6: wide.transpose(Image.Transpose.ROTATE_90),
        7: wide.transpose(Image.Transpose.TRANSVERSE),
        8: wide.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    return stored, exif


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(orientation: int) -> None:
    wide = PICTURE.crop((0, 0, 64, 40))
    stored, exif = turned(wide, orientation)
    assert close(decode(encoded(stored, "PNG", exif=exif)), np.asarray(wide), 0)


def test_of_an_animation_the_first_frame() -> None:
    first, second = PICTURE.quantize(64), Image.new("P", PICTURE.size)
    animation = encoded(first, "GIF", save_all=True, append_images=[second])
    assert close(decode(animation), RGB, 10)


JPEG = encoded(PICTURE, "JPEG")


def crop(data: bytes, box: Box, size: int) -> NDArray[np.uint8]:
    """One crop, [size, size, 3]."""
    return decode_crops(data, lambda _height, _width: [box], size)[0].transpose(1, 2, 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_crops_are_of_the_picture_as_it_is_seen(kind: str, orientation: int) -> None:
    """Not reduced: a crop of the target's size is cut out of what decode() gives, pixel by pixel."""
    stored, exif = turned(PICTURE.crop((0, 0, 64, 40)), orientation)
    data = encoded(stored, kind, exif=exif)
    whole = decode(data)
    told: list[tuple[int, int]] = []

    def boxes_of(height: int, width: int) -> list[Box]:
        told.append((height, width))
        return [(3, 5, 32, 32), (8, 32, 32, 32)]

    first, second = decode_crops(data, boxes_of, 32)
    assert told == [(40, 64)] == [whole.shape[:2]]
    assert np.array_equal(first.transpose(1, 2, 0), whole[3:35, 5:37])
    assert np.array_equal(second.transpose(1, 2, 0), whole[8:40, 32:64])


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "RGBA", "LA", "I;16"])
def test_crops_of_every_mode_are_those_of_the_right_rgb(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(GREY.astype(np.uint16) * 257)
    else:
        image = PICTURE.quantize(256) if mode == "P" else PICTURE.convert(mode)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    assert np.array_equal(crop(data, (16, 8, 32, 32), 32), decode(data)[16:48, 8:40])


LARGE: NDArray[np.uint8] = mosaics(12).numpy().reshape(3, 4, 3, 128, 128)
LARGE = LARGE.transpose(0, 3, 1, 4, 2).reshape(384, 512, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_at_reduced_scale_gives_the_same_crops(mode: str, orientation: int) -> None:
    """The picture is not moved and of the same colours; libjpeg's filter is a little sharper."""
    stored, exif = turned(Image.fromarray(LARGE[:377, :499]), orientation)
    data = encoded(stored.convert(mode), "JPEG", quality=92, exif=exif)
    whole = Image.fromarray(decode(data))
    for top, left, height, width in [(0, 0, 377, 499), (11, 7, 131, 150), (5, 9, 300, 270)]:
        part = whole.crop((left, top, left + width, top + height))
        expected = np.asarray(part.resize((32, 32), Image.Resampling.BILINEAR))
        found = crop(data, (top, left, height, width), 32)
        assert close(found, expected, 2.5)
        moved = np.abs(found[:, 1:].astype(int) - expected[:, :-1]).mean()
        assert moved > 4 * np.abs(found.astype(int) - expected).mean()
        # CMYK is left at full scale; the others are not what full scale gives.
        assert np.array_equal(found, expected) == (mode == "CMYK")


def test_a_jpeg_is_not_reduced_below_what_its_smallest_crop_needs() -> None:
    data = encoded(Image.fromarray(LARGE), "JPEG")
    whole = decode(data)
    boxes: list[Box] = [(0, 0, 384, 512), (10, 20, 63, 300)]
    crops = decode_crops(data, lambda _height, _width: boxes, 32)
    for found, (top, left, height, width) in zip(crops, boxes, strict=True):
        part = Image.fromarray(whole[top : top + height, left : left + width])
        expected = np.asarray(part.resize((32, 32), Image.Resampling.BILINEAR))
        assert np.array_equal(found.transpose(1, 2, 0), expected)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"no image at all", "not an image"),
        (b"<!DOCTYPE html><title>404</title>", "an HTML page"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (encoded(PICTURE, "PNG")[:-600], "truncated"),
    ],
)
def test_unreadable_files_say_why(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        decode(data)
    with pytest.raises(UnreadableImage, match=reason):
        crop(data, (0, 0, 64, 64), 32)


def test_a_decompression_bomb_is_refused() -> None:
    bomb = encoded(Image.new("1", (20_000, 10_000)), "PNG")
    with pytest.raises(UnreadableImage, match="179 million pixels"):
        decode(bomb)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_reduced_while_it_is_decoded(orientation: int) -> None:
    """A level or so away, on the mean, from decoding all of it and reducing that; turned as it says."""
    tiles = mosaics(16).permute(0, 2, 3, 1).numpy()
    large = np.vstack([np.hstack(tiles[i : i + 4]) for i in range(0, 12, 4)])  # 384 x 512
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(Image.fromarray(large), "JPEG", quality=95, exif=exif)
    ours = decode(data, 100)
    whole = Image.fromarray(decode(data))
    assert whole.size == ((512, 384) if orientation == 1 else (384, 512))
    theirs = np.asarray(reduce(whole, 100))
    assert ours.shape == theirs.shape == ((75, 100, 3) if orientation == 1 else (100, 75, 3))
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.mean() < 1.5, difference.mean()
    assert decode(data, 600).shape == decode(data).shape, "never enlarged"


def with_exif(orientation: int, *, entries: bytes = b"", twice: bool = False) -> bytes:
    """A JPEG whose EXIF names an orientation; entries: more of them, 12 bytes each."""
    count = 1 + len(entries) // 12
    tags = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + entries
    head = b"II*\0" + struct.pack("<IH", 8, count) + tags + struct.pack("<Iii", 0, -1, 0)
    payload = b"Exif\0\0" * (2 if twice else 1) + head
    segment = b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload
    data = encoded(PICTURE.crop((0, 0, 64, 40)), "JPEG", quality=95)
    return data[:2] + segment + data[2:]


# A resolution of -1/0, as a signed fraction, which cannot be written again.
FRACTION = struct.pack("<HHII", 0x011A, 10, 1, 8 + 2 + 2 * 12 + 4)


@pytest.mark.parametrize(
    "data",
    [with_exif(6, entries=FRACTION), with_exif(6, twice=True)],
    ids=["odd fraction", "marker twice"],
)
def test_odd_exif_is_obeyed(data: bytes) -> None:
    plain = np.asarray(Image.open(BytesIO(data)).transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(decode(data), plain)
    assert np.array_equal(crop(data, (0, 0, 40, 40), 40), plain[:40, :40])


def test_damaged_exif_does_not_matter() -> None:
    data = with_exif(6)
    damaged = data.replace(b"II*\0", b"II\xff\xff", 1)
    assert np.array_equal(decode(damaged), np.asarray(Image.open(BytesIO(data))))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [2, 10, 60])
def test_a_jpeg_without_its_end_is_read(missing: int, progressive: bool) -> None:
    """As every viewer shows it; but not one that lacks a good part of its rows."""
    large = Image.fromarray(LARGE)
    whole = encoded(large, "JPEG", quality=95, progressive=progressive)
    found, expected = decode(whole[:-missing]), decode(whole)
    rows = 384 if progressive else 352
    assert close(found[:rows], expected[:rows], 0.5 if progressive else 0)
    assert close(decode(whole[:-missing], 64), decode(whole, 64), 2)
    assert close(crop(whole[:-missing], (8, 8, 99, 99), 32), crop(whole, (8, 8, 99, 99), 32), 1)
    for cut in (len(whole) // 4, len(whole) // 2, len(whole) * 3 // 4):
        if progressive and cut < len(whole) * 0.3:  # only the finest details are missing
            assert close(decode(whole[:-cut]), expected, 2)
            continue
        with pytest.raises(UnreadableImage, match="truncated"):
            decode(whole[:-cut])


def test_bytes_behind_the_end_of_a_jpeg_do_not_matter() -> None:
    """Phones write films and depth there; a photograph may well end in white rows."""
    white = Image.new("RGB", (64, 64), "white")
    white.paste(PICTURE.crop((0, 0, 64, 20)))
    data = encoded(white, "JPEG", quality=95)
    assert np.array_equal(decode(data + b"\0junk" * 200), decode(data))


def test_a_photograph_of_108_million_pixels_is_read_and_a_bomb_is_not() -> None:
    """In a file as large as a camera's; the same claim in a small file is a bomb."""
    header = encoded(Image.new("L", (8, 8)), "JPEG")
    at = header.index(b"\xff\xc0") + 5
    claimed = header[:at] + struct.pack(">HH", 9000, 12000) + header[at + 4 :]
    with pytest.raises(UnreadableImage, match="108 million pixels in"):
        decode(claimed)
    assert read_header(claimed + bytes(2**20)) == (9000, 12000, GREY_PIXEL)
    huge = header[:at] + struct.pack(">HH", 12240, 16320) + header[at + 4 :]
    assert read_header(huge + bytes(2**21))[:2] == (12240, 16320), "200 million, of a phone"
    with pytest.raises(UnreadableImage, match="million pixels"):
        read_header(huge)


@pytest.mark.slow
def test_so_large_a_photograph_is_decoded() -> None:
    data = encoded(PICTURE.resize((12000, 9000)), "JPEG", quality=95)
    # Noise of a camera would make the file larger; bytes behind the end do it here.
    found = decode(data + bytes(2**20), 64)
    assert found.shape == (48, 64, 3)
    assert close(found, np.asarray(PICTURE.resize((64, 48))), 8)


def test_floats_in_pillows_formats_are_checked() -> None:
    for low, high, good in ((0.0, 1.0, True), (0.0, 1.2, False), (-0.1, 1.0, False)):
        levels = np.linspace(low, high, 64 * 64, dtype=np.float32).reshape(64, 64)
        data = encoded(Image.fromarray(levels), "TIFF")
        if good:
            assert np.array_equal(decode(data)[:, :, 0], np.rint(levels * 255))
            continue
        with pytest.raises(UnreadableImage, match=r"numbers from .* in 0 to 1"):
            decode(data)
        with pytest.raises(UnreadableImage, match=r"numbers from .* in 0 to 1"):
            as_decoded(Image.fromarray(levels))
    with pytest.raises(UnreadableImage, match="NaN among its numbers"):
        as_decoded(Image.fromarray(np.full((8, 8), np.nan, np.float32)))
    for number in (-1, 65536):
        with pytest.raises(UnreadableImage, match="expected int32 in 0 to 65535"):
            as_decoded(Image.fromarray(np.full((8, 8), number, np.int32)))
