"""The pixel format that a set of images is read in: how many channels, of how many bits."""

import dataclasses

import numpy as np

from mixco.data.decode import RGB, FileHeader, Pixel, decode, read_header
from mixco.data.image_list import ImageList
from mixco.data.opening import UnreadableImage, quietly
from mixco.runtime.errors import UserError
from mixco.runtime.files import shown

LOOKED_AT = 256  # files whose headers are read to find the format


def infer_pixel_format(source: ImageList, channels: int | None, bits: int | None) -> ImageList:
    """The list with the pixel format of its files, from the headers of some, spread over the list.

    channels: None for theirs, if all have the same number; else 3, RGB.
    bits: None for 16 if one of them is deeper than 8 bits. Photographs in Pillow's formats are read in 8
        bits unless 16 are asked for.

    Raises UserError when none of these files can be read in that format.
    """
    if channels is not None and channels < 1:
        raise UserError(f"--channels must be at least 1, got {channels}")
    if bits not in (None, 8, 16):
        raise UserError(f"--bits must be 8 or 16, got {bits}")
    wanted = Pixel(channels or 3, bits or 8)
    if source.arrays is not None:
        if wanted != RGB:
            raise UserError(
                f"{source.root}: the images are RGB of 8 bits and cannot be read with {wanted}; "
                "leave out --channels and --bits"
            )
        return source
    headers: dict[int, FileHeader] = {}
    with quietly():
        for index in spread(len(source.files), LOOKED_AT):
            try:
                headers[index] = read_header(source.read(index))
            except UnreadableImage:  # decode() will give the reason
                continue
            if headers[index].pixel == RGB and channels in (None, 3) and bits in (None, 8):
                return source  # one colour photograph makes all of them RGB
    if not headers:
        return source  # packing or streaming will report the reason
    pixels = {header.pixel for header in headers.values()}
    if channels is None:
        found = {pixel.channels for pixel in pixels}
        channels = found.pop() if len(found) == 1 else 3
    if bits is None:
        deep = {pixel for pixel in pixels if pixel.bits == 16}
        # Greyscale that is read as RGB stays at 8 bits.
        bits = 16 if deep and (channels != 3 or deep == pixels == {Pixel(3, 16)}) else 8
    wanted = Pixel(channels, bits)
    if wanted != RGB or not pixels <= {RGB, Pixel(1, 8), Pixel(1, 16)}:
        _refuse_unless_one_can(source, headers, wanted, own=wanted in pixels)
    return dataclasses.replace(source, pixel=wanted)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below count, evenly spaced."""
    return [int(number) for number in np.linspace(0, count - 1, min(most, count))]


def _refuse_unless_one_can(
    source: ImageList, headers: dict[int, FileHeader], pixel: Pixel, *, own: bool
) -> None:
    """own: is it the format of the files themselves?"""
    reasons: list[str] = []
    for index, header in headers.items():
        try:
            decode(source.read(index), pixel=pixel)
            return
        except UnreadableImage as error:
            name = shown(str(source.root / source.files[index]))
            read = (
                "cannot be read" if own else f"has {header.pixel} and cannot be read with {pixel}"
            )
            reasons.append(f"{name} {read} ({error})")
    remedy = (
        "mend the files (docs/your-data.md says what is read)"
        if own
        else "leave out --channels and --bits, or give images in the encoder's format"
    )
    raise UserError(f"{reasons[0]}, nor can any other of {len(reasons)} files; {remedy}")
