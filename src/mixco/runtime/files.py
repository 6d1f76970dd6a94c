"""Atomic files: a reader finds the old file or the new one, whatever happens during writing."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_space(path: Path) -> int:
    """Free bytes on the disk of `path`, which need not exist yet."""
    there = next(p for p in (path, *path.absolute().parents) if p.is_dir())
    return shutil.disk_usage(there).free


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; synced and renamed to it at the end, removed on errors.

    It has the suffix of `path`, for writers that choose the format by it.

    Raises OSError that names `path`, also where a library, such as safetensors, reports the system's
    error only in a message of its own.
    """
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        with naming(path):
            yield temporary
            with temporary.open("r+b") as file:  # Windows syncs only what may be written
                os.fsync(file.fileno())
            _replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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

    path: must not exist, or be an empty folder.
    """
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for written in temporary.iterdir():
            with written.open("rb") as file:
                os.fsync(file.fileno())
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
