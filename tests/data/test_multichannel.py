"""Images with other than three channels or 8 bits are read as they are, or left out with a reason."""

import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from forked import mixco_command
from multichannel_images import Band, bands, folder_of, photographs, write
from PIL import Image
from sample_images import mosaics, sample_images

from mixco.data.datasets import list_images
from mixco.data.decode import GREY, RGB, Box, Pixel, decode, decode_crops, read_header
from mixco.data.images import Images, view_batches
from mixco.data.loading import open_images
from mixco.data.normalisation import measure
from mixco.data.opening import UnreadableImage
from mixco.data.packed import PackedImages
from mixco.data.pixel_format import infer_pixel_format
from mixco.runtime.device import Compute
from mixco.runtime.errors import UserError
from mixco.views.augmentation import Input, crop_and_flip

PHOTOGRAPH = photographs(4)[2]
TOGETHER = {"photometric": "minisblack", "planarconfig": "contig"}


def file_of(tmp_path: Path, pixels: Band, ending: str) -> bytes:
    write(tmp_path / f"image{ending}", pixels)
    return (tmp_path / f"image{ending}").read_bytes()


def tiff(pixels: Band, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def opened(folder: Path, loading: str = "packed", size: int = 32, **pixel: int | None) -> Images:
    return open_images(
        list_images(str(folder), None, "pretrain"),
        size=size,
        cache=folder.parent / "cache",
        loading=loading,  # type: ignore[arg-type]
        workers=0,
        memory=2**30,
        **{"channels": None, **pixel},
    )


@pytest.mark.parametrize(
    ("channels", "bits", "ending"),
    [
        *((c, b, e) for c in (1, 2, 4, 13) for b in (8, 16) for e in (".tif", ".npy", ".npz")),
        *((1, 8, ".png"), (1, 16, ".png"), (4, 8, ".png")),
    ],
)
def test_pixels_are_those_that_were_written(
    tmp_path: Path, channels: int, bits: int, ending: str
) -> None:
    pixels = bands(channels, bits, PHOTOGRAPH)
    data = file_of(tmp_path, pixels, ending)
    pixel = Pixel(channels, bits)
    if not (ending == ".png" and channels == 4):  # whose fourth is transparency, unless asked for
        assert read_header(data) == (64, 64, pixel)
    found = decode(data, pixel=pixel)
    assert found.dtype == pixel.dtype
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize(
    "data",
    [
        tiff(bands(13, 16, PHOTOGRAPH).transpose(2, 0, 1), planarconfig="separate"),
        tiff(bands(13, 16, PHOTOGRAPH).transpose(2, 0, 1), photometric="minisblack"),
        tiff(bands(13, 16, PHOTOGRAPH).transpose(2, 0, 1), imagej=True),
        tiff(bands(13, 16, PHOTOGRAPH), **TOGETHER, compression="zlib"),
        tiff(
            bands(13, 16, PHOTOGRAPH), **TOGETHER, predictor=True, compression="zlib", tile=(32, 32)
        ),
        tiff(bands(13, 16, PHOTOGRAPH), **TOGETHER, byteorder=">"),
        tiff(bands(13, 16, PHOTOGRAPH), **TOGETHER, bigtiff=True),
    ],
    ids=["planes", "pages", "ImageJ", "compressed", "tiled", "big-endian", "BigTIFF"],
)
def test_tiffs_may_be_laid_out_in_many_ways(data: bytes) -> None:
    assert read_header(data) == (64, 64, Pixel(13, 16))
    assert np.array_equal(decode(data, pixel=Pixel(13, 16)), bands(13, 16, PHOTOGRAPH))
    with pytest.raises(UnreadableImage, match="13 channels, not 4"):
        decode(data, pixel=Pixel(4, 16))


def test_levels_keep_their_share_of_the_maximum(tmp_path: Path) -> None:
    shallow, deep = bands(4, 8, PHOTOGRAPH), bands(4, 16, PHOTOGRAPH)
    raised = decode(file_of(tmp_path, shallow, ".npy"), pixel=Pixel(4, 16))
    assert np.array_equal(raised, shallow.astype(np.uint16) * 257)
    lowered = decode(file_of(tmp_path, deep, ".tif"), pixel=Pixel(4, 8))
    assert np.array_equal(lowered, np.rint(deep / 257).astype(np.uint8))
    shares = decode(file_of(tmp_path, (shallow / 255).astype(np.float32), ".npy"), None, Pixel(4))
    assert np.array_equal(shares, shallow)


def test_one_channel_becomes_three_and_grey_becomes_one(tmp_path: Path) -> None:
    deep = bands(1, 16, PHOTOGRAPH)
    for ending in (".png", ".npy"):
        three = decode(file_of(tmp_path, deep, ending), pixel=Pixel(3, 16))
        assert np.array_equal(three, np.repeat(deep, 3, 2))
    grey = bands(1, 8, PHOTOGRAPH)
    stored_as_rgb = file_of(tmp_path, np.repeat(grey, 3, 2), ".png")
    assert np.array_equal(decode(stored_as_rgb, pixel=GREY), grey)
    with pytest.raises(UnreadableImage, match="3 channels, not 1: it has colours"):
        decode(file_of(tmp_path, PHOTOGRAPH, ".png"), pixel=GREY)


def test_a_grey_jpeg_is_still_decoded_at_a_reduced_scale(tmp_path: Path) -> None:
    big = Image.fromarray(mosaics(1)[0].permute(1, 2, 0).numpy()).convert("L").resize((512, 512))
    big.save(tmp_path / "big.jpg")
    data = (tmp_path / "big.jpg").read_bytes()
    assert decode(data, 64, GREY).shape == (64, 64, 1)
    box: Box = (0, 0, 512, 512)
    reduced = decode_crops(data, lambda _h, _w: [box], 64, GREY)
    exact = decode_crops(data, lambda _h, _w: [box], 64, Pixel(1, 16))
    assert reduced.shape == exact.shape == (1, 1, 64, 64)
    assert np.abs(reduced - exact / 257).mean() < 1.5


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((3, 4, 5, 6), np.uint8), r"\[3, 4, 5, 6\]; expected \[H, W\] or \[H, W, C\]"),
        (np.zeros((13, 20, 20), np.uint8), r"\[13, 20, 20\]; expected \[H, W, 13\]"),
        (np.zeros((20, 20, 5), np.uint8), "5 channels, not 13"),
        (
            np.full((20, 20, 13), -1000, np.int16),
            "numbers from -1000 to -1000; expected int16 in 0",
        ),
        (np.full((20, 20, 13), 1.02, np.float32), r"from 1.02 to 1.02; expected float32 in 0 to 1"),
        (np.full((20, 20, 13), np.nan, np.float32), "NaN among its numbers"),
        (np.zeros((20, 20, 13), complex), "an array of complex128; expected numbers"),
    ],
)
def test_what_cannot_be_an_image_is_reported(tmp_path: Path, array: Band, reason: str) -> None:
    np.save(tmp_path / "image.npy", array)
    with pytest.raises(UnreadableImage, match=reason):
        decode((tmp_path / "image.npy").read_bytes(), pixel=Pixel(13, 16))


