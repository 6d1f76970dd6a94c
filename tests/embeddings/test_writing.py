"""Files of vectors: complete, correct, and resumed."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import python
from run_folders import random_run
from sample_images import unpack_sample

import mixco
from mixco.data.datasets.folders import whole_folder
from mixco.embeddings.vectors import read_vectors
from mixco.embeddings.writing import embed_to_file
from mixco.runtime.device import Compute
from mixco.runtime.locks import locked

COUNT = 30


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return unpack_sample(tmp_path, train=10, test=0, classes=3) / "train"


@pytest.fixture
def run(tmp_path: Path, photos: Path) -> Path:
    return random_run(tmp_path / "run", photos)


def write(path: Path, run: Path, photos: Path, **options: Any) -> None:
    embed_to_file(
        path,
        mixco.load_encoder(run),
        whole_folder(photos),
        {"root": str(photos), "packed": False},
        normalise=True,
        workers=0,
        compute=Compute(torch.device("cpu"), torch.float32),
        group=8,
        **options,
    )


@pytest.mark.parametrize("kind", ["parquet", "npz", "safetensors"])
def test_a_file_holds_the_vectors_of_all_that_can_be_read(
    tmp_path: Path, run: Path, photos: Path, kind: str
) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    files = sorted(photos.rglob("*.jpg"))
    files[4].write_bytes(b"")  # one of 30 is more than evaluation puts up with
    kept = [file for file in files if file != files[4]]
    out = tmp_path / f"vectors.{kind}"
    mixco.embed(run, photos, out=out, cache=tmp_path, device="cpu", precision="float32")

    found = read_vectors(out)
    assert found.paths() == [str(file) for file in kept]
    expected = mixco.load_encoder(run).embed(kept, device="cpu", precision="float32")
    torch.testing.assert_close(found.vectors, expected)
    assert found.notes["size"] == 32 and found.notes["normalised"] is True
    listed = (tmp_path / f"{out.name}.unreadable.txt").read_text()
    assert listed == f"{files[4].relative_to(photos)}\tthe file is empty\n"
    assert not (tmp_path / f"{out.name}.part").exists()


def test_others_read_the_files_without_mixco(tmp_path: Path, run: Path, photos: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for kind in ("parquet", "npz"):
        mixco.embed(run, photos, out=tmp_path / f"v.{kind}", cache=tmp_path)
    arrays = np.load(tmp_path / "v.npz")
    table = parquet.read_table(tmp_path / "v.parquet").to_pydict()
    assert table["path"] == arrays["paths"].tolist()
    assert np.array_equal(np.array(table["vector"], np.float32), arrays["vectors"])


def test_one_that_was_killed_resumes_and_ends_the_same(
    tmp_path: Path, run: Path, photos: Path
) -> None:
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    write(whole, run, photos)
    code = """
import os, signal, sys
from pathlib import Path
sys.path.append(sys.argv.pop())
from test_writing import write
write(*map(Path, sys.argv[1:]),
      on_progress=lambda done, total: done == 16 and os.kill(os.getpid(), signal.SIGKILL))
"""
    done = python("-c", code, killed, run, photos, Path(__file__).parent)
    assert done.returncode == -signal.SIGKILL
    part = tmp_path / "killed.safetensors.part"
    assert len(list(part.glob("shard-*"))) == 2 and not killed.exists()

    seen: list[int] = []
    write(killed, run, photos, on_progress=lambda done, _: seen.append(done))
    assert seen == [24, 30], "what was saved is not made again"
    assert killed.read_bytes() == whole.read_bytes()
    assert not part.exists()


def test_one_that_was_stopped_before_its_end_needs_no_image_again(
    tmp_path: Path, run: Path, photos: Path
) -> None:
    def stop(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    whole, stopped = tmp_path / "whole.npz", tmp_path / "stopped.npz"
    write(whole, run, photos)
    with pytest.raises(KeyboardInterrupt):
        write(stopped, run, photos, on_progress=stop)
    write(stopped, run, photos, on_progress=stop)
    first, second = np.load(whole), np.load(stopped)
    assert all(np.array_equal(first[key], second[key]) for key in ("paths", "vectors", "notes"))


def test_only_the_same_work_goes_on(tmp_path: Path, run: Path, photos: Path) -> None:
    def stop(done: int, _total: int) -> None:
        if done == 16:
            raise KeyboardInterrupt

    out = tmp_path / "v.npz"
    mixco.embed(run, photos, out=out, cache=tmp_path)
    before = out.stat()
    mixco.embed(run, photos, out=out, cache=tmp_path)
    assert out.stat() == before, "finished already"
    other = random_run(tmp_path / "other", photos, seed=1)
    with pytest.raises(mixco.UserError, match=r"v\.npz.*another encoder.*--out"):
        mixco.embed(other, photos, out=out, cache=tmp_path)

    half = tmp_path / "half.npz"
    with pytest.raises(KeyboardInterrupt):
        write(half, run, photos, on_progress=stop)
    with pytest.raises(mixco.UserError, match=r"half\.npz\.part.*remove the folder"):
        mixco.embed(run, photos, out=half, cache=tmp_path)
    with (
        locked(tmp_path / "half.npz.part" / ".lock"),
        pytest.raises(mixco.UserError, match=r"half\.npz.*another process"),
    ):
        write(half, run, photos)


def test_mistakes_are_named_before_the_work(tmp_path: Path, run: Path, photos: Path) -> None:
    for settings, message in (
        ({}, "give --out"),
        ({"out": "vectors.csv"}, "--out must end in .parquet, .npz, .safetensors"),
        ({"out": tmp_path / "v.npz", "nomralise": True}, "did you mean normalise?"),
    ):
        with pytest.raises(mixco.UserError, match=message):
            mixco.embed(run, photos, **settings)
    for file in photos.rglob("*.jpg"):
        file.write_bytes(b"")
    with pytest.raises(mixco.UserError, match="none of its 30 images"):
        mixco.embed(run, photos, out=tmp_path / "v.npz", cache=tmp_path)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(mixco.UserError, match=r"text\.npz.*damaged"):
        read_vectors(tmp_path / "text.npz")


@pytest.mark.parametrize("shards", [False, True])
def test_what_could_not_be_read_for_a_moment_is_embedded_the_next_time(
    tmp_path: Path, run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, shards: bool
) -> None:
    """Also where the call stopped in between; what stays unreadable costs no second pass."""
    broken, flaky = sorted(photos.rglob("*.jpg"))[4:6]
    broken.write_bytes(b"")
    usual = Path.open

    def failing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == flaky.name:
            raise PermissionError(13, "Permission denied")
        return usual(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", failing)
    out = tmp_path / "vectors.npz"
    if shards:
        with monkeypatch.context() as stopping:
            stopping.setattr("mixco.embeddings.writing._assemble", stop)
            with pytest.raises(KeyboardInterrupt):
                write(out, run, photos)
    else:
        write(out, run, photos)
        listed = tmp_path / "vectors.npz.unreadable.txt"
        assert len(listed.read_text().splitlines()) == 2
        before = out.stat().st_mtime_ns
        write(out, run, photos)
        assert out.stat().st_mtime_ns == before
    monkeypatch.undo()
    write(out, run, photos)
    paths = read_vectors(out).paths()
    assert str(flaky) in paths
    assert str(broken) not in paths
    assert len(paths) == 29
    broken.write_bytes(flaky.read_bytes())
    write(out, run, photos)
    assert len(read_vectors(out)) == 30
    assert not (tmp_path / "vectors.npz.unreadable.txt").exists()


def stop(*_: object) -> None:
    raise KeyboardInterrupt
