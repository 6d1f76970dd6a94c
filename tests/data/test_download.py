"""Downloads from a real server on this machine: breaks, lies, hostile archives, a full disk."""

import dataclasses
import hashlib
import io
import os
import re
import resource
import shutil
import socket
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from public_layouts import (
    CIFARS,
    small,
    use,
    write_cifar_python,
    write_stl10,
    write_tiny_imagenet,
)

import mixco.cli
import mixco.data.datasets.download
from mixco.data.datasets import DATASETS, list_images
from mixco.data.datasets.archives import Archive
from mixco.data.datasets.download import download, fetch
from mixco.data.datasets.unpacking import unpack
from mixco.encoders.checkpoint import EncoderDescription, save_encoder
from mixco.models.encoder import build_backbone
from mixco.runtime.errors import UserError

ARCHIVES = {name: each.archive for name, each in DATASETS.items() if each.archive}


@dataclass
class File:
    """What the server has under a path, and how it misbehaves."""

    content: bytes
    ranges: bool = True
    length: bool = True
    """Tell the Content-Length."""
    breaks: list[int] = field(default_factory=list)
    """After so many bytes the connection ends, one number a request; then all is sent."""
    status: int | None = None
    hangs: bool = False
    slow: threading.Event | None = None
    """Wait for it before the second half."""


@dataclass
class Server:
    """An HTTP server on the loopback interface, and what it was asked."""

    url: str
    files: dict[str, File] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Range header) of each request."""
    sent: int = 0
    """Bytes of content."""
    stopping: threading.Event = field(default_factory=threading.Event)

    def put(self, path: str, file: File) -> str:
        self.files[path] = file
        return f"{self.url}/{path}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.removeprefix("/")
            wanted = self.headers["Range"]
            state.asked.append((path, wanted))
            file = state.files.get(path, File(b"", status=404))
            if file.hangs:
                state.stopping.wait(20)
                return
            if file.status is not None:
                self.send_error(file.status)
                return
            start = 0
            if wanted and file.ranges:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                self.send_response(206)
                end = len(file.content)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
            else:
                self.send_response(200)
            body = file.content[start:]
            if file.length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if file.breaks:
                body = body[: file.breaks.pop(0)]
            half = len(body) // 2
            self.wfile.write(body[:half])
            if file.slow:
                file.slow.wait(20)
            self.wfile.write(body[half:])
            state.sent += len(body)

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a client that has seen enough goes away

    http = Quiet(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{http.server_address[1]}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    state.stopping.set()
    http.shutdown()
    thread.join()
    http.server_close()


def dead() -> str:
    """The address of a server that is not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/file"


def packed_tar(folder: Path) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        tar.add(folder, folder.name)
    return data.getvalue()


def packed_zip(folder: Path) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted([folder, *folder.rglob("*")]):
            archive.write(path, path.relative_to(folder.parent).as_posix())
    return data.getvalue()


def publish(
    monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, *mirrors: str, **others: int
) -> Archive:
    """Let the table say that this content is what the mirrors have."""
    archive = dataclasses.replace(
        ARCHIVES[name],
        mirrors=mirrors,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        **others,
    )
    monkeypatch.setitem(DATASETS, name, DATASETS[name]._replace(archive=archive))
    return archive