def test_damaged_and_hostile_files_are_reported(tmp_path: Path) -> None:
    data = file_of(tmp_path, bands(13, 16, PHOTOGRAPH), ".npy")
    np.save(tmp_path / "objects.npy", np.array([[{}]]), allow_pickle=True)
    np.savez(tmp_path / "two.npz", np.zeros((9, 9)), np.zeros((9, 9)))
    with zipfile.ZipFile(tmp_path / "no.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    tif = file_of(tmp_path, bands(13, 16, PHOTOGRAPH), ".tif")
    for bad in (
        *(data[:n] for n in (5, 40, 5000)),
        *(tif[:n] for n in (5, 40, 5000)),
        *((tmp_path / name).read_bytes() for name in ("objects.npy", "two.npz", "no.zip")),
    ):
        with pytest.raises(UnreadableImage, match=r"damaged|cut short|read|expected|not an image"):
            decode(bad, pixel=Pixel(13, 16))


def test_without_tifffile_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "photos", 3, 13, 16, ".tif")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError, match=r"000.tif .*pip install 'mixco\[tiff\]'"):
        opened(folder)


@pytest.mark.parametrize(
    ("channels", "bits", "ending", "pixel"),
    [
        (1, 8, ".png", GREY),
        (1, 16, ".png", Pixel(1, 16)),
        (3, 8, ".png", RGB),
        (3, 16, ".npy", Pixel(3, 16)),
        (3, 16, ".tif", RGB),  # Pillow shows it, in 8 bits
        (4, 8, ".png", RGB),  # transparent
        (4, 8, ".tif", Pixel(4, 8)),
        (13, 16, ".tif", Pixel(13, 16)),
        (13, 8, ".npz", Pixel(13, 8)),
    ],
)
def test_the_files_tell_what_they_are_read_as(
    tmp_path: Path, channels: int, bits: int, ending: str, pixel: Pixel
) -> None:
    folder = folder_of(tmp_path / "photos", 4, channels, bits, ending)
    if (channels, bits, ending) == (3, 16, ".tif"):
        for path in folder.iterdir():
            path.write_bytes(tiff(bands(3, 16, PHOTOGRAPH), photometric="rgb"))
    assert infer_pixel_format(list_images(str(folder), None, "pretrain"), None, None).pixel == pixel


