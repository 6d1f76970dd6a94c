"""Packing: exact pixels, reused, keyed by the source's state, whole or not there."""

import json
import os
import shutil
import threading
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from sample_images import mosaics, sample_images, unpack_sample
from torch import Tensor

from mixco.data import packing
from mixco.data.datasets import list_images
from mixco.data.decode import decode
from mixco.data.images import Drawn, refuse_lost_classes
from mixco.data.packed import PackedImages
from mixco.data.packing import pack
from mixco.runtime.device import Compute
from mixco.runtime.errors import UserError
from mixco.views.augmentation import Input, crop_and_flip


def of_folder(folder: Path, cache: Path, split: str = "pretrain", size: int = 64) -> PackedImages:
    return pack(list_images(str(folder), None, split), size=size, cache=cache)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two hundred real images without labels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(sample_images(200)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:03}.png")
    return folder


def test_pixels_are_those_of_the_files(photos: Path, tmp_path: Path) -> None:
    packed = of_folder(photos, tmp_path / "cache")
    assert packed.images.dtype == torch.uint8
    assert torch.equal(packed.images, sample_images(200))
    assert packed.files == tuple(f"{i:03}.png" for i in range(200))
    assert packed.labels is None
    assert packed.extents.unique(dim=0).tolist() == [[64, 64]]


def test_it_is_a_safetensors_file(photos: Path, tmp_path: Path) -> None:
    packed = of_folder(photos, tmp_path / "cache")
    tensors = load_file(packed.path)
    assert torch.equal(tensors["images"], packed.images)
    assert torch.equal(tensors["extents"], packed.extents)
    with safe_open(packed.path, "pt") as file:
        assert json.loads(file.metadata()["mixco"])["kept"] == list(range(200))


