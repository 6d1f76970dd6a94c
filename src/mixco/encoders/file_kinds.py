"""What a file that was given for weights is, where it holds none: its first bytes tell most kinds."""

import tarfile
import zipfile
from pathlib import Path

LONGEST_HEADER = 100_000_000  # bytes; safetensors itself refuses longer ones
DOWNLOAD = "download or copy it again"
WEIGHTS = "give the file with the weights: .safetensors, or what torch.save wrote"

# First bytes, what they are, and what to do.
KINDS = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "run `git lfs pull` there",
    ),
    (b"\x89HDF", "an HDF5 file, as Keras writes it", WEIGHTS),
    (b"\x93NUMPY", "a NumPy array", WEIGHTS),
    (b"GGUF", "a GGUF file", WEIGHTS),
    (b"\x1f\x8b", "compressed with gzip", "unpack it, and give what is inside"),
    (b"BZh", "compressed with bzip2", "unpack it, and give what is inside"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it, and give what is inside"),
    (b"(\xb5/\xfd", "compressed with zstd", "unpack it, and give what is inside"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it, and give what is inside"),
    (b"Rar!", "a RAR archive", "unpack it, and give what is inside"),
    (b"%PDF", "a PDF", WEIGHTS),
    (b"\x89PNG", "a picture", WEIGHTS),
    (b"\xff\xd8\xff", "a picture", WEIGHTS),
)


def is_safetensors(path: Path) -> bool:
    """Does it begin as a safetensors file: the length of a header, and JSON?"""
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return len(start) == 9 and 2 <= length <= LONGEST_HEADER and start[8:] == b"{"


def why_unreadable(path: Path, error: Exception) -> str:
    """What the file is, as far as its bytes tell, and what to do; else what reading it came to."""
    with path.open("rb") as file:
        start = file.read(4096)
    if not start:
        return f"it is empty; {DOWNLOAD}"
    for magic, what, remedy in KINDS:
        if start.startswith(magic):
            return f"it is {what}; {remedy}"
    if start.startswith(b"PK"):
        return _of_zip(path, error)
    if tarfile.is_tarfile(path):
        return "it is a tar archive; unpack it, and give what is inside"
    what = "a safetensors file" if path.suffix == ".safetensors" else "of a format known here"
    return _of_text(start) or f"it is damaged or not {what} ({_said(error)}); {WEIGHTS}"


def _of_zip(path: Path, error: Exception) -> str:
    """torch.save writes a zip file, whose pickle is called data.pkl; other files are zipped too."""
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except (zipfile.BadZipFile, OSError):
        return f"it was cut short, and its end is missing; {DOWNLOAD}"
    inside = {Path(name).name for name in names}
    if "constants.pkl" in inside:
        return (
            "it is TorchScript, a program, and is not run; where it was made, save its weights alone: "
            f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pt')"
        )
    if "data.pkl" in inside:
        return f"a damaged file of torch.save ({_said(error)}); {DOWNLOAD}"
    shown = ", ".join(names[:3])
    return f"it is a zip archive of other files ({shown}); unpack it, and give the weights"


def _of_text(start: bytes) -> str | None:
    try:
        text = start[: start.rfind(b" ") if len(start) == 4096 else None].decode("utf-8").strip()
    except UnicodeDecodeError:
        return None
    if any(ord(letter) < 32 and letter not in "\t\r\n\f" for letter in text):
        return None
    if text.lower().startswith(("<!doctype html", "<html", "<?xml", "<head")):
        return f"it is a web page, which came in place of the file; {DOWNLOAD}"
    words = text.splitlines()[0][:40] if text else ""
    return f'it is a text file ("{words}"); {WEIGHTS}'


def _said(error: Exception) -> str:
    """The first line of an error, without torch's advice to run what is in the file."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    advice = "weights" in line.lower() and "load" in line.lower()
    return type(error).__name__ if advice or not line else line
