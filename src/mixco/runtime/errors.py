"""Errors for the user's eyes: mistakes that the user can mend, and failures of the machine.

The command line imports this module before anything else, so it must not import torch.
"""

import errno
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake that the user can mend.

    Its message names the thing, what was expected, and the remedy. The command line prints it
    without a traceback and exits with code 2.
    """


# What the allocators of the CPU, of CUDA and its libraries, of Apple's devices and of the system say.
OUT_OF_MEMORY = re.compile(
    r"out of memory|can(no|')t allocate memory|alloc_failed|bad_?alloc|can't start new thread", re.I
)
ASKED_FOR = re.compile(r"tried to allocate ([\d.]+ ?\w+)", re.I)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def explain_machine_failures(remedy: str) -> Iterator[None]:
    """Inside, running out of memory and files that cannot be written or read raise UserError.

    remedy: for too little memory, such as "lower --batch-size".
    A thread that meets a full disk ends without a traceback: the next write through it raises the error
    in its caller. (TensorBoard's writer is such a thread.)
    """
    usual = threading.excepthook

    def all_but_disk_errors(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, OSError):
            usual(args)

    threading.excepthook = all_but_disk_errors
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        sentence = _of_memory(error, remedy) or _of_disk(error)
        if sentence is None:
            raise
        raise UserError(sentence) from None
    finally:
        threading.excepthook = usual


def of_the_machine(error: Exception) -> bool:
    """Did memory or disk fail? Then the error says nothing about the file that was read."""
    disk = isinstance(error, OSError) and error.errno in (*NOT_ALLOWED, errno.EIO)
    return disk or out_of_memory(error)


def out_of_memory(error: Exception) -> bool:
    """Did memory run out, of the CPU or of a device?"""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch.OutOfMemoryError is a RuntimeError whose text says so; torch is not imported for it here.
    says_so = isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None
    return says_so or isinstance(error, MemoryError)


def _of_memory(error: Exception, remedy: str) -> str | None:
    if not out_of_memory(error):
        return None
    text = str(error)
    device = next((name for name in ("CUDA", "MPS") if name in text), "")
    asked = ASKED_FOR.search(text)
    return (
        f"out of memory{f' on the {device} device' if device else ''}"
        + (f": could not allocate another {asked[1]}" if asked else "")
        + f"; {remedy}, or end other programs that use it"
    )


def _of_disk(error: Exception) -> str | None:
    if not isinstance(error, OSError) or error.errno is None:
        return None
    # A full disk names no file. Other errors that name none are not about files.
    if error.filename is None and error.errno not in (*FULL, errno.EIO):
        return None
    if error.errno in FULL:
        remedy = "make room"
    elif error.errno in NOT_ALLOWED:
        remedy = "make it readable and writable"
    else:
        remedy = "see whether the disk is still there"
    return (
        f"{error.filename or 'a file of the run'}: cannot be written or read ({error.strerror}); "
        f"earlier files are whole. {remedy.capitalize()} and start the same command again"
    )