def test_pictures_of_any_shape_keep_their_proportions(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    big = mosaics(4)
    shapes = [(128, 128), (100, 30), (20, 90), (64, 64)]
    for i, (height, width) in enumerate(shapes):
        pixels = big[i, :, :height, :width].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
    packed = of_folder(folder, tmp_path / "cache", size=32)
    # Twice 32 is enough for crops at 32: longer sides are reduced to 64, none is enlarged.
    assert packed.images.shape == (4, 3, 64, 64)
    assert packed.extents.tolist() == [[64, 64], [64, 19], [14, 64], [64, 64]]
    assert not packed.images[1, :, :, 19:].any()
    assert not packed.images[2, :, 14:].any()
    assert torch.equal(packed.images[3], big[3, :, :64, :64])
    reduced = Image.fromarray(big[0].permute(1, 2, 0).numpy()).resize((64, 64), 2)
    assert torch.equal(packed.images[0].permute(1, 2, 0), torch.from_numpy(np.array(reduced)))


def test_a_later_run_reuses_it_and_a_changed_source_does_not(photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = of_folder(photos, cache)
    written = first.path.stat().st_mtime_ns
    again = of_folder(photos, cache)
    assert (again.path, again.path.stat().st_mtime_ns) == (first.path, written)
    assert of_folder(photos, cache, size=32).path != first.path

    Image.new("RGB", (64, 64)).save(photos / "007.png")
    changed = of_folder(photos, cache)
    assert changed.path != first.path
    assert not changed.images[7].any()
    assert first.images[7].any(), "what a run has mapped does not change under it"
    (photos / "008.png").unlink()
    assert len(of_folder(photos, cache).images) == 199


def test_progress_is_reported(photos: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    source = list_images(str(photos), None, "pretrain")
    pack(source, size=64, cache=tmp_path, on_progress=lambda *pair: told.append(pair))
    done = [number for number, total in told if total == 200]
    assert len(done) == len(told) > 5 and done == sorted(set(done)) and done[-1] == 200


def test_a_packed_file_cut_short_is_packed_again(photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    path = of_folder(photos, cache).path
    os.truncate(path, path.stat().st_size - 1000)
    assert torch.equal(of_folder(photos, cache).images, sample_images(200))


def test_a_packed_file_with_a_damaged_header_is_packed_again(photos: Path, tmp_path: Path) -> None:
    path = of_folder(photos, tmp_path / "cache").path
    for damage in (b"[]", b"null", b'{"images": 1}'):
        with path.open("r+b") as file:
            file.seek(8)
            file.write(damage)
        assert torch.equal(of_folder(photos, tmp_path / "cache").images, sample_images(200))


def test_nothing_half_written_is_left_behind(photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    source = list_images(str(photos), None, "pretrain")

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, size=64, cache=cache, on_progress=stop)
    assert list(cache.iterdir()) == []


def test_a_few_unreadable_files_are_left_out_and_named(photos: Path, tmp_path: Path) -> None:
    (photos / "003.png").write_bytes(b"")
    (photos / "150.png").write_text("<html>not found</html>")
    packed = of_folder(photos, tmp_path / "cache")
    assert len(packed.images) == len(packed.files) == 198
    assert packed.unreadable_files == (
        ("003.png", "the file is empty"),
        ("150.png", "not an image (an HTML page)"),
    )
    assert torch.equal(packed.images[3], sample_images(200)[4])
    again = of_folder(photos, tmp_path / "cache")
    assert again.unreadable_files == packed.unreadable_files, "told by later runs too"


def test_more_than_one_percent_is_an_error(photos: Path, tmp_path: Path) -> None:
    for name in ("003.png", "050.png", "150.png"):
        (photos / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"3 of 200 .*003\.png: the file is empty.*mend or remove"):
        of_folder(photos, tmp_path / "cache")


def test_no_readable_image_at_all(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("nothing")
    with pytest.raises(UserError, match="none of its 1 images can be read"):
        of_folder(tmp_path / "photos", tmp_path / "cache")


def test_a_class_whose_only_image_is_unreadable(tmp_path: Path) -> None:
    unpack_sample(tmp_path, train=60, test=1, classes=3)
    forest = sorted((tmp_path / "train" / "Forest").iterdir())
    for file in forest[1:]:
        file.unlink()
    forest[0].write_bytes(b"")
    packed = of_folder(tmp_path, tmp_path / "cache", split="train")
    assert [packed.unreadable_files[0][1], len(packed)] == ["the file is empty", 120]
    assert packed.labels is not None
    with pytest.raises(UserError, match="no readable image left of class Forest"):
        refuse_lost_classes(packed.source, packed.labels)  # as evaluations do


def test_a_disk_without_room_is_reported_beforehand(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="GiB are free; free the disk, give --cache"):
        of_folder(photos, tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_reported(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(UserError, match=r"cannot be written \(File exists\)"):
        of_folder(photos, tmp_path / "cache")


def test_the_samples_labels_go_with_its_images(tmp_path: Path) -> None:
    source = list_images("sample", None, "test")
    packed = pack(source, size=64, cache=tmp_path)
    assert packed.labels is not None
    for i in range(0, 400, 37):
        pixels = torch.from_numpy(decode(source.read(i))).permute(2, 0, 1)
        assert torch.equal(packed.images[i], pixels)
        assert packed.classes[int(packed.labels[i])] in packed.files[i]


def test_the_canvas_is_as_large_as_the_largest_picture_that_can_be_read(
    photos: Path, tmp_path: Path
) -> None:
    """Wherever it comes in the list; one that only says that it is larger does not count."""
    large = mosaics(1)[0].permute(1, 2, 0).numpy()
    Image.fromarray(large[:90, :70]).save(photos / "198.png")
    whole = tmp_path / "whole.png"
    Image.fromarray(large).save(whole)
    (photos / "020.png").write_bytes(whole.read_bytes()[:-3000])
    packed = of_folder(photos, tmp_path / "cache")
    assert packed.images.shape == (199, 3, 90, 90)
    assert packed.extents[197].tolist() == [90, 70]
    assert torch.equal(
        packed.images[197, :, :90, :70], torch.from_numpy(large[:90, :70]).permute(2, 0, 1)
    )
    assert torch.equal(packed.images[0, :, :64, :64], sample_images(1)[0])
    assert not packed.images[0, :, 64:].any() and not packed.images[0, :, :, 64:].any()


def test_what_another_process_has_packed_meanwhile_is_taken(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = packing._write

    def write_and_be_refused(*everything: Any) -> None:
        write(*everything)
        raise PermissionError(13, "Access is denied")  # of Windows: the file there is mapped

    monkeypatch.setattr(packing, "_write", write_and_be_refused)
    assert torch.equal(of_folder(photos, tmp_path / "cache").images, sample_images(200))


def test_two_that_pack_the_same_images_at_once_do_not_meet(photos: Path, tmp_path: Path) -> None:
    """The second begins when the first has packed a half, and waits for the end of the first."""
    source, cache = list_images(str(photos), None, "pretrain"), tmp_path / "cache"
    begun, ended = threading.Event(), threading.Event()

    def wait(*_: int) -> None:
        begun.set()
        assert ended.wait(60)

    with ThreadPoolExecutor(1) as pool:
        others: list[Future[PackedImages]] = []

        def begin(done: int, _: int) -> None:
            if done >= 100 and not others:
                others.append(pool.submit(pack, source, size=64, cache=cache, on_progress=wait))
                assert begun.wait(60)

        first = pack(source, size=64, cache=cache, on_progress=begin)
        ended.set()
        second = others[0].result()
    for packed in (first, second):
        assert torch.equal(packed.images, sample_images(200))
    assert [path.name for path in cache.iterdir()] == [first.path.name]


def test_what_could_not_be_read_for_a_moment_is_read_the_next_time(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network disk that hiccups, rights that were wrong, a package that was missing."""
    source = list_images(str(photos), None, "pretrain")
    lost = source.files[5]
    usual = Path.open

    def failing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == Path(lost).name:
            raise OSError(5, "Input/output error")
        return usual(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", failing)
    first = pack(source, size=64, cache=tmp_path / "cache")
    assert first.unreadable_files == ((lost, "Input/output error"),)
    stays = pack(source, size=64, cache=tmp_path / "cache")
    assert (stays.path, len(stays)) == (first.path, len(first)), "it is not packed in vain"
    monkeypatch.undo()
    again = pack(source, size=64, cache=tmp_path / "cache")
    assert again.unreadable_files == ()
    assert len(again) == len(first) + 1
    assert again.files == source.files


def test_a_file_that_changed_with_its_time_and_size_put_back_is_packed_anew(
    photos: Path, tmp_path: Path
) -> None:
    source = list_images(str(photos), None, "pretrain")
    pack(source, size=64, cache=tmp_path / "cache")
    path = source.root / source.files[0]
    state, other = path.stat(), (source.root / source.files[1]).read_bytes()
    path.write_bytes(other[: state.st_size].ljust(state.st_size, b"\0"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    again = pack(source, size=64, cache=tmp_path / "cache")
    assert torch.equal(again.images[0], again.images[1]) or again.unreadable_files


def test_evaluation_takes_the_copy_that_the_views_come_from(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, made = of_folder(photos, tmp_path / "cache"), []

    def copied(images: Tensor, _device: torch.device) -> Tensor:
        made.append(len(images))
        return images.flip(0)  # tells it from the file

    monkeypatch.setattr("mixco.data.packed.make_resident", copied)
    compute, index = Compute(torch.device("cpu"), torch.float32), torch.arange(200)

    def seen() -> Tensor:
        parts = packed.evaluation_batches(index, Input(32), compute=compute, on_unreadable=print)
        return torch.cat([view for _, view in parts])

    def views() -> Generator[Drawn, None, None]:
        return packed.draw_batches(
            iter([]),
            crop_and_flip(Input(32)),
            members=index,
            batch_size=8,
            device=compute.device,
            on_unreadable=print,
        )

    of_file = seen()
    assert not made, "a single pass needs no copy"
    first, second = views(), views()
    assert torch.equal(seen(), of_file.flip(0))
    assert made == [200], "one for all"
    first.close()
    assert torch.equal(seen(), of_file.flip(0)), "the others still need it"
    second.close()
    assert torch.equal(seen(), of_file)
