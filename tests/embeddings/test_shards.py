"""Files of vectors in shards, which processes write alone and all commands read as one file."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_folders import random_run
from sample_images import unpack_sample

import mixco
import mixco.cli
from mixco.data.image_list import Arrays, ImageList
from mixco.embeddings.shards import Shard, part_of
from mixco.embeddings.vectors import read_notes, read_vectors
from mixco.embeddings.writing import embed_to_file
from mixco.runtime.locks import locked
from mixco.runtime.run_folder import write_json

COUNT = 1600  # in four batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/, run, and whole.npz: the vectors of all photographs, by one process."""
    folder = tmp_path_factory.mktemp("shards")
    unpack_sample(folder / "sample", train=COUNT // 10, test=0)
    shutil.move(folder / "sample/train", folder / "photos")
    random_run(folder / "run", folder / "photos")
    embed(folder, folder / "whole.npz")
    return folder


def embed(folder: Path, out: Path, data: str | Path | None = None, **settings: Any) -> Path:
    usual = {"device": "cpu", "precision": "float32", "cache": folder / "cache", "workers": 0}
    return mixco.embed(folder / "run", data or folder / "photos", out=out, **usual, **settings)


@pytest.fixture
def one_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """one_of(rank, processes): from now on this process is one of several."""

    def become(rank: int, processes: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(processes))

    return become


def in_shards(one_of: Any, folder: Path, out: Path, processes: int, **settings: Any) -> list[Path]:
    written = []
    for rank in reversed(range(processes)):  # none needs another one
        one_of(rank, processes)
        written.append(embed(folder, out, **settings))
    one_of(0, 1)
    return written[::-1]


@pytest.mark.parametrize("count", [0, 1, 511, 512, 513, 1600, 100_000])
@pytest.mark.parametrize("of", [1, 2, 3, 8])
def test_ranges_are_whole_batches_of_all_images(count: int, of: int) -> None:
    ranges = [Shard(number, of).images(count) for number in range(of)]
    assert [image for each in ranges for image in each] == list(range(count))
    assert all(each.start % 512 == 0 for each in ranges if each)
    batches = [-(-len(each) // 512) for each in ranges]
    assert max(batches) - min(batches) <= 1


def test_a_part_of_arrays_has_their_pixels() -> None:
    parts = tuple(np.full((n, 2, 2, 3), n, np.uint8) for n in (3, 4, 5))
    for number, part in enumerate(parts):
        part[:, 0, 0, 0] = 10 * number + np.arange(len(part))
    names = tuple(f"file:{i}" for i in range(12))
    source = ImageList(
        "arrays", Path(), names, (0,) * 12, ("a",), stored=Arrays((Path("a"),), parts)
    )
    for images in (range(12), range(2, 4), range(3, 7), range(1, 10), range(7, 7)):
        part = part_of(source, images)
        assert list(part.files) == [names[i] for i in images]
        assert part.arrays is not None and len(part.arrays) == len(images)
        assert all(part.read(row) == source.read(i) for row, i in enumerate(images))


@pytest.mark.parametrize(
    ("kind", "processes"), [("parquet", 2), ("npz", 3), ("safetensors", 2), ("safetensors", 5)]
)
def test_shards_hold_the_vectors_of_one_file(
    folder: Path, tmp_path: Path, one_of: Any, kind: str, processes: int
) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"vectors.{kind}"
    written = in_shards(one_of, folder, out, processes)
    names = [f"vectors-{i:05d}-of-{processes:05d}.{kind}" for i in range(processes)]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == names

    whole, found = read_vectors(folder / "whole.npz"), read_vectors(out)
    assert found.paths() == whole.paths() and len(found) == COUNT
    assert torch.equal(found.vectors, whole.vectors)
    notes = [read_notes(path) for path in written]
    assert {each["shards"] for each in notes} == {processes}
    assert sum(each["count"] for each in notes) == COUNT
    assert [each["first"] for each in notes][:2] == [0, 1024 if processes < 4 else 512]
    (own,) = {path.name: len(read_vectors(path)) for path in written[1:2]}.values()
    assert own == notes[1]["count"], "a shard is a file of vectors too"


def test_images_in_an_archive(folder: Path, tmp_path: Path, one_of: Any) -> None:
    one_of(0, 1)
    whole = read_vectors(embed(folder, tmp_path / "whole.npz", "sample", split="train"))
    out = tmp_path / "vectors.npz"
    in_shards(one_of, folder, out, 3, data="sample", split="train")
    found = read_vectors(out)
    assert found.paths() == whole.paths() and torch.equal(found.vectors, whole.vectors)
    assert torch.equal(found.index, whole.index)


def test_what_cannot_be_read_is_left_out_of_its_shard(tmp_path: Path, one_of: Any) -> None:
    """Where a whole range cannot be read, and where a range is empty, the shard has no vectors."""
    folder = tmp_path
    unpack_sample(folder / "sample", train=55, test=0)  # 550 images
    shutil.move(folder / "sample/train", folder / "photos")
    random_run(folder / "run", folder / "photos")
    files = sorted((folder / "photos").rglob("*.jpg"))
    for file in (files[3], *files[512:]):
        file.write_bytes(b"")
    one_of(0, 1)
    whole = read_vectors(embed(folder, folder / "whole.npz"))
    for kind in ("npz", "safetensors"):
        shards = in_shards(one_of, folder, folder / f"vectors.{kind}", 3)
        found = read_vectors(folder / f"vectors.{kind}")
        assert found.paths() == whole.paths() == [str(f) for f in (*files[:3], *files[4:512])]
        assert torch.equal(found.vectors, whole.vectors)
        dim = whole.vectors.shape[1]
        assert [read_vectors(shard).vectors.shape for shard in shards[1:]] == [(0, dim)] * 2
        lists = [shard.with_name(f"{shard.name}.unreadable.txt") for shard in shards]
        assert [len(each.read_text().splitlines()) for each in lists[:2]] == [1, 38]
        assert not lists[2].exists()


def test_a_process_has_only_the_names_of_its_range(
    folder: Path, tmp_path: Path, one_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[ImageList] = []

    def recorded(path: Path, encoder: Any, source: ImageList, *rest: Any, **options: Any) -> Any:
        given.append(source)
        return embed_to_file(path, encoder, source, *rest, **options)

    monkeypatch.setattr("mixco.embeddings.commands.embed_to_file", recorded)
    one_of(1, 2)
    embed(folder, tmp_path / "vectors.npz")
    (source,) = given
    assert len(source.files) == COUNT - 1024 and source.labels is None


def test_every_command_takes_the_shards_as_one_file(
    folder: Path,
    tmp_path: Path,
    one_of: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    in_shards(one_of, folder, tmp_path / "v.safetensors", 3)
    image = str(sorted((folder / "photos").rglob("*.jpg"))[1100])
    of_file, of_shards = (
        mixco.neighbours(folder / "run", image, among=str(among), k=3, device="cpu")
        for among in (folder / "whole.npz", "v.safetensors")
    )
    assert of_file == of_shards
    capsys.readouterr()
    mixco.cli.main(["duplicates", "v.safetensors", "--threshold", "0.999999"])
    from_shards = capsys.readouterr().out
    mixco.cli.main(["duplicates", str(folder / "whole.npz"), "--threshold", "0.999999"])
    assert capsys.readouterr().out == from_shards


def test_shards_that_are_not_one_file_are_refused(
    folder: Path, tmp_path: Path, one_of: Any
) -> None:
    out = tmp_path / "v.npz"
    first, second, third = in_shards(one_of, folder, out, 3)
    aside = tmp_path / "aside"
    aside.mkdir()

    shutil.move(second, aside)
    with pytest.raises(mixco.UserError, match=r"v-00001-of-00003\.npz.*missing.*RANK=1 WORLD_SIZE"):
        read_vectors(out)
    with pytest.raises(mixco.UserError, match=r"v-00001-of-00003\.npz.*missing"):
        mixco.duplicates(out)

    shutil.copy(third, second)
    with pytest.raises(mixco.UserError, match=r"v-00001-of-00003\.npz.*than its name says.*again"):
        read_vectors(out)

    other = random_run(tmp_path / "other", folder / "photos", seed=1)
    one_of(1, 3)
    mixco.embed(other, folder / "photos", out=aside / "other.npz", cache=tmp_path)
    shutil.copy(aside / "other-00001-of-00003.npz", second)
    with pytest.raises(
        mixco.UserError, match=r"v-00001-of-00003\.npz.*other work.*encoder.*remove"
    ):
        read_vectors(out)

    shutil.copy(first, tmp_path / "v-00000-of-00002.npz")
    with pytest.raises(
        mixco.UserError, match=r"v-00000-of-00002.*v-00000-of-00003.*2 and of 3.*remove"
    ):
        read_vectors(out)


def test_a_shard_beside_other_work_is_not_begun(folder: Path, tmp_path: Path, one_of: Any) -> None:
    out = tmp_path / "v.npz"
    one_of(0, 2)
    first = embed(folder, out)
    for rank, processes in ((2, 3), (0, 1)):
        one_of(rank, processes)
        with pytest.raises(mixco.UserError, match=rf"{first.name}.*0 of 2.*now there are"):
            embed(folder, out)
    one_of(1, 2)
    with pytest.raises(mixco.UserError, match=rf"{first.name}: .*other work.*normalised.*remove"):
        embed(folder, out, normalise=False)
    first.rename(tmp_path / "aside.npz")
    begun = tmp_path / f"{first.name}.part"
    begun.mkdir()
    write_json(begun / "of.json", {**read_notes(tmp_path / "aside.npz"), "precision": "bfloat16"})
    with pytest.raises(mixco.UserError, match=rf"{first.name}: .*precision.*--precision"):
        embed(folder, out)
    shutil.rmtree(begun)
    with (
        locked_folder(tmp_path / "v-00001-of-00002.npz.part"),
        pytest.raises(mixco.UserError, match=r"v-00001-of-00002\.npz.*another process"),
    ):
        embed(folder, out)
    assert not list(tmp_path.glob("v-*.npz"))


def locked_folder(part: Path) -> Any:
    part.mkdir()
    return locked(part / ".lock")


@pytest.mark.parametrize(("rank", "processes"), [("2", "2"), ("1", "1"), ("-1", "2"), ("a", "2")])
def test_numbers_of_processes_that_cannot_be(
    folder: Path,
    tmp_path: Path,
    one_of: Any,
    capsys: pytest.CaptureFixture[str],
    rank: str,
    processes: str,
) -> None:
    one_of(rank, processes)
    with pytest.raises(SystemExit) as stopped:
        mixco.cli.main(["embed", str(folder / "run"), "--out", str(tmp_path / "v.npz")])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert "RANK" in told and "WORLD_SIZE" in told
