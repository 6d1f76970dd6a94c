"""Unpacking an archive so that nothing in it can reach beyond its folder, and wholly or not at all."""

import errno
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from mixco.runtime.errors import UserError

OF_THE_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
)

# A member: its name, its size when unpacked, and its content; None for a folder.
Member = tuple[str, int, Callable[[], IO[bytes] | None] | None]


def unpack(
    path: Path,
    folder: str,
    *,
    most_bytes: int,
    most_members: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Unpack a tar (compressed or not) or zip file into `folder` beside it; returns that folder.

    All members must be files and folders below `folder`, each once, and not above the two limits; of
    what the archive says of them only names and contents are heeded, so no mode, owner, time, link or
    device comes out of it. It happens in a hidden folder that gets its name at the end.

    on_progress(bytes so far, most_bytes) is called after each file.

    Raises UserError for anything else in the archive, for a damaged one and for a full disk.
    """
    hidden = Path(tempfile.mkdtemp(prefix=f".{folder}-", dir=path.parent))
    try:
        done, members = 0, 0
        with _opened(path) as content:
            for name, size, read in content:
                members += 1
                done += size
                if members > most_members or done > most_bytes:
                    raise UserError(
                        f"{path}: unpacks to more than the {most_members:,} files or "
                        f"{most_bytes:,} bytes that it should; remove it and download it again"
                    )
                _write(hidden / _safe(name, folder, path), read)
                if on_progress:
                    on_progress(done, most_bytes)
        if not (hidden / folder).is_dir():
            raise UserError(f"{path}: no {folder} in it; remove it and download it again")
        target = path.parent / folder
        (hidden / folder).rename(target)
        return target
    except UserError:
        raise
    except FileExistsError as error:
        raise UserError(f"{path}: has a file twice ({error.filename}); download it again") from None
    except OSError as error:
        if error.errno not in OF_THE_DISK:  # gzip's own, or a name that no file can have
            raise _damaged(path, error) from None
        raise UserError(
            f"{path}: cannot be unpacked ({error.strerror}); free the disk or give another "
            "--data-path; the archive is kept"
        ) from None
    except Exception as error:  # the archives' readers raise many kinds on damaged files
        raise _damaged(path, error) from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[Member]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield _zip_members(path, archive)
    else:
        with tarfile.open(path) as tar:
            yield _tar_members(path, tar)


def _zip_members(path: Path, archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the packer was not a Unix
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or info.flag_bits & 1:
            raise _refused(path, info.filename, "a link, a device or encrypted")
        if info.is_dir():
            yield info.filename, 0, None
        else:
            yield info.filename, info.file_size, lambda info=info: archive.open(info)  # type: ignore[misc]


def _tar_members(path: Path, tar: tarfile.TarFile) -> Iterator[Member]:
    for member in tar:
        if not (member.isreg() or member.isdir()):
            raise _refused(path, member.name, "a link or a device")
        if member.isdir():
            yield member.name, 0, None
        else:
            yield member.name, member.size, lambda member=member: tar.extractfile(member)  # type: ignore[misc]


def _safe(name: str, folder: str, path: Path) -> PurePosixPath:
    below = PurePosixPath(name)
    if below.is_absolute() or ".." in below.parts or "\\" in name or "\0" in name:
        raise _refused(path, name, "outside of its folder")
    if below.parts[:1] != (folder,):
        raise _refused(path, name, f"outside of {folder}")
    return below


def _write(target: Path, read: Callable[[], IO[bytes] | None] | None) -> None:
    if read is None:
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source = read()
    assert source is not None  # only links have none, and they were refused
    with source, target.open("xb") as file:
        shutil.copyfileobj(source, file, 1 << 20)


def _refused(path: Path, name: str, what: str) -> UserError:
    return UserError(f"{path}: {name[:80]!r} in it is {what}; not unpacked: download it again")


def _damaged(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(f"{path}: damaged ({reason}); remove it and download it again")