def test_one_colour_photograph_makes_all_rgb(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", 4, 1, 16, ".png")
    write(folder / "colour.png", PHOTOGRAPH)
    images = opened(folder)
    assert images.source.pixel == RGB
    assert images.source.mean == (0.485, 0.456, 0.406)


def test_options_go_first_and_are_refused_where_no_file_fits(tmp_path: Path) -> None:
    source = list_images(str(folder_of(tmp_path / "a", 3, 4, 16, ".tif")), None, "pretrain")
    assert infer_pixel_format(source, 4, 8).pixel == Pixel(4, 8)
    with pytest.raises(UserError, match=r"000.tif has 4 channels of 16 bits and .* --channels"):
        infer_pixel_format(source, 3, None)
    colour = list_images(str(folder_of(tmp_path / "b", 3, 3, 8, ".png")), None, "pretrain")
    with pytest.raises(UserError, match="it has colours"):
        infer_pixel_format(colour, 1, None)
    with pytest.raises(UserError, match=r"--bits .* 12"):
        infer_pixel_format(colour, None, 12)
    with pytest.raises(UserError, match=r"--channels .* 0"):
        infer_pixel_format(colour, 0, None)


def test_arrays_beside_photographs_are_something_else(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", 3, 3, 8, ".png")
    np.save(folder / "features.npy", np.zeros((100, 512)))
    assert len(list_images(str(folder), None, "pretrain").files) == 3


def test_files_of_another_number_of_channels_are_left_out_and_listed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", 120, 4, 16, ".npy")
    np.save(folder / "007.npy", bands(13, 16, PHOTOGRAPH))
    images = opened(folder, channels=4)
    assert isinstance(images, PackedImages)
    assert images.images.shape == (119, 4, 64, 64)
    assert images.unreadable_files == (("007.npy", "13 channels, not 4"),)


@pytest.mark.parametrize(("channels", "bits", "ending"), [(1, 16, ".png"), (13, 16, ".tif")])
def test_packed_and_streamed_hold_the_same_pixels(
    tmp_path: Path, channels: int, bits: int, ending: str
) -> None:
    """Bit for bit where nothing is resized; else within a step of 16 bits."""
    folder = folder_of(tmp_path / "photos", 12, channels, bits, ending)
    packed, streamed = opened(folder), opened(folder, "streamed")
    assert isinstance(packed, PackedImages)
    assert packed.images.dtype == torch.uint16
    index = torch.arange(12)
    shown = [images.canvases(index, 64)[0] for images in (packed, streamed)]
    assert torch.equal(*shown)
    expected = np.stack([bands(channels, bits, p) for p in photographs(12)]).transpose(0, 3, 1, 2)
    assert np.array_equal(shown[0].numpy(), expected)
    crop: Box = (10, 20, 32, 32)
    for i in range(12):
        data = packed.source.read(i)
        (cut,) = decode_crops(data, lambda _h, _w: [crop], 32, packed.source.pixel)
        assert np.array_equal(cut, expected[i, :, 10:42, 20:52])
    assert measure(packed) == measure(streamed)

    plain = Input(32, (0.0,) * channels, (1.0,) * channels)
    views = []
    for images in (packed, streamed):
        ((_, (view,)),) = view_batches(
            images,
            [(index, torch.Generator().manual_seed(7))],
            crop_and_flip(plain),
            members=index,
            batch_size=12,
            compute=Compute(torch.device("cpu"), torch.float32),
            on_unreadable=print,
            count=1,
        )
        views.append(view)
    assert (views[0] - views[1]).abs().max() < 0.6 / 65535, "rounded once"


def test_mean_and_deviation_are_measured_whatever_part_of_the_range_is_used(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", 40, 4, 16, ".tif")
    mean, std = measure(opened(folder))
    pixels = np.stack([bands(4, 16, p) for p in photographs(40)]) / 65535
    assert np.allclose(mean, pixels.mean((0, 1, 2)), rtol=1e-3)
    assert np.allclose(std, pixels.std((0, 1, 2)), rtol=1e-3)
    assert max(mean) < 1 / 16, "12 bits of 16"
    still = np.dstack([bands(1, 16, PHOTOGRAPH), np.full((64, 64), 7, np.uint16)])
    write(tmp_path / "still" / "0.npy", still)
    _, std = measure(opened(tmp_path / "still"))
    assert std[1] == 1, "the same everywhere: not divided by nothing"


@pytest.mark.parametrize(("height", "width"), [(64, 640), (640, 64), (3, 400)])
def test_tall_and_wide_ones_are_packed_whole_and_streamed_in_auto(
    tmp_path: Path, height: int, width: int
) -> None:
    """Packed, the longer side decides, so little is left of the shorter one: auto streams."""
    folder = tmp_path / "photos"
    folder.mkdir()
    strip = np.concatenate(photographs(10), axis=1 if width > height else 0)[:height, :width]
    for i in range(20):
        Image.fromarray(strip).save(folder / f"{i}.png")
    packed = opened(folder)
    assert isinstance(packed, PackedImages)
    assert packed.images.shape == (20, 3, 64, 64)
    expected = [max(1, round(side * 64 / max(strip.shape))) for side in strip.shape[:2]]
    assert packed.extents.unique(dim=0).tolist() == [expected]
    assert opened(folder, "auto").loading == "streamed"
    write(folder / "0.png", photographs(1)[0])
    for i in range(1, 20):
        write(folder / f"{i}.png", sample_images(20)[i].permute(1, 2, 0).numpy())
    assert opened(folder, "auto").loading == "packed"


@pytest.mark.parametrize("tall", [True, False])
@pytest.mark.parametrize("loading", ["packed", "streamed"])
def test_views_of_tall_and_wide_ones_hold_no_margin_and_evaluation_sees_their_middle(
    tmp_path: Path, loading: str, tall: bool
) -> None:
    strip = np.concatenate(photographs(10), axis=0 if tall else 1).clip(1)  # the margin is 0
    write(tmp_path / "photos" / "strip.png", strip)
    images, index = opened(tmp_path / "photos", loading, size=64), torch.zeros(64).long()
    plain = Input(64, (0.0,) * 3, (1.0,) * 3)
    how = {"compute": Compute(torch.device("cpu"), torch.float32), "on_unreadable": print}
    plan = [(index, torch.Generator().manual_seed(0))]
    ((_, (views,)),) = view_batches(
        images,
        plan,
        crop_and_flip(plain),
        members=index[:1],
        batch_size=64,
        count=1,
        **how,  # type: ignore[arg-type]
    )
    assert views.shape == (64, 3, 64, 64)
    assert views.min() > 0.5 / 255
    ((_, seen),) = images.evaluation_batches(index[:1], plain, **how)  # type: ignore[arg-type]
    middle = strip[288:352] if tall else strip[:, 288:352]
    expected = torch.from_numpy(middle / 255).permute(2, 0, 1).float()
    # Packed, 13 of its 64 pixels are left.
    assert (seen[0] - expected).abs().mean() < (0.06 if loading == "packed" else 1e-6)


def pages(*parts: tuple[Band, dict[str, Any]]) -> bytes:
    """A TIFF of pages, each with options of its own."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        for pixels, options in parts:
            file.write(pixels, photometric="minisblack", metadata=None, **options)
    return buffer.getvalue()


SMALL_MASK = {"extratags": [(254, "I", 1, 5, True)]}
GREY_PHOTOGRAPH = bands(1, 8, PHOTOGRAPH)[:, :, 0]
OVERVIEW, MASK = {"subfiletype": 1}, {"extratags": [(254, "I", 1, 4, True)]}
PAGES = {
    "overviews": [({}, 1), (OVERVIEW, 2), (OVERVIEW, 4)],
    "a mask": [({}, 1), (MASK, 1)],
    "a mask with its overview": [({}, 1), (MASK, 1), (OVERVIEW, 2), (SMALL_MASK, 2)],
    "an old thumbnail": [({}, 1), ({"extratags": [(255, "H", 1, 2, True)]}, 2)],
    "a thumbnail that does not say so": [({}, 1), ({}, 4)],
    "a thumbnail first": [(OVERVIEW, 4), ({}, 1)],
}


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("kind", PAGES)
def test_overviews_thumbnails_and_masks_are_no_channels(kind: str, deep: bool) -> None:
    pixels = GREY_PHOTOGRAPH.astype(np.uint16) * 257 if deep else GREY_PHOTOGRAPH
    data = pages(*((pixels[::step, ::step], options) for options, step in PAGES[kind]))
    pixel = Pixel(1, 16 if deep else 8)
    assert read_header(data) == (64, 64, pixel)
    assert np.array_equal(decode(data, pixel=pixel)[:, :, 0], pixels)
    assert np.array_equal(decode(data), np.repeat(GREY_PHOTOGRAPH[:, :, None], 3, 2))


def test_pages_of_one_size_are_channels_also_with_overviews() -> None:
    every = bands(4, 16, PHOTOGRAPH)
    full = [(every[:, :, i], {}) for i in range(4)]
    small = [(every[::2, ::2, i], OVERVIEW) for i in range(4)]
    data = pages(*(page for pair in zip(full, small, strict=True) for page in pair))
    assert read_header(data) == (64, 64, Pixel(4, 16))
    assert np.array_equal(decode(data, pixel=Pixel(4, 16)), every)


FLOATS = (np.dstack([PHOTOGRAPH, PHOTOGRAPH[:, :, :1]]) / 255).astype(np.float32)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tiffs_of_floats_are_read_and_checked(channels: int, kind: type) -> None:
    """Greyscale, colour and more bands: 1 is the maximum, and nothing is clipped."""
    pixels = FLOATS[:, :, :channels].astype(kind)
    shape = pixels if channels > 1 else pixels[:, :, 0]
    options: dict[str, Any] = TOGETHER if channels > 1 else {"photometric": "minisblack"}
    options = {"photometric": "rgb"} if channels == 3 else options
    data = tiff(shape, **options)
    expected = np.rint(FLOATS[:, :, :channels] * 255)
    error = 0.2 if kind is np.float16 else 0
    assert np.abs(decode(data, pixel=Pixel(channels)) - expected).mean() <= error
    for bad in (1.2, -0.01, np.nan, np.inf):
        wrong = shape.copy()
        wrong[3, 5] = bad
        data = tiff(wrong, **options)
        for pixel in (Pixel(channels), Pixel(channels, 16)):
            with pytest.raises(UnreadableImage, match=r"NaN among|numbers from"):
                decode(data, pixel=pixel)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_signed_bytes_are_not_taken_for_unsigned_ones(tmp_path: Path, channels: int) -> None:
    pixels = np.zeros((64, 64, channels), np.int8)
    options: dict[str, Any] = TOGETHER if channels > 1 else {"photometric": "minisblack"}
    for data in (file_of(tmp_path, pixels, ".npy"), tiff(pixels.squeeze(), **options)):
        with pytest.raises(UnreadableImage, match="signed bytes; expected uint8"):
            decode(data, pixel=Pixel(channels))


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", "lzma"])
@pytest.mark.parametrize("predictor", [False, True])
def test_usual_compressions_are_read(compression: str, predictor: bool) -> None:
    """As GIS programs write them."""
    for pixels, expected in (
        (bands(4, 16, PHOTOGRAPH), bands(4, 16, PHOTOGRAPH)),
        (FLOATS, np.rint(FLOATS * 65535)),
    ):
        data = tiff(pixels, **TOGETHER, compression=compression, predictor=predictor)
        assert np.array_equal(decode(data, pixel=Pixel(4, 16)), expected)


def test_without_imagecodecs_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiff(bands(4, 16, PHOTOGRAPH), **TOGETHER, compression="lzw")
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tifffile"]:
        monkeypatch.delitem(sys.modules, name)  # it looks for codecs when it is imported
    with pytest.raises(
        UnreadableImage, match=r"compression \(lzw\) needs imagecodecs: pip install"
    ):
        decode(data, pixel=Pixel(4, 16))


@pytest.mark.parametrize("ending", [".npy", ".tif"])
def test_a_set_that_fills_next_to_nothing_of_its_range_is_warned_of(
    tmp_path: Path, ending: str
) -> None:
    """0 to 255 in numbers that reach to 65535: at 8 bits a level is all that is left of them."""
    for i, photograph in enumerate(photographs(40)):
        write(tmp_path / "photos" / f"{i:03}{ending}", bands(4, 8, photograph).astype(np.uint16))
    options = ("--data", tmp_path / "photos", "--size", "32", "--arch", "test_resnet")
    options += ("--stem", "standard", "--device", "cpu", "--cache", tmp_path / "cache")
    out = ("--out", tmp_path / "run", "--epochs", "1", "--batch-size", "8")
    for done in (mixco_command("pretrain", *options, *out), mixco_command("doctor", *options)):
        assert done.returncode == 0, done.stderr
        assert "all but of one colour" in " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_white_is_zero_is_inverted(kind: type) -> None:
    most = 1 if kind is np.float32 else np.iinfo(kind).max
    pixels = (GREY_PHOTOGRAPH / 255 * most).astype(kind)
    data = tiff((most - pixels).astype(kind), photometric="miniswhite")
    found = decode(data)[:, :, 0].astype(int)
    assert np.abs(found - GREY_PHOTOGRAPH).max() <= 1
    pixel = Pixel(1, 16 if kind is not np.uint8 else 8)
    assert read_header(data).pixel == pixel
    assert np.abs(decode(data, pixel=pixel)[:, :, 0] / 257 ** (pixel.bits // 16) - found).max() <= 1


def test_of_several_pages_the_first_is_the_one_channel() -> None:
    every = bands(4, 16, PHOTOGRAPH)
    data = pages(*((every[:, :, i], {}) for i in range(4)))
    assert np.array_equal(decode(data, pixel=Pixel(1, 16)), every[:, :, :1])
