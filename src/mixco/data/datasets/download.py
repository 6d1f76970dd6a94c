"""Downloading a data set: from one of its mirrors, gone on with after a break, checked, unpacked.

What is half done lies under other names (.part, or a hidden folder), so whatever happens, what has a
data set's name is whole.
"""

import contextlib
import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mixco.data.datasets import DATASETS, list_images, suggestion
from mixco.data.datasets.archives import Archive
from mixco.data.datasets.unpacking import unpack
from mixco.runtime.errors import UserError
from mixco.runtime.files import one_at_a_time

SECONDS_WITHOUT_A_BYTE = 30
# A connection that broke is made again as long as bytes come, but not for ever.
TRIES_A_MIRROR = 50
BLOCK = 1 << 18


class MirrorFailed(Exception):
    """This mirror does not give the file; the message says why."""


def download(
    name: str,
    data_path: Path | None,
    *,
    tell: Callable[[str], None],
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """See to it that a data set is in `data_path`: nothing happens when it is there, and whole.

    tell: gets a sentence for the person at each turn, among them where the files came from and under
        which terms. on_progress(bytes, of bytes) is called while it is downloaded, and unpacked.

    Raises UserError when no mirror gives the published file (with all reasons, and what can be done by
    hand), when the disk is full, and when what is there already is not whole: that is not touched.
    """
    dataset = DATASETS.get(name)
    if dataset is None:
        raise UserError(f"{name}: only named data sets can be downloaded; {suggestion(name)}")
    if not dataset.needs_path:
        tell(f"{name} comes with mixco, nothing is downloaded ({dataset.terms})")
        return
    if data_path is None:
        raise UserError(f"downloading {name} needs --data-path, the folder that it is to lie in")
    root = data_path.expanduser()
    wanting = _what_is_wanting(name, root)
    if wanting is None:
        tell(f"{name} is in {root} already, and whole")
        return
    archive = dataset.archive
    if archive is None:
        raise UserError(wanting)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--data-path {root}: cannot be made ({error.strerror})") from None
    with _alone(root):
        wanting = _what_is_wanting(name, root)
        if wanting is None:
            tell(f"{name} is in {root}; another process has downloaded it")
            return
        if (root / archive.folder).exists():
            raise UserError(
                f"{root / archive.folder} is there, but not whole: {wanting}. It is left as it is; "
                "rename or remove it, and download again"
            )
        was_there = (root / archive.file).exists()
        path = fetch(archive, root, tell=tell, on_progress=on_progress)
        tell(f"unpacking {path}")
        folder = unpack(
            path,
            archive.folder,
            most_bytes=archive.most_bytes,
            most_members=archive.most_members,
            on_progress=on_progress,
        )
        wanting = _what_is_wanting(name, root)
        if wanting is not None:
            raise UserError(f"{folder} was unpacked, but: {wanting}")
        if not was_there:  # else somebody put it there, or an unpacking failed: theirs to remove
            path.unlink()
    tell(f"{name} is in {folder}. Terms: {dataset.terms}")


def fetch(
    archive: Archive,
    root: Path,
    *,
    tell: Callable[[str], None],
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The published file in `root`: one that lies there, or from the first mirror that gives it.

    Raises UserError.
    """
    path = root / archive.file
    part = path.with_name(f"{path.name}.part")
    if path.exists():
        if not _is_published(path, archive):
            raise UserError(
                f"{path}: not the published file ({archive.bytes:,} bytes with SHA-256 "
                f"{archive.sha256}); rename or remove it, and download again"
            )
        tell(f"{path} lies there already, and its checksum is right")
        _see_to_room(root, archive.most_bytes)
        return path
    _see_to_room(root, archive.bytes - _size(part) + archive.most_bytes)
    reasons = []
    for url in archive.mirrors:
        tell(f"downloading {archive.file} ({archive.bytes / 2**20:,.1f} MiB) from {url}")
        try:
            _from_mirror(url, part, archive, tell, on_progress)
        except MirrorFailed as failed:
            reasons.append(f"{url}: {failed}")
            tell(reasons[-1])
            continue
        part.replace(path)
        tell(f"{archive.file} came from {url}; its checksum is right")
        return path
    kept = f" (the {_size(part):,} bytes that came are kept)" if _size(part) else ""
    raise UserError(
        f"{archive.file}: no mirror gave the published file. {'; '.join(reasons)}. Try again "
        f"later{kept}, or get the file in another way, SHA-256 {archive.sha256}, put it into {root} "
        "and run this again: it will be checked and unpacked"
    )


def _from_mirror(
    url: str,
    part: Path,
    archive: Archive,
    tell: Callable[[str], None],
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Bring `part` to its end, whatever of it is there, and check it. Raises MirrorFailed."""
    of_before = _size(part)
    for _ in range(TRIES_A_MIRROR):
        before = _size(part)
        if before >= archive.bytes:
            break
        try:
            _receive(url, part, archive, on_progress)
            reason = "the connection ended early"
        except (OSError, http.client.HTTPException) as error:
            reason = _in_words(error)
        if _size(part) <= before:
            raise MirrorFailed(reason)
        if _size(part) < archive.bytes:
            tell(f"broke off after {_size(part):,} bytes ({reason}); going on from there")
    if _size(part) < archive.bytes:
        raise MirrorFailed(f"broke off {TRIES_A_MIRROR} times")
    if _is_published(part, archive):
        return
    part.unlink()
    if of_before:  # the wrong bytes may have been those, of another mirror
        _from_mirror(url, part, archive, tell, on_progress)
        return
    raise MirrorFailed("what it gives is not the published file: the checksum differs")


def _receive(
    url: str, part: Path, archive: Archive, on_progress: Callable[[int, int], None] | None
) -> None:
    """Append to `part` what one connection brings, or write it anew where the server cannot go on.

    Raises OSError and HTTPException of the network alone; MirrorFailed; UserError of the disk.
    """
    done = _size(part)
    headers = {"User-Agent": "mixco"} | ({"Range": f"bytes={done}-"} if done else {})
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=SECONDS_WITHOUT_A_BYTE) as response:
        range_sent = response.headers["Content-Range"] or ""
        if response.status != 206 or not range_sent.startswith(f"bytes {done}-"):
            done = 0
        # A page of excuses or another version is told before a byte of what is there is given up.
        if response.length is not None and done + response.length != archive.bytes:
            raise MirrorFailed(
                f"it offers {done + response.length:,} bytes instead of {archive.bytes:,}"
            )
        with _writing(part, anew=done == 0) as write:
            while done < archive.bytes:
                block = response.read(min(BLOCK, archive.bytes - done))
                if not block:
                    return
                write(block)
                done += len(block)
                if on_progress:
                    on_progress(done, archive.bytes)


@contextmanager
def _writing(part: Path, *, anew: bool) -> Iterator[Callable[[bytes], None]]:
    """Yields write(bytes). The disk's errors come out as UserError, to be told from the network's."""

    def cannot(error: OSError) -> UserError:
        return UserError(
            f"{part}: cannot be written ({error.strerror}); free the disk or give another --data-path. "
            "What came so far is kept, and the next call goes on from there"
        )

    try:
        # Unbuffered, so that a full disk shows in write() and not, once more, when the file closes.
        file = part.open("wb" if anew else "ab", buffering=0)
    except OSError as error:
        raise cannot(error) from None

    def write(block: bytes) -> None:
        view = memoryview(block)
        try:
            while view:
                view = view[file.write(view) :]
        except OSError as error:
            raise cannot(error) from None

    with file:
        yield write


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One process at a time downloads into a folder; a second one waits, and finds it done."""
    try:
        import fcntl
    except ImportError:  # Windows locks no folders
        with one_at_a_time(root / ".mixco-download.lock"):
            yield
        return
    descriptor = os.open(root, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _what_is_wanting(name: str, root: Path) -> str | None:
    """None when all splits of a set can be listed, else why not."""
    try:
        for split in ("train", "test", "pretrain"):
            list_images(name, root, split)
    except UserError as error:
        return str(error)
    return None


def _see_to_room(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if needed > free:
        raise UserError(
            f"{root}: {needed / 2**30:.1f} GiB are needed to download and unpack, but "
            f"{free / 2**30:.1f} GiB are free; free the disk or give another --data-path"
        )


def _is_published(path: Path, archive: Archive) -> bool:
    if _size(path) != archive.bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == archive.sha256


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _in_words(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        return _in_words(error.reason)
    if isinstance(error, TimeoutError):
        return f"no answer for {SECONDS_WITHOUT_A_BYTE} s"
    return str(error) or type(error).__name__
