"""Streamed batches: those of the packed path, whatever the number of workers and whatever is broken."""

import dataclasses
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from sample_images import mosaics, sample_images
from torch import Tensor

from mixco.data import loading, workers
from mixco.data.datasets import list_images
from mixco.data.images import Images, refuse_lost_classes, view_batches
from mixco.data.loading import open_images
from mixco.data.storage import FileNames
from mixco.data.workers import CroppedFiles
from mixco.runtime.device import Compute
from mixco.runtime.errors import UserError
from mixco.views.augment import sample_view
from mixco.views.augmentation import Augmentation, Input, moco_v2

CPU = Compute(torch.device("cpu"), torch.float32)
SIZE = 64
CROPS = Augmentation(
    Input(SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    jitter_probability=0.0,
    grey=0.0,
    blur=0.0,
)
SHAPES = [(128, 128), (100, 80), (70, 128), (128, 66)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred and twenty lossless files of four shapes, none larger than the canvas at 64 px."""
    folder = tmp_path_factory.mktemp("streaming") / "photos"
    folder.mkdir()
    for i, image in enumerate(mosaics(120)):
        height, width = SHAPES[i % 4]
        pixels = image[:, :height, :width].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    return folder


def opened(folder: Path, how: str, workers: int = 0) -> Images:
    source = list_images(str(folder), None, "pretrain")
    cache = folder.parent / "cache"
    return open_images(
        source,
        size=SIZE,
        cache=cache,
        loading=how,  # type: ignore[arg-type]
        workers=workers,
        memory=2**30,
    )


def no_complaint(file: str, reason: str) -> None:
    raise AssertionError(f"{file}: {reason}")


def plan_of(members: Tensor, steps: int, batch: int) -> Iterator[tuple[Tensor, torch.Generator]]:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randperm(len(members), generator=generator)[:batch]
        yield members[chosen], torch.Generator().manual_seed(1000 + step)


def drawn(
    images: Images,
    augmentation: Augmentation,
    members: Tensor | None = None,
    on_unreadable: object = no_complaint,
    steps: int = 4,
    batch: int = 30,
) -> list[tuple[Tensor, Tensor]]:
    members = torch.arange(len(images)) if members is None else members
    return [
        (view_q, view_k)
        for _, (view_q, view_k) in view_batches(
            images,
            plan_of(members, steps, batch),
            augmentation,
            members=members,
            batch_size=batch,
            compute=CPU,
            on_unreadable=on_unreadable,  # type: ignore[arg-type]
        )
    ]


def test_the_views_are_the_packed_paths_but_for_the_rounding_to_8_bits(photos: Path) -> None:
    """The same crops and flips; Pillow's resize rounds to 8 bits after the columns and the rows."""
    packed, streamed = (
        drawn(opened(photos, "packed"), CROPS),
        drawn(opened(photos, "streamed"), CROPS),
    )
    assert len(packed) == len(streamed) == 4
    for theirs, ours in zip(packed, streamed, strict=True):
        for expected, found in zip(theirs, ours, strict=True):
            difference = (found - expected).abs()
            assert difference.max() <= 1.01 / 255
            assert difference.mean() <= 0.4 / 255
            assert found.is_contiguous(memory_format=torch.channels_last)


def test_the_whole_chain_is_the_packed_paths(photos: Path) -> None:
    """Jitter and normalisation enlarge the rounding: by 1.4 ** 3 at most, over a std of 0.22."""
    augmentation = moco_v2(Input(SIZE))
    packed = drawn(opened(photos, "packed"), augmentation)
    streamed = drawn(opened(photos, "streamed"), augmentation)
    difference = torch.cat(
        [
            (a - b).abs()
            for pair in zip(packed, streamed, strict=True)
            for a, b in zip(*pair, strict=True)
        ]
    )
    # Hue turns by the differences between the channels: of nearly grey pixels it is no smooth function.
    assert difference.quantile(0.99) <= 1.4**3 / 0.22 / 255 if difference.numel() < 2**24 else True
    assert difference.mean() <= 0.5 / 0.22 / 255


def test_whatever_the_number_of_workers_the_batches_are_equal_bit_for_bit(photos: Path) -> None:
    augmentation = moco_v2(Input(SIZE))
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    none, one, two = (
        drawn(opened(photos, "streamed", workers), augmentation) for workers in (0, 1, 2)
    )
    for a, b, c in zip(none, one, two, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
        assert torch.equal(a[0], c[0])
        assert torch.equal(a[1], c[1])
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is left alone"


def test_crops_are_drawn_for_the_real_extents(tmp_path: Path) -> None:
    """Of a picture far larger than a packed canvas: the boxes of sample_view for its own extents."""
    (tmp_path / "photos").mkdir()
    tiles = sample_images(24).view(4, 6, 3, 64, 64).permute(2, 0, 3, 1, 4).reshape(3, 256, 384)
    for i in range(4):
        rolled = tiles.roll(64 * i, 2).permute(1, 2, 0).numpy()
        Image.fromarray(rolled).save(tmp_path / "photos" / f"{i}.png")
    ((view_q, view_k),) = drawn(opened(tmp_path / "photos", "streamed"), CROPS, steps=1, batch=4)
    ((index, generator),) = plan_of(torch.arange(4), 1, 4)
    extents = torch.tensor([[256, 384]]).expand(4, 2)
    for views in (view_q, view_k):
        p = sample_view(extents, CROPS, generator)
        for i, (top, left, height, width) in zip(index.tolist(), p.box.tolist(), strict=True):
            place = (index == i).nonzero().item()
            part = tiles.roll(64 * i, 2)[:, top : top + height, left : left + width]
            image = Image.fromarray(part.permute(1, 2, 0).numpy())
            resized = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            expected = torch.tensor(list(resized.tobytes())).view(SIZE, SIZE, 3).permute(2, 0, 1)
            expected = expected.flip(2) if p.flip[place] else expected
            assert torch.equal((views[place] * 255).round().long(), expected)


@pytest.fixture
def damaged(photos: Path, tmp_path: Path) -> Path:
    """Two hundred files, of which the fifth and the sixth cannot be read."""
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    for i in range(120, 200):
        shutil.copy(folder / f"{i - 120:03}.png", folder / f"{i:03}.png")
    (folder / "004.png").write_bytes(b"")
    (folder / "005.png").unlink()
    (folder / "005.png").symlink_to(folder / "vanished.png")
    return folder


def test_the_next_member_stands_in_for_what_cannot_be_read(damaged: Path) -> None:
    told: list[tuple[str, str]] = []
    images = opened(damaged, "streamed")
    members = torch.tensor([0, 2, 4, 5, 9, 11])  # 6, 7 and 8 are held out
    found = drawn(
        images, CROPS, members, lambda *what: told.append(what), steps=3, batch=len(members)
    )
    assert sorted(told) == [
        ("004.png", "the file is empty"),
        ("005.png", "No such file or directory"),
    ], "each once, though met in every batch"

    shutil.copy(damaged / "009.png", damaged / "004.png")
    (damaged / "005.png").unlink()
    shutil.copy(damaged / "009.png", damaged / "005.png")
    expected = drawn(opened(damaged, "streamed"), CROPS, members, steps=3, batch=len(members))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_the_last_members_substitute_is_the_first(damaged: Path) -> None:
    source = list_images(str(damaged), None, "pretrain")
    worker = CroppedFiles(source, SIZE, CROPS, torch.tensor([3, 4, 5]))
    assert list(worker._candidates(5)) == [5, 3, 4]
    assert list(worker._candidates(3)) == [3, 4, 5]


def test_more_than_one_percent_stops_the_run(damaged: Path) -> None:
    (damaged / "100.png").write_text("<html>")
    told: list[tuple[str, str]] = []
    with pytest.raises(
        UserError, match=r"3 of 200 images cannot be read \(004\.png: the file is em"
    ):
        drawn(
            opened(damaged, "streamed", 1),
            CROPS,
            on_unreadable=lambda *what: told.append(what),
            steps=40,
        )
    assert len(told) == 3, "all are told of before it stops"


def test_a_disk_that_is_gone_stops_the_run(photos: Path, tmp_path: Path) -> None:
    """Also where one percent is more than all that a batch can meet."""
    images = opened(shutil.copytree(photos, tmp_path / "photos"), "streamed")
    images = dataclasses.replace(
        images, source=dataclasses.replace(images.source, max_unreadable=1.0)
    )
    shutil.rmtree(tmp_path / "photos")
    with pytest.raises(UserError, match="100 files one after the other cannot be read"):
        drawn(images, CROPS, on_unreadable=lambda *_: None, batch=1)
    with pytest.raises(
        UserError, match=r"none of its 120 images can be read \(000.png: No such file"
    ):
        drawn(images, CROPS, on_unreadable=lambda *_: None)


def evaluated(images: Images, told: list[str]) -> tuple[Tensor, Tensor]:
    pairs = images.evaluation_batches(
        torch.arange(len(images)),
        Input(SIZE),
        compute=CPU,
        on_unreadable=lambda file, _: told.append(file),
        batch_size=50,
    )
    index, seen = zip(*pairs, strict=True)
    return torch.cat(index), torch.cat(seen)


def test_evaluation_sees_the_same_and_leaves_out_what_cannot_be_read(damaged: Path) -> None:
    told: list[str] = []
    images = opened(damaged, "streamed", 1)
    index, seen = evaluated(images, told)
    packed = opened(damaged, "packed")
    _, expected = evaluated(packed, told)
    assert sorted(told) == ["004.png", "005.png"]
    assert index.tolist() == [i for i in range(200) if i not in (4, 5)]
    assert (seen - expected).abs().max() <= 1.01 / 255 / 0.22
    assert [images.files[i] for i in index] == list(packed.files)
    assert images.readable == packed.readable == 198

    pictures, extents = images.canvases(torch.tensor([3, 4, 7]), 2 * SIZE)
    theirs, their_extents = packed.canvases(torch.tensor([3, 5]), 2 * SIZE)
    assert torch.equal(pictures[[0, 2]], theirs)
    assert torch.equal(extents[[0, 2]], their_extents)
    assert not pictures[1].any()


def test_a_class_without_a_readable_image_is_an_error(photos: Path) -> None:
    source = dataclasses.replace(
        list_images(str(photos), None, "pretrain"),
        labels=(0,) * 119 + (1,),
        classes=("a", "b"),
    )
    with pytest.raises(UserError, match="no readable image left of class b"):
        refuse_lost_classes(source, torch.zeros(119, dtype=torch.int64))


def test_the_indices_are_those_of_the_images_that_are_shown(damaged: Path) -> None:
    """Labels go by them: a substitute has its own."""
    images = opened(damaged, "streamed", 1)
    everything = torch.arange(len(images))
    asked = torch.tensor([3, 4, 5, 6])
    ((index, (view,)),) = view_batches(
        images,
        [(asked, torch.Generator())],
        CROPS,
        members=everything,
        batch_size=4,
        compute=CPU,
        on_unreadable=lambda *_: None,
        count=1,
    )
    assert index.tolist() == [3, 6, 6, 6], "4 and 5 cannot be read, 6 stands in for them"
    assert view.shape == (4, 3, SIZE, SIZE)


def test_auto_packs_what_fits(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = list_images(str(photos), None, "pretrain")
    needed = 120 * 3 * 128 * 128

    def is_packed(memory: int, free: int) -> bool:
        monkeypatch.setattr(loading, "free_space", lambda _: free)
        return loading.fits_packed(source, SIZE, tmp_path / "not" / "yet", memory)

    assert is_packed(2 * needed, 4 * needed)
    assert not is_packed(2 * needed - 1, 4 * needed), "more than half of the memory"
    assert not is_packed(2 * needed, 4 * needed - 1), (
        "packing takes more than half of the free disk"
    )
    opened(photos, "packed")
    assert loading.fits_packed(source, SIZE, photos.parent / "cache", 2 * needed), "packed already"
    assert opened(photos, "auto").loading == "packed"
    with pytest.raises(UserError, match=r"--workers .* 1024, got -1"):
        opened(photos, "auto", -1)


def test_too_little_shared_memory_is_reported_beforehand(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("this system has no /dev/shm")
    usage = shutil.disk_usage("/dev/shm")._replace(free=2**20)
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="lower --workers or --batch-size, or give the container"):
        drawn(opened(photos, "streamed", 2), CROPS)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal there")
def test_a_worker_that_is_killed_is_reported(photos: Path) -> None:
    images = opened(photos, "streamed", 1)
    everything = torch.arange(len(images))
    batches = view_batches(
        images,
        plan_of(everything, 100, 20),
        CROPS,
        members=everything,
        batch_size=20,
        compute=CPU,
        on_unreadable=no_complaint,
    )
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"a process that decodes images ended .* lower --workers"):
        list(batches)


def test_file_names_are_a_sequence_that_can_be_sent_to_any_process() -> None:
    names = ["a.jpg", "b/ü.png", "", os.fsdecode(b"\xff.jpg"), "日本.webp"]
    table = FileNames(names)
    assert list(table) == list(pickle.loads(pickle.dumps(table))) == names
    assert (len(table), table[-1], table[1:3]) == (5, names[-1], names[1:3])
    with pytest.raises(IndexError):
        table[5]
    assert list(FileNames([])) == []


def session(number: int) -> set[int]:
    """Processes of a session, by Linux's list; those that ended and wait for their parent left out."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == number and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


def wait_until_over(number: int) -> None:
    deadline = time.monotonic() + 200
    while session(number) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = session(number)
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert not left


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of processes")


@needs_linux
@pytest.mark.slow
def test_workers_end_with_a_run_that_is_killed(photos: Path) -> None:
    code = """if True:
        import itertools, sys, torch
        from mixco.data.datasets import list_images
        from mixco.data.images import view_batches
        from mixco.data.streaming import stream
        from mixco.runtime.device import Compute
        from mixco.views.augmentation import Augmentation, Input
        images = stream(list_images(sys.argv[1], None, "pretrain"), 2)
        everything = torch.arange(len(images))
        plan = ((everything[:4], torch.Generator()) for _ in itertools.count())
        batches = view_batches(
            images,
            plan, Augmentation(Input(32)), members=everything, batch_size=4,
            compute=Compute(torch.device("cpu"), torch.float32), on_unreadable=print,
        )
        for _ in batches:
            print("a batch", flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", code, str(photos)], stdout=subprocess.PIPE, start_new_session=True
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"a batch\n"
        assert len(session(run.pid)) >= 4, "the run, the server, two workers"
        run.kill()
    wait_until_over(run.pid)


@needs_linux
@pytest.mark.slow
def test_an_interrupt_in_the_terminal_ends_a_run_with_one_sentence(
    photos: Path, tmp_path: Path
) -> None:
    """There all processes get the signal, and none may complain."""
    (tmp_path / "photos").mkdir()
    for i in range(8):
        shutil.copy(photos / f"{i:03}.png", tmp_path / "photos")
    command = [
        *(sys.executable, "-W", "error", "-m", "mixco", "pretrain"),
        *("--data", str(tmp_path / "photos"), "--loading", "streamed", "--workers", "2"),
        *("--size", "32", "--batch-size", "4", "--epochs", "10000", "--device", "cpu"),
        *("--checkpoint-minutes", "0", "--cache", str(tmp_path), "--out", str(tmp_path / "run")),
        *("--arch", "test_resnet"),
    ]
    # Where the tests run in the background, Ctrl-C is ignored, by what they start as well.
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as run:
        assert run.stderr is not None
        try:
            lines: list[str] = []
            while not lines or (lines[-1] and "data wait" not in lines[-1]):  # workers are at work
                lines.append(run.stderr.readline())
            assert len(session(run.pid)) >= 4, lines
            os.killpg(run.pid, signal.SIGINT)
            rest = run.stderr.read()
        except BaseException:
            os.killpg(run.pid, signal.SIGKILL)
            raise
    wait_until_over(run.pid)
    assert run.returncode == 130
    (sentence,) = (line for line in rest.splitlines() if "images/s" not in line)
    assert re.fullmatch(r"mixco: stopped after step [\d,]+, saved in .*run; the same .*", sentence)
