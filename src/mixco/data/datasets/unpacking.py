"""Unpacks an archive: into its own folder alone, and wholly or not at all."""

import errno
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mixco.runtime.errors import UserError

OF_THE_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
)


class Member(NamedTuple):
    """A file or folder in an archive."""

    name: str
    size: int
    """Bytes when unpacked."""
    refused: str
    """Why it is not unpacked, in words; empty for plain files and folders."""
    extract: Callable[[Path], object]
    """Unpacks it below a folder: its content, but neither owner, mode nor time."""


def unpack(
    path: Path,
    folder: str,
    *,
    most_bytes: int,
    most_members: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Unpack a tar (compressed or not) or zip file into `folder` beside it; returns that folder.

    All members must be plain files and folders below `folder`, each file once, and together within the
    two limits. They are unpacked into a hidden folder, which is renamed at the end.

    on_progress(bytes so far, most_bytes) is called after each file.

    Raises UserError for anything else in the archive, for a damaged one and for a full disk.
    """
    hidden = Path(tempfile.mkdtemp(prefix=f".{folder}-", dir=path.parent))
    try:
        done = 0
        with _members(path) as members:
            for number, member in enumerate(members, 1):
                done += member.size
                if number > most_members or done > most_bytes:
                    raise UserError(
                        f"{path}: unpacks to more than the {most_members:,} files or "
                        f"{most_bytes:,} bytes that it should; remove it and download it again"
                    )
                if refused := member.refused or _misplaced(member.name, folder):
                    raise UserError(
                        f"{path}: {member.name[:80]!r} in it is {refused}; not unpacked: download it "
                        "again"
                    )
                if (hidden / member.name).is_file():
                    raise UserError(f"{path}: has {member.name} twice; download it again")
                member.extract(hidden)
                if on_progress:
                    on_progress(done, most_bytes)
        if not (hidden / folder).is_dir():
            raise UserError(f"{path}: no {folder} in it; remove it and download it again")
        target = path.parent / folder
        (hidden / folder).rename(target)
        return target
    except UserError:
        raise
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
def _members(path: Path) -> Iterator[Iterator[Member]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield map(partial(_of_zip, archive), archive.infolist())
    else:
        with tarfile.open(path) as tar:
            # Python 3.11.0 to 3.11.3 have none; names and kinds are checked in any case.
            tar.extraction_filter = getattr(tarfile, "data_filter", None)
            yield map(partial(_of_tar, tar), tar)


def _of_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the packer was not a Unix
    plain = kind in (0, stat.S_IFREG, stat.S_IFDIR) and not info.flag_bits & 1
    refused = "" if plain else "a link, a device or encrypted"
    return Member(info.filename, info.file_size, refused, partial(archive.extract, info))


def _of_tar(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    refused = "" if info.isreg() or info.isdir() else "a link or a device"
    return Member(info.name, info.size, refused, partial(tar.extract, info, set_attrs=False))


def _misplaced(name: str, folder: str) -> str:
    """Where a name leads, in words, if not below the folder."""
    below = PurePosixPath(name)
    if below.is_absolute() or ".." in below.parts or "\\" in name or "\0" in name:
        return "outside of its folder"
    return "" if below.parts[:1] == (folder,) else f"outside of {folder}"


def _damaged(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(f"{path}: damaged ({reason}); remove it and download it again")
