"""Atomic files: a reader finds the old file or the new one, whatever happens during writing."""

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TextIO

from mixco.runtime.errors import UserError


def free_space(path: Path) -> int:
    """Free bytes on the disk of `path`, which need not exist yet."""
    there = next(p for p in (path, *path.absolute().parents) if p.is_dir())
    return shutil.disk_usage(there).free


def at_home(path: str, option: str) -> str:
    """The path, with the home folder in place of a `~` or a `~user` at its beginning.

    Raises UserError, which names the option, where there is no such home.
    """
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        if os.path.lexists(path):  # a file whose name begins so
            return path
    user = path.partition("/")[0].removeprefix("~")
    why = f"there is no user {user} with a home folder" if user else "this user has no home folder"
    here = f", or ./{path} for what is called so here" if user else ""
    raise UserError(f"{option} {path}: {why}; give {option} with a full path{here}")


def refuse_other_than_utf8(path: Path, option: str) -> None:
    """Raises UserError for a path that is not UTF-8: safetensors and TensorBoard cannot open it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{option} {path}: its name is not UTF-8, and the libraries that read and write such files "
            "take no other; rename it, or give another"
        ) from None


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path`, with its suffix, that no other writer has.

    A process number would not do: other machines, and containers, have processes of the same number.
    """
    return path.with_name(f".{secrets.token_hex(4)}-{path.name}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; synced and renamed to it at the end, removed on errors.

    It has the suffix of `path`, for writers that choose the format by it. The new file has the rights
    that the umask leaves, whatever the writer gives it and the old one had.

    Raises OSError that names `path`, also where a library, such as safetensors, reports the system's
    error only in a message of its own.
    """
    temporary = temporary_name(path)
    try:
        with naming(path):
            temporary.touch()
            rights = temporary.stat().st_mode  # as the umask, or the folder's own list, has them
            yield temporary
            _give(temporary, rights)
            with temporary.open("r+b") as file:  # Windows syncs only what may be written
                os.fsync(file.fileno())
            _replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _give(path: Path, rights: int) -> None:
    """Set the rights of a file: safetensors keeps its own from all but its owner."""
    if path.stat().st_mode & 0o777 != rights & 0o777:
        with suppress(OSError):  # some file systems have no rights
            path.chmod(rights & 0o777)


def _replace(temporary: Path, path: Path) -> None:
    """Rename. Windows refuses while a reader or a virus scanner has a file open, so try again there."""
    for wait in (0.01, 0.1, 1.0):
        try:
            temporary.replace(path)
            return
        except PermissionError:
            if os.name != "nt":
                raise
            time.sleep(wait)
    temporary.replace(path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; synced and renamed to it at the end, removed on errors.

    Its files have the rights that the umask leaves.

    path: must not exist, or be an empty folder.
    """
    temporary = temporary_name(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        usual = temporary.stat().st_mode & 0o666
        for written in temporary.iterdir():
            _give(written, usual)
            with written.open("rb") as file:
                os.fsync(file.fileno())
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def open_table(path: Path, mode: Literal["r", "w"] = "r") -> TextIO:
    """A CSV file in UTF-8; file names in it keep their own bytes, whatever these are."""
    return path.open(mode, encoding="utf-8", errors="surrogateescape", newline="")


def in_line(name: str) -> str:
    """A file's name for a list of names, one a line: as it is, but for line breaks and tabs."""
    return re.sub(
        r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]", lambda found: ascii(found[0])[1:-1], name
    )


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, every OSError names this path; that of a full disk would name none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def shown(name: str) -> str:
    """A file's name for people; escaped where it has line breaks or other unprintable characters."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
