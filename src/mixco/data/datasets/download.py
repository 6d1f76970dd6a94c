"""Downloads a data set from one of its mirrors, resumes after a break, checks and unpacks it.

Unfinished files have other names (.part, or a hidden folder), so whatever has a data set's name is
complete.
"""

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mixco.data.datasets import DATASETS, is_hub, list_images, suggestion
from mixco.data.datasets.archives import Archive
from mixco.data.datasets.hub import parquet_files
from mixco.data.datasets.unpacking import unpack
from mixco.runtime.errors import UserError
from mixco.runtime.locks import one_at_a_time

SECONDS_WITHOUT_A_BYTE = 30
# A broken connection is made again as long as it brings bytes, but not for ever.
TRIES_A_MIRROR = 50
BLOCK = 1 << 18


class MirrorFailed(Exception):
    """A mirror does not give the file; the message says why."""


def download(
    name: str,
    data_path: Path | None,
    *,
    tell: Callable[[str], None],
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Download a data set to `data_path`, unless it is there already, and complete.

    One of the hub ("hf:OWNER/NAME") goes into the cache of the hub's client, which shows the progress.

    tell: called with a sentence about each step, and about the source and terms of the files.
    on_progress(bytes, of bytes) is called while downloading and unpacking.

    Raises UserError when no mirror gives the published file (with all reasons, and how to get it by
    hand), when the disk is full, and when an incomplete copy is there already, which is left alone.
    """
    if is_hub(name):
        _from_hub(name, data_path, tell)
        return
    dataset = DATASETS.get(name)
    if dataset is None:
        raise UserError(f"{name}: only named data sets can be downloaded; {suggestion(name)}")
    if not dataset.needs_path:
        tell(f"{name} comes with mixco, nothing is downloaded ({dataset.terms})")
        return
    if data_path is None:
        raise UserError(f"downloading {name} needs --data-path, the folder that it is to lie in")
    root = data_path
    missing = _what_is_missing(name, root)
    if missing is None:
        tell(f"{name} is in {root} already, and complete")
        return
    archive = dataset.archive
    if archive is None:
        raise UserError(missing)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--data-path {root}: cannot be made ({error.strerror})") from None
    # One process at a time; others wait, and find it done. A lock file would stay among the data; only
    # Windows needs one, which locks no folders.
    with one_at_a_time(root / ".mixco-download.lock" if os.name == "nt" else root):
        missing = _what_is_missing(name, root)
        if missing is None:
            tell(f"{name} is in {root}; another process has downloaded it")
            return
        if (root / archive.folder).exists():
            raise UserError(
                f"{root / archive.folder} is there, but incomplete: {missing}. It is left as it is; "
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
        missing = _what_is_missing(name, root)
        if missing is not None:
            raise UserError(f"{folder} was unpacked, but: {missing}")
        if not was_there:  # an archive that was there before is the user's
            path.unlink()
    tell(f"{name} is in {folder}. Terms: {dataset.terms}")


def _from_hub(name: str, data_path: Path | None, tell: Callable[[str], None]) -> None:
    if data_path is not None:
        raise UserError(
            f"--data-path {data_path}: {name} goes into the cache of the hub's client; leave it out. "
            "HF_HOME names the folder for that cache"
        )
    found = parquet_files(name, tell=tell)
    files = Counter(file.split for file in found.files)
    tell(
        f"{name} is in {found.folder} ("
        + ", ".join(f"{split}: {count}" for split, count in files.items())
        + f" Parquet files), configuration {found.config}, commit {found.commit}. "
        f"Licence: {found.licence}; terms: {found.address}"
    )


def fetch(
    archive: Archive,
    root: Path,
    *,
    tell: Callable[[str], None],
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The published file in `root`: there already, or from the first mirror that gives it.

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
        tell(f"{path} is there already, and its checksum is right")
        _refuse_without_room(root, archive.most_bytes)
        return path
    _refuse_without_room(root, archive.bytes - _size(part) + archive.most_bytes)
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
    kept = f" ({_size(part):,} bytes received are kept)" if _size(part) else ""
    raise UserError(
        f"{archive.file}: no mirror gave the published file. {'; '.join(reasons)}. Try again "
        f"later{kept}, or put the file, with SHA-256 {archive.sha256}, into {root} yourself and run "
        "this again: it will be checked and unpacked"
    )


def _from_mirror(
    url: str,
    part: Path,
    archive: Archive,
    tell: Callable[[str], None],
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Complete `part`, whatever it has already, and check it. Raises MirrorFailed."""
    resumed = _size(part)
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
            tell(f"broke off after {_size(part):,} bytes ({reason}); resuming")
    if _size(part) < archive.bytes:
        raise MirrorFailed(f"broke off {TRIES_A_MIRROR} times")
    if _is_published(part, archive):
        return
    part.unlink()
    if resumed:  # the wrong bytes may be from another mirror
        _from_mirror(url, part, archive, tell, on_progress)
        return
    raise MirrorFailed("it gives another file than the published one: the checksum differs")


def _receive(
    url: str, part: Path, archive: Archive, on_progress: Callable[[int, int], None] | None
) -> None:
    """Append the bytes of one connection to `part`, or start anew if the server cannot resume.

    Raises OSError and HTTPException for the network, UserError for the disk, and MirrorFailed.
    """
    done = _size(part)
    headers = {"User-Agent": "mixco"} | ({"Range": f"bytes={done}-"} if done else {})
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=SECONDS_WITHOUT_A_BYTE) as response:
        range_sent = response.headers["Content-Range"] or ""
        if response.status != 206 or not range_sent.startswith(f"bytes {done}-"):
            done = 0
        # An error page or another version is noticed before the bytes so far are overwritten.
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
    """Yields write(bytes). Errors of the disk become UserError, unlike those of the network."""

    def cannot(error: OSError) -> UserError:
        return UserError(
            f"{part}: cannot be written ({error.strerror}); free the disk or give another --data-path. "
            "What was received is kept, and the next call resumes"
        )

    try:
        # Unbuffered, so that a full disk raises in write() and not again on closing.
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


def _what_is_missing(name: str, root: Path) -> str | None:
    """Why a split of the set cannot be listed; None if all can."""
    try:
        for split in ("train", "test", "pretrain"):
            list_images(name, root, split)
    except UserError as error:
        return str(error)
    return None


def _refuse_without_room(root: Path, needed: int) -> None:
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
