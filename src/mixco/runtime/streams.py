"""The standard streams as they are found: closed, full, without their terminal, or with few characters.

A message on stderr never ends the work: if it cannot be written, it is lost. The output on stdout is
what the user asked for: a command that cannot write it ends with an error message.
"""

import errno
import logging
import os
import signal
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, TextIO

from mixco.runtime.errors import UserError
from mixco.runtime.files import shown

ASCII = {"±": "+-", "…": "..."}  # our own characters, where they cannot be shown


class Unread(Exception):
    """Nobody reads what is answered, as of `mixco ... | head`."""


class Messages:
    """A text stream that never fails. What its stream cannot encode is escaped.

    stream: returns the stream of the moment, None where there is none.
    """

    def __init__(self, stream: Callable[[], TextIO | None]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        stream = self._stream()
        if stream is not None:
            try:
                stream.write(_encodable(text, self.encoding))
                if "\n" in text:
                    stream.flush()
            except (OSError, ValueError) as error:  # ValueError: it has been closed
                self._failed(error, stream)
        return len(text)

    def flush(self) -> None:
        stream = self._stream()
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError) as error:
                self._failed(error, stream)

    def isatty(self) -> bool:
        try:
            return bool(self.__getattr__("isatty")())
        except (AttributeError, OSError, ValueError):
            return False

    @property
    def encoding(self) -> str:
        return getattr(self._stream(), "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream(), name)

    def _failed(self, error: OSError | ValueError, stream: TextIO) -> None:
        if isinstance(error, OSError) and error.errno in (errno.EIO, errno.EPIPE):
            _silence(stream)


class Answers(Messages):
    """As Messages, but nothing that is asked for is lost without a word.

    Raises Unread when nobody reads on, and UserError when the rest cannot be written. A terminal that
    is gone takes the reader with it.
    """

    def _failed(self, error: OSError | ValueError, stream: TextIO) -> None:
        super()._failed(error, stream)
        if isinstance(error, BrokenPipeError):
            raise Unread from None
        if isinstance(error, OSError) and error.errno != errno.EIO:
            _silence(stream, even_files=True)
            raise UserError(
                f"what the command prints cannot be written ({error.strerror}); its files are whole. "
                "Make room, or send it elsewhere"
            ) from None


def answer(text: str) -> None:
    """Print on stdout what a command was asked for."""
    print(shown_lines(text))


def shown_lines(text: str) -> str:
    """Lines for people; what is unprintable in them is escaped."""
    return "\n".join(map(shown, text.split("\n")))


@contextmanager
def usable_streams() -> Iterator[None]:
    """Inside, everything may print and say, whatever the process was given as its streams.

    A terminal that stops what writes to it from the background (stty tostop) does not stop this process.
    """
    _open_closed()
    before = sys.stdout, sys.stderr
    answers, messages = Answers(lambda: before[0]), Messages(lambda: before[1])
    sys.stdout, sys.stderr = _as_stream(answers), _as_stream(messages)
    try:
        with _written_from_the_background():
            yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            # What stays in a buffer would fail again when Python ends, with exit code 120.
            try:
                stream.flush()
            except OSError:
                _silence(stream, even_files=True)
            except ValueError:
                pass


@contextmanager
def silent(library: str) -> Iterator[None]:
    """Keep a library's warnings from the screen, for where their cause is told in our own words."""
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def stderr_of_the_moment() -> IO[str]:
    """sys.stderr, whichever it is at each write, as a stream that never fails."""
    # A live display of rich puts a proxy in its place, which would print above the display.
    return _as_stream(Messages(lambda: getattr(sys.stderr, "rich_proxied_file", sys.stderr)))


def _as_stream(stream: Any) -> TextIO:
    found: TextIO = stream
    return found


def _encodable(text: str, encoding: str) -> str:
    if _fits(text, encoding):
        return text
    return "".join(c if _fits(c, encoding) else ASCII.get(c, ascii(c)[1:-1]) for c in text)


def _fits(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _open_closed() -> None:
    """Open what the process was started without, as by `2>&-`, cron or pythonw, on nothing.

    Else the next file would get the number of the closed one, and whatever is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _silence(stream: TextIO, *, even_files: bool = False) -> None:
    """Send a stream nowhere, with what is left in its buffer. A file may take text again and stays."""
    with suppress(OSError, ValueError, AttributeError):
        number = stream.fileno()
        if even_files or not stat.S_ISREG(os.fstat(number).st_mode):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
            stream.flush()


@contextmanager
def _written_from_the_background() -> Iterator[None]:
    if not hasattr(signal, "SIGTTOU") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTTOU, before or signal.SIG_DFL)
