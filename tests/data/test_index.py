"""The index of a folder's files: what is there is listed, and only what changed is listed again."""

import os
import shutil
from pathlib import Path

import pytest

from mixco.data import file_index as index
from mixco.data.datasets import list_images
from mixco.data.file_index import list_files

ENDINGS = (".jpg", ".png")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files in nested folders; what the tests make counts as settled at once."""
    monkeypatch.setattr(index, "SETTLED_NS", -1)
    for name in ("a.jpg", "b/c.JPG", "b/d/e.png", "b.jpg", "f/ü.jpg", "f/notes.txt", ".h/x.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "photos"


ALL = ["a.jpg", "b.jpg", "b/c.JPG", "b/d/e.png", "f/ü.jpg"]


def rewrite(cache: Path, old: str, new: str) -> None:
    """Change the index as no program would, digest and all: what it says is then seen to be used."""
    (file,) = cache.glob("index-*.json")
    _, _, text = file.read_text().partition("\n")
    assert old in text
    text = text.replace(old, new)
    file.write_text(f"{index.hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def test_with_and_without_an_index_the_same_is_listed(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert list_files(folder, ENDINGS, None).files == ALL
    assert not cache.exists()
    assert list_files(folder, ENDINGS, cache).files == ALL
    assert list_files(folder, ENDINGS, cache).files == ALL
    assert list_files(folder, (".png",), cache).files == ["b/d/e.png"]
    assert list_images(str(folder), None, "pretrain", cache).files == tuple(ALL)


def test_only_folders_that_changed_are_listed_again(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    list_files(folder, ENDINGS, cache)
    rewrite(cache, "e.png", "from-the-index.png")
    assert "b/d/from-the-index.png" in list_files(folder, ENDINGS, cache).files

    (folder / "a.jpg").unlink()
    (folder / "b" / "new.jpg").touch()
    (folder / "g" / "h").mkdir(parents=True)
    (folder / "g" / "h" / "i.jpg").touch()
    shutil.rmtree(folder / "f")
    assert list_files(folder, ENDINGS, cache).files == [
        *("b.jpg", "b/c.JPG", "b/d/from-the-index.png", "b/new.jpg", "g/h/i.jpg")
    ]
    (folder / "b" / "d" / "e.png").rename(folder / "b" / "d" / "z.png")
    assert "b/d/z.png" in list_files(folder, ENDINGS, cache).files


def test_a_change_with_its_time_put_back_is_seen(folder: Path, tmp_path: Path) -> None:
    """As rsync and tar put back the times of folders."""
    cache = tmp_path / "cache"
    before = (folder / "f").stat()
    list_files(folder, ENDINGS, cache)
    (folder / "f" / "new.jpg").touch()
    os.utime(folder / "f", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "f/new.jpg" in list_files(folder, ENDINGS, cache).files


def test_what_changed_just_now_is_not_relied_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change within the same tick of the clock would not move the time."""
    monkeypatch.setattr(index, "SETTLED_NS", 3600 * 10**9)
    cache = tmp_path / "cache"
    list_files(folder, ENDINGS, cache)
    rewrite(cache, "a.jpg", "stale.jpg")
    assert list_files(folder, ENDINGS, cache).files == ALL


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"no digest", b"{}", None])
def test_a_damaged_index_is_built_anew(folder: Path, tmp_path: Path, damage: bytes | None) -> None:
    cache = tmp_path / "cache"
    list_files(folder, ENDINGS, cache)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-20] if damage is None else damage)
    assert list_files(folder, ENDINGS, cache).files == ALL
    assert file.read_bytes() == whole
    assert list(cache.iterdir()) == [file], "nothing half written is left"


def test_a_cache_that_cannot_be_written_costs_only_time(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    assert list_files(folder, ENDINGS, tmp_path / "cache").files == ALL


def test_names_that_are_no_text_survive(folder: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xe9.jpg")
    try:
        (folder / name).touch()
    except OSError:
        pytest.skip("this file system has only names that are text")
    for _ in range(2):
        assert name in list_files(folder, ENDINGS, tmp_path / "cache").files


def test_links_to_folders_are_followed_but_not_in_a_circle(folder: Path, tmp_path: Path) -> None:
    (folder / "link.jpg").symlink_to(folder / "a.jpg")
    (folder / "again").symlink_to(folder / "b")
    (folder / "b" / "d" / "loop").symlink_to(folder)
    for _ in range(2):
        listing = list_files(folder, ENDINGS, tmp_path / "cache")
        more = ["link.jpg", "again/c.JPG", "again/d/e.png"]
        assert listing.files == sorted([*ALL, *more])
        assert listing.left_aside() == {".txt": 1, index.LOOPS: 2}
        assert listing.left_aside("b") == {index.LOOPS: 1}


def test_a_link_to_a_folder_that_comes_later_is_seen(folder: Path, tmp_path: Path) -> None:
    """A disk that is mounted late: the folder around the link does not change."""
    (folder / "disk").symlink_to(tmp_path / "later")
    assert list_files(folder, ENDINGS, tmp_path / "cache").files == ALL
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "new.jpg").touch()
    assert "disk/new.jpg" in list_files(folder, ENDINGS, tmp_path / "cache").files


def test_litter_and_runs_are_left_aside_and_counted(folder: Path, tmp_path: Path) -> None:
    left = {
        "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg": "folders @eaDir",
        "b/@eaDir/c.jpg": "folders @eaDir",
        "#recycle/x.jpg": "folders #recycle",
        "__MACOSX/x.jpg": "folders __MACOSX",
        "runs/a/views.png": index.RUNS,
        "runs/demo/comparison.png": index.RUNS,
        "knn/neighbours.png": index.RUNS,
        "report/curves.png": "folders report",
    }
    for name in (*left, "runs/a/config.json", "runs/demo/results.json", "knn/results.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "runs" / "a" / "checkpoints").mkdir()
    (folder / "report.html").touch()
    for _ in range(2):
        listing = list_files(folder, ENDINGS, tmp_path / "cache")
        assert listing.files == ALL
        counts = {what: list(left.values()).count(what) for what in left.values()}
        assert listing.left_aside() == {".txt": 1, ".html": 1, **counts}
    # Asked for by itself, a folder is listed whatever it is.
    assert list_files(folder / "runs" / "a", ENDINGS, None).files == ["views.png"]