@pytest.fixture
def cifar(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small cifar-10-python.tar.gz; `--data cifar10` means this one."""
    folder = tmp_path_factory.mktemp("made")
    use(monkeypatch, write_cifar_python(folder, small(CIFARS["cifar10"], 20)))
    return packed_tar(folder / "cifar-10-batches-py")


@pytest.fixture
def told() -> list[str]:
    return []


def listing(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and its content."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write_each(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if name in CIFARS:
        cifar = write_cifar_python(root, small(CIFARS[name], 20 if name == "cifar10" else 100))
        use(monkeypatch, cifar)
        return root / cifar.python
    return write_stl10(root, monkeypatch) if name == "stl10" else write_tiny_imagenet(root)


@pytest.mark.parametrize("name", ARCHIVES)
def test_each_set_is_there_whole_and_a_second_call_does_nothing(
    name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    made = write_each(name, tmp_path / "made", monkeypatch)
    file = ARCHIVES[name].file
    content = packed_zip(made) if file.endswith(".zip") else packed_tar(made)
    url = server.put(file, File(content))
    archive = publish(monkeypatch, name, content, url)
    root = tmp_path / "data" / "deeper"
    seen: list[tuple[int, int]] = []
    download(name, root, tell=told.append, on_progress=lambda *pair: seen.append(pair))
    assert below(root / archive.folder) == below(made)
    assert [path.name for path in root.iterdir()] == [archive.folder], "nothing else is left"
    assert list_images(name, root, "test").labels is not None
    assert (len(content), len(content)) in seen
    text = "\n".join(told)
    assert f"{file} came from {url}; its checksum is right" in text
    assert f"Terms: {DATASETS[name].terms}" in text

    asked = len(server.asked)
    download(name, root, tell=told.append)
    assert told[-1].startswith(f"{name} is in {root} already")
    assert len(server.asked) == asked


def test_a_broken_connection_is_gone_on_with(
    server: Server, cifar: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    url = server.put("file", File(cifar, breaks=[50_000, 20_000]))
    publish(monkeypatch, "cifar10", cifar, url)
    download("cifar10", tmp_path, tell=told.append)
    assert [wanted for _, wanted in server.asked] == [None, "bytes=50000-", "bytes=70000-"]
    assert server.sent == len(cifar), "no byte was sent twice"
    assert any("broke off after 50,000 bytes" in line for line in told)


def test_a_later_call_goes_on_where_an_earlier_one_ended(
    server: Server, cifar: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    file = File(cifar, breaks=[50_000, 0])
    publish(monkeypatch, "cifar10", cifar, server.put("file", file))
    with pytest.raises(UserError, match=r"50,000 bytes .* kept"):
        download("cifar10", tmp_path, tell=told.append)
    assert listing(tmp_path) == ["cifar-10-python.tar.gz.part"]
    download("cifar10", tmp_path, tell=told.append)
    assert server.asked[-1] == ("file", "bytes=50000-")
    assert server.sent == len(cifar)
    assert listing(tmp_path)[0] == "cifar-10-batches-py"


def test_the_next_mirror_goes_on_where_one_ended(
    server: Server, cifar: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    first = server.put("first", File(cifar, breaks=[50_000, 0]))
    publish(monkeypatch, "cifar10", cifar, first, server.put("second", File(cifar)))
    download("cifar10", tmp_path, tell=told.append)
    assert server.asked[-1] == ("second", "bytes=50000-")


def test_a_server_without_ranges_starts_again(
    server: Server, cifar: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    url = server.put("file", File(cifar, ranges=False, breaks=[50_000]))
    publish(monkeypatch, "cifar10", cifar, url)
    download("cifar10", tmp_path, tell=told.append)
    assert [wanted for _, wanted in server.asked] == [None, "bytes=50000-"]
    assert server.sent == 50_000 + len(cifar)


def test_a_server_that_tells_no_length(
    server: Server, cifar: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    url = server.put("file", File(cifar, length=False, breaks=[50_000]))
    publish(monkeypatch, "cifar10", cifar, url)
    download("cifar10", tmp_path, tell=told.append)
    assert server.sent == len(cifar)


def test_a_dead_mirror_is_reported_and_the_second_one_serves(
    server: Server, cifar: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    first = dead()
    publish(monkeypatch, "cifar10", cifar, first, server.put("file", File(cifar)))
    download("cifar10", tmp_path, tell=told.append)
    assert any(line.startswith(f"{first}: ") and "refused" in line for line in told)
    assert list_images("cifar10", tmp_path, "train").labels is not None


def changed(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_another_file_is_refused_and_the_next_mirror_tried(
    server: Server, cifar: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    wrong = server.put("wrong", File(changed(cifar)))
    publish(monkeypatch, "cifar10", cifar, wrong, server.put("right", File(cifar)))
    download("cifar10", tmp_path, tell=told.append)
    assert any(wrong in line and "checksum differs" in line for line in told)
    assert server.asked[-1] == ("right", None), "begun anew, not on the wrong bytes"


def test_where_all_mirrors_have_another_file_nothing_is_left(
    server: Server, cifar: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    urls = [server.put(f"wrong{i}", File(changed(cifar))) for i in range(2)]
    archive = publish(monkeypatch, "cifar10", cifar, *urls)
    with pytest.raises(UserError) as error:
        download("cifar10", tmp_path, tell=told.append)
    for part in (*urls, "the checksum differs", archive.sha256, f"into {tmp_path}"):
        assert part in str(error.value)
    assert listing(tmp_path) == []


def test_wrong_bytes_of_an_earlier_mirror_do_not_spoil_a_good_one(
    server: Server, cifar: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    (tmp_path / "cifar-10-python.tar.gz.part").write_bytes(b"x" * 50_000)
    publish(monkeypatch, "cifar10", cifar, server.put("file", File(cifar)))
    download("cifar10", tmp_path, tell=told.append)
    assert [wanted for _, wanted in server.asked] == ["bytes=50000-", None]


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (File(b"", status=404), "HTTP 404 Not Found"),
        (File(b"", status=503), "HTTP 503 Service Unavailable"),
        (File(b"<html>Sign in to the hotel's network</html>"), "it offers 43 bytes instead of"),
        (File(b"<html>", length=False), "no end"),
        (File(b"", hangs=True), "no answer for 0.3 s"),
    ],
)
def test_every_reason_is_in_the_final_error(
    server: Server,
    cifar: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: list[str],
    file: File,
    reason: str,
) -> None:
    monkeypatch.setattr(mixco.data.datasets.download, "SECONDS_WITHOUT_A_BYTE", 0.3)
    url, other = server.put("file", file), dead()
    publish(monkeypatch, "cifar10", cifar, url, other)
    with pytest.raises(UserError, match="no mirror gave the published file") as error:
        download("cifar10", tmp_path, tell=told.append)
    if reason == "no end":
        # What came is not known to be wrong before it is whole, so it is kept, and told.
        assert "6 bytes received are kept" in str(error.value)
    else:
        assert f"{url}: {reason}" in str(error.value)
        assert listing(tmp_path) == []
    assert f"{other}: " in str(error.value)


def test_more_bytes_than_published_are_not_stored(
    server: Server, cifar: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    url = server.put("file", File(cifar[:-1] + b"x" * 1_000_000, length=False))
    publish(monkeypatch, "cifar10", cifar, url)
    seen: list[int] = []
    with pytest.raises(UserError, match="the checksum differs"):
        download("cifar10", tmp_path, tell=told.append, on_progress=lambda n, _: seen.append(n))
    assert max(seen) == len(cifar)
    assert listing(tmp_path) == []


def test_an_archive_put_there_by_hand_is_checked_and_unpacked(
    server: Server, cifar: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    publish(monkeypatch, "cifar10", cifar, server.put("file", File(cifar)))
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(changed(cifar))
    with pytest.raises(UserError, match=r"tar\.gz: not the published file .* rename or remove it"):
        download("cifar10", tmp_path, tell=told.append)
    assert archive.read_bytes() == changed(cifar), "it is not ours to remove"
    archive.write_bytes(cifar)
    download("cifar10", tmp_path, tell=told.append)
    assert server.asked == []
    assert archive.exists()
    assert list_images("cifar10", tmp_path, "test").labels is not None


def test_what_is_there_but_not_whole_is_not_touched(
    server: Server, cifar: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    publish(monkeypatch, "cifar10", cifar, server.put("file", File(cifar)))
    download("cifar10", tmp_path, tell=told.append)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    before = below(tmp_path)
    with pytest.raises(UserError, match=r"data_batch_3.* rename or remove it"):
        download("cifar10", tmp_path, tell=told.append)
    assert below(tmp_path) == before
    assert len(server.asked) == 1


def test_two_at_once_download_once(
    server: Server, cifar: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    """Two threads here: the lock is the open folder's, so it is the same between processes."""
    go_on = threading.Event()
    publish(monkeypatch, "cifar10", cifar, server.put("file", File(cifar, slow=go_on)))
    second_told: list[str] = []
    threads = [
        threading.Thread(target=download, args=("cifar10", tmp_path), kwargs={"tell": t.append})
        for t in (told, second_told)
    ]
    for thread in threads:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1
    one, other = sorted((told, second_told), key=len)
    assert len(one) == 1, "it only says that the set is there"
    assert one[0].startswith(f"cifar10 is in {tmp_path}")
    assert "Terms: " in other[-1]


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """Sets the longest file that this process may write: the disk's own errors, without filling it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_while_downloading(
    server: Server,
    cifar: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: list[str],
    file_limit: Callable[[int], None],
) -> None:
    publish(monkeypatch, "cifar10", cifar, server.put("file", File(cifar)))
    file_limit(100_000)
    with pytest.raises(UserError, match=r"part: cannot be written \(File too large\); free the di"):
        download("cifar10", tmp_path, tell=told.append)
    assert listing(tmp_path) == ["cifar-10-python.tar.gz.part"]
    file_limit(resource.RLIM_INFINITY)
    download("cifar10", tmp_path, tell=told.append)
    assert server.asked[-1] == ("file", "bytes=100000-")


def test_a_disk_that_fills_while_unpacking(
    server: Server,
    cifar: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: list[str],
    file_limit: Callable[[int], None],
) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    archive = publish(monkeypatch, "cifar10", cifar, server.put("file", File(cifar)))
    fetch(archive, tmp_path, tell=told.append)
    file_limit(50_000)
    with pytest.raises(UserError, match=r"cannot be unpacked \(File too large\).*archive is kept"):
        download("cifar10", tmp_path, tell=told.append)
    assert listing(tmp_path) == [path.name]


def test_a_disk_without_room_is_reported_beforehand(
    server: Server, cifar: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    publish(monkeypatch, "cifar10", cifar, server.put("file", File(cifar)))
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"0\.2 GiB are needed to download and unpack, but 0\.0"):
        download("cifar10", tmp_path, tell=told.append)
    assert server.asked == []


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path, told: list[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/data: cannot be made \(Not a directory\)"):
        download("cifar10", tmp_path / "file" / "data", tell=told.append)


def test_a_truncated_archive_leaves_nothing(
    server: Server, cifar: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    """As if it had been published so: the checksum is right."""
    short = cifar[: len(cifar) // 2]
    publish(monkeypatch, "cifar10", short, server.put("file", File(short)))
    with pytest.raises(UserError, match=r"tar\.gz: damaged \(.*remove it and download it again"):
        download("cifar10", tmp_path, tell=told.append)
    assert listing(tmp_path) == ["cifar-10-python.tar.gz"]


# Hostile archives: each holds one good file, then something bad.


def tar_with(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for info, content in ((tarfile.TarInfo("set/good"), b"good"), *members):
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zip_with(*members: tuple[str, int, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, mode, content in (("set/good", stat.S_IFREG, b"good"), *members):
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode | 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return data.getvalue()


HOSTILE = {
    "tar-parent": tar_with((tar_member("set/../../evil"), b"evil")),
    "tar-absolute": tar_with((tar_member("/tmp/evil"), b"evil")),
    "tar-elsewhere": tar_with((tar_member("other/evil"), b"evil")),
    "tar-symlink": tar_with((tar_member("set/link", tarfile.SYMTYPE, "../.."), b"")),
    "tar-through-symlink": tar_with(
        (tar_member("set/link", tarfile.SYMTYPE, "../../.."), b""),
        (tar_member("set/link/evil"), b"evil"),
    ),
    "tar-hard-link": tar_with((tar_member("set/link", tarfile.LNKTYPE, "../../victim"), b"")),
    "tar-device": tar_with((tar_member("set/null", tarfile.CHRTYPE), b"")),
    "tar-fifo": tar_with((tar_member("set/fifo", tarfile.FIFOTYPE), b"")),
    "tar-backslash": tar_with((tar_member("set\\..\\..\\evil"), b"evil")),
    "tar-twice": tar_with((tar_member("set/good"), b"bad")),
    "tar-bomb": tar_with((tar_member("set/bomb"), bytes(3_000_000))),
    "tar-many": tar_with(*((tar_member(f"set/{i}"), b"") for i in range(30))),
    "tar-empty": tar_with()[:0],
    "zip-parent": zip_with(("set/../../evil", stat.S_IFREG, b"evil")),
    "zip-absolute": zip_with(("/tmp/evil", stat.S_IFREG, b"evil")),
    "zip-elsewhere": zip_with(("other/evil", stat.S_IFREG, b"evil")),
    "zip-symlink": zip_with(("set/link", stat.S_IFLNK, b"../..")),
    "zip-device": zip_with(("set/null", stat.S_IFCHR, b"")),
    "zip-bomb": zip_with(("set/bomb", stat.S_IFREG, bytes(3_000_000))),
    "zip-many": zip_with(*((f"set/{i}", stat.S_IFREG, b"") for i in range(30))),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_reaches_nothing_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("untouched")
    root = tmp_path / "data"
    root.mkdir()
    path = root / f"set.{'zip' if kind.startswith('zip') else 'tar.gz'}"
    path.write_bytes(HOSTILE[kind])
    before = below(tmp_path), listing(tmp_path)
    with pytest.raises(UserError, match=re.escape(str(path))) as told:
        unpack(path, "set", most_bytes=2_000_000, most_members=20)
    assert "again" in str(told.value)
    assert (below(tmp_path), listing(tmp_path)) == before
    assert not Path("/tmp/evil").exists()


def test_a_zip_that_lies_about_a_size_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    content = zip_with(("set/bomb", stat.S_IFREG, bytes(3_000_000)))
    true = (3_000_000).to_bytes(4, "little")
    path.write_bytes(content.replace(true, (1000).to_bytes(4, "little")))
    with pytest.raises(UserError, match=r"set\.zip: damaged"):
        unpack(path, "set", most_bytes=2_000_000, most_members=20)
    assert listing(tmp_path) == ["set.zip"]


def test_modes_and_owners_of_an_archive_are_not_taken_over(tmp_path: Path) -> None:
    member = tar_member("set/program")
    member.mode, member.uid = 0o6777, 12345
    (tmp_path / "set.tar.gz").write_bytes(tar_with((member, b"#!")))
    folder = unpack(tmp_path / "set.tar.gz", "set", most_bytes=100, most_members=5)
    state = (folder / "program").stat()
    assert state.st_mode & 0o7111 == 0
    assert state.st_uid == os.getuid()


# The command.


def test_the_command_tells_where_it_came_from_and_its_terms(
    server: Server,
    cifar: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = server.put("file", File(cifar))
    publish(monkeypatch, "cifar10", cifar, url)
    mixco.cli.main(["download", "cifar10", "--data-path", str(tmp_path)])
    text = capsys.readouterr().err
    assert f"came from {url}; its checksum is right" in text
    assert DATASETS["cifar10"].terms in text
    mixco.cli.main(["download", "cifar10", "--data-path", str(tmp_path)])
    assert f"cifar10 is in {tmp_path} already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifra10"], "cifra10: only named data sets can be downloaded; did you mean cifar10?"),
        (["cifar10"], "needs --data-path"),
        (["imagenet", "--data-path", "here"], "cannot be downloaded by a program"),
    ],
)
def test_what_cannot_be_downloaded_is_reported(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        mixco.cli.main(["download", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert listing(tmp_path) == []


def test_the_sample_needs_no_download(capsys: pytest.CaptureFixture[str]) -> None:
    mixco.cli.main(["download", "sample"])
    assert "comes with mixco, nothing is downloaded" in capsys.readouterr().err


def test_training_and_evaluation_download_first(
    server: Server,
    cifar: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    publish(monkeypatch, "cifar10", cifar, server.put("file", File(cifar)))
    data, encoder = tmp_path / "data", tmp_path / "encoder.safetensors"
    where = [
        *("--data", "cifar10", "--data-path", str(data), "--download"),
        *("--cache", str(tmp_path / "cache")),
    ]
    with pytest.raises(SystemExit):  # it stops when it has seen the images: there are too few
        mixco.cli.main(["pretrain", *where, "--size", "32", "--batch-size", "500"])
    assert "there are only 100 images to train on" in capsys.readouterr().err
    assert len(server.asked) == 1

    shutil.rmtree(data)
    description = EncoderDescription(
        *("resnet18", "auto", 32, CIFARS["cifar10"].mean, CIFARS["cifar10"].std, "random weights")
    )
    save_encoder(encoder, build_backbone("resnet18", 32, "auto", 0), description)
    mixco.cli.main(["knn", "--checkpoint", str(encoder), *where])
    assert "20 images of cifar10/test, 100 labelled" in capsys.readouterr().out
    assert len(server.asked) == 2


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_table_is_in_order(name: str) -> None:
    archive = ARCHIVES[name]
    assert DATASETS[name].needs_path
    assert len(set(archive.mirrors)) == len(archive.mirrors) >= 2
    assert all(url.endswith(f"/{archive.file}") for url in archive.mirrors)
    assert all(url.startswith(("https://", "http://")) for url in archive.mirrors)
    assert re.fullmatch("[0-9a-f]{64}", archive.sha256)
    assert archive.bytes < archive.most_bytes * 1.2
