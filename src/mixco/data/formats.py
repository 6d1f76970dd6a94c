"""The image formats that are read, and the endings of their files: those of the installed Pillow."""

from functools import cache
from importlib.util import find_spec

from PIL import Image

FIRST = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")  # the usual ones, tried first
# They would start programs (EPS: Ghostscript), or are stubs for what Pillow cannot read by itself.
NOT_READ = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "FPX", "MIC"})
ARRAYS = (".npy", ".npz")
HEIF = (".heic", ".heics", ".heif", ".heifs", ".hif")
TGA_END = b"TRUEVISION-XFILE.\0"


@cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats. Each is recognised by a file's first bytes, not by its ending.

    HEIF is among them where pillow-heif is installed.
    """
    Image.init()
    if find_spec("pillow_heif") is not None:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    recognised = {name for name, (_, accept) in Image.OPEN.items() if accept is not None}
    known = recognised.intersection(Image.registered_extensions().values()) - NOT_READ
    return (*FIRST, *sorted(known.difference(FIRST)))


def formats_of(data: bytes) -> tuple[str, ...]:
    """The formats that a file may have. A TGA is told by its last bytes, since it has no first ones."""
    return ("TGA",) if data.endswith(TGA_END) else formats()


@cache
def endings() -> tuple[str, ...]:
    """The endings of image files, in lower case, sorted; those of arrays are in ARRAYS."""
    read = {*formats(), "TGA", "MPO"}  # an MPO is a JPEG with more pictures behind it
    return tuple(sorted(e for e, name in Image.registered_extensions().items() if name in read))
