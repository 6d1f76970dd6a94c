"""Files that are either the old one or the new one, whatever happens while they are written."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


def free_space(path: Path) -> int:
    """Bytes that are free where `path` is, or would be made."""
    there = next(p for p in (path, *path.absolute().parents) if p.is_dir())
    return shutil.disk_usage(there).free


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; synced and renamed to it at the end, removed on errors.

    The suffix stays, for writers that go by it.
    """
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Inside is only one process at a time, the others wait. The lock ends with its process."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        yield
