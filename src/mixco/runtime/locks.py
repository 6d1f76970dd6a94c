"""Locks between processes: the system's own, on a file, which end with their process."""

import errno
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mixco.runtime.errors import NOT_ALLOWED
from mixco.runtime.progress import say

AGAIN = 0.05  # seconds between two tries
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
# What file systems without locks answer, such as NFS without its lock service, some of FUSE and SMB.
# EBADF: NFS locks only what may be written, and no folder.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EBADF)

_told: set[Path] = set()
"""The folders of which it has been said that nothing can be locked there."""


class LockHeld(Exception):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path, seconds: float = math.inf) -> Iterator[None]:
    """Only one process at a time is inside; `seconds`: how long to wait for another one.

    path: of a file, which is made and stays; or of a folder, except on Windows. Where the file system
    has no locks, the process goes on without, and says so once.

    Raises LockHeld when the time is up, and OSError when the file can neither be made nor read.
    """
    descriptor = _opened(path)
    try:
        end = time.monotonic() + seconds
        while not _try(descriptor, path):
            if time.monotonic() >= end:
                raise LockHeld
            time.sleep(AGAIN)
        yield
    finally:
        os.close(descriptor)  # and with it the lock


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Only one process at a time is inside; the others wait.

    Where this process may not write, it has nothing to do that another one could meet.
    """
    with ExitStack() as held:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(lock))
        except OSError as error:
            if error.errno not in NOT_ALLOWED:
                raise
        yield


def _opened(path: Path) -> int:
    """A file of another user may be locked by all who can read it."""
    if path.is_dir():
        return os.open(path, os.O_RDONLY)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno not in NOT_ALLOWED or not path.exists():
            raise
        return os.open(path, os.O_RDONLY)


def _try(descriptor: int, path: Path) -> bool:
    """Lock, or return False where another process holds the lock."""
    try:
        _lock(descriptor)
    except OSError as error:
        if error.errno in NO_LOCKS:
            if path.parent not in _told:
                _told.add(path.parent)
                say(
                    f"warning: {path.parent}: its file system cannot lock files ({error.strerror}); "
                    "going on without, so let no two processes write there at once"
                )
            return True
        if error.errno in HELD:
            return False
        raise
    return True


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
