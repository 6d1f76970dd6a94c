"""As what a set of images is read: how many channels, and of how many bits."""

import dataclasses

import numpy as np

from mixco.data.decode import RGB, Look, Pixel, UnreadableImage, decode, look, quietly
from mixco.data.image_list import ImageList
from mixco.runtime.errors import UserError

LOOKED_AT = 256  # files that are opened to see what the images are


def infer_pixel_format(source: ImageList, channels: int | None, bits: int | None) -> ImageList:
    """The list with the pixel that its files are read as.

    channels: None for what the files looked at are, if all are greyscale or all have one number of
        channels; else 3, RGB. bits: None for 16 where one of them is deeper than 8 bits. Of RGB from
        Pillow's formats that is never so: these are read in 8 bits unless 16 are asked for.

    The files looked at are spread over the list. Raises UserError when none of them can be read so.
    """
    if channels is not None and channels < 1:
        raise UserError(f"--channels {channels}: 1 or more")
    if bits not in (None, 8, 16):
        raise UserError(f"--bits {bits}: 8 or 16")
    wanted = Pixel(channels or 3, bits or 8)
    if source.arrays is not None:
        if wanted != RGB:
            raise UserError(
                f"{source.root}: the images are RGB of 8 bits; {wanted} are not to be had"
            )
        return source
    looks: dict[int, Look] = {}
    with quietly():
        for index in spread(len(source.files), LOOKED_AT):
            try:
                looks[index] = look(source.read(index))
            except (UnreadableImage, OSError):  # what is wrong is told by decode(), with a reason
                continue
            if looks[index].pixel == RGB and channels in (None, 3) and bits in (None, 8):
                return source  # one colour photograph decides it
    if not looks:
        return source  # and packing or streaming tells what is wrong
    pixels = {seen.pixel for seen in looks.values()}
    if channels is None:
        found = {pixel.channels for pixel in pixels}
        channels = found.pop() if len(found) == 1 else 3
    if bits is None:
        deep = {pixel for pixel in pixels if pixel.bits == 16}
        # Greyscale made RGB stays at 8 bits.
        bits = 16 if deep and (channels != 3 or deep == pixels == {Pixel(3, 16)}) else 8
    wanted = Pixel(channels, bits)
    if wanted != RGB or not pixels <= {RGB, Pixel(1, 8), Pixel(1, 16)}:
        _refuse_unless_one_can(source, looks, wanted)
    return dataclasses.replace(source, pixel=wanted)


def spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below count, equally far from each other."""
    return [int(number) for number in np.linspace(0, count - 1, min(most, count))]


def _refuse_unless_one_can(source: ImageList, looks: dict[int, Look], pixel: Pixel) -> None:
    reasons: list[str] = []
    for index, seen in looks.items():
        try:
            decode(source.read(index), pixel=pixel)
            return
        except (UnreadableImage, OSError) as error:
            name = source.root / source.files[index]
            reasons.append(f"{name} has {seen.pixel} and cannot be read with {pixel} ({error})")
    raise UserError(
        f"{reasons[0]}, nor can any of the {len(reasons)} files looked at; leave out --channels and "
        "--bits, or take images that the encoder can see"
    )
