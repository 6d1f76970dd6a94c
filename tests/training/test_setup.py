"""What a run has before its first step, and the run folder on one of several processes."""

import dataclasses
import itertools
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_runs import a_run_with_a_folder_each, config, prepared
from run_folders import needed_by
from sample_images import unpack_sample
from several_processes import in_processes

from mixco.data.datasets import list_images
from mixco.data.holdout import split_holdout
from mixco.data.loading import open_images
from mixco.methods import METHODS, MIXERS, mixer_of, works
from mixco.mixing import mixco
from mixco.runtime import precision
from mixco.runtime.device import MEMORY_FORMATS, Compute, pick_dtype
from mixco.runtime.errors import UserError
from mixco.runtime.precision import Formats, Rates, formats
from mixco.runtime.run_folder import read_config, read_metrics, write_json
from mixco.training.build import build
from mixco.training.monitor import watched_views
from mixco.training.pretrain import pretrain
from mixco.training.setup import (
    device_of,
    plan,
    prepare,
    set_up,
)
from mixco.training.teacher import load_teacher

IMAGES = 48
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_sample(tmp_path_factory.mktemp("photos"), train=16, test=2, classes=3)


def opened_photos(photos: Path) -> Any:
    """The same images, opened without a run."""
    source = list_images(str(photos), None, "pretrain", photos.parent / "cache")
    return open_images(
        source,
        size=32,
        cache=photos.parent / "cache",
        loading="auto",
        workers=1,
        memory=2**30,
        channels=None,
    )


@pytest.mark.parametrize(
    ("method", "mix"), [p for p in itertools.product(METHODS, ["none", *MIXERS]) if works(*p)]
)
def test_prepare_and_set_up_choose_the_same_settings(photos: Path, method: str, mix: str) -> None:
    needed = needed_by(method, photos.parent)
    asked = config(photos, method=method, mix=mix, batch_size=None, workers=1, **needed)
    with ExitStack() as stack:
        setup = prepare(asked, stack)
    images = opened_photos(photos)
    teacher = load_teacher(asked)
    other = set_up(asked, images, device_of(asked), [], None, workers=1, teacher=teacher)
    assert other.settings == setup.settings
    assert other.choices == setup.choices
    for name in ("members", "bank", "held_out"):
        assert torch.equal(getattr(other, name), getattr(setup, name))


def test_the_formats_of_a_run_are_chosen_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run has them from its folder, an older one had the usual ones without saying so."""

    def wanted(**settings: Any) -> Any:
        usual = {"cache": tmp_path / "cache", "out": tmp_path / "run", "precision": "auto"}
        return config(photos, **(usual | settings))

    best = Formats("float32", "contiguous")
    fast, slow = Rates(10.0, 10.0), Rates(1.0, 1.0)
    rates = {" ".join(each): fast if each == best else slow for each in formats(CPU)}
    monkeypatch.setattr(precision, "_measure", lambda *_: rates)
    pretrain(wanted(), stop_after=1)
    begun = read_config(tmp_path / "run")
    assert (begun["run"]["precision"], begun["run"]["memory_format"]) == best

    monkeypatch.delattr(precision, "_measure")
    with ExitStack() as stack:
        setup = prepare(wanted(cache=tmp_path / "another"), stack)
    assert setup.compute[1:] == (torch.float32, torch.contiguous_format)
    assert not any(choice.option.startswith("precision") for choice in setup.choices)
    pretrain(wanted(cache=tmp_path / "another"), stop_after=2)
    pretrain(wanted(memory_format="channels_last"), stop_after=3)
    with pytest.raises(UserError, match="--precision was float32, is bfloat16"):
        pretrain(wanted(precision="bfloat16"))

    begun["run"] |= {"precision": "auto"}
    del begun["run"]["memory_format"]
    write_json(tmp_path / "run" / "config.json", begun)
    with ExitStack() as stack:
        compute = prepare(wanted(), stack).compute
    assert compute == Compute(CPU, pick_dtype(CPU, "auto"), torch.channels_last)
    assert (pretrain(wanted()) / "encoder.safetensors").exists()


@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
@pytest.mark.parametrize("loading", ["packed", "streamed"])
def test_weights_and_views_have_the_runs_memory_format(
    photos: Path, loading: str, memory_format: str
) -> None:
    setup = prepared(photos, loading=loading, memory_format=memory_format, precision="float32")
    wanted = MEMORY_FORMATS[memory_format]
    weights = [p for p in build(setup).parameters() if p.ndim == 4 and p.shape[2] > 1]
    with closing(setup.batches(print)) as batches:
        views = setup.make_views(next(batches))
    index = torch.arange(4)
    parts = setup.images.evaluation_batches(
        index, setup.input, compute=setup.compute, on_unreadable=print
    )
    seen = [view for _, view in parts]
    for each in (*weights, *views, *seen, watched_views(setup)):
        assert each.is_contiguous(memory_format=wanted)


def test_a_plan_goes_on_where_it_was_left(photos: Path) -> None:
    setup = prepared(photos)
    assert (setup.steps_per_epoch, setup.steps) == (3, 6)
    whole = [(index.tolist(), draws.initial_seed()) for index, draws in plan(setup)]
    assert len(whole) == setup.steps
    for start in range(setup.steps + 1):
        rest = [(index.tolist(), draws.initial_seed()) for index, draws in plan(setup, start)]
        assert rest == whole[start:]
    for epoch in (whole[:3], whole[3:]):
        assert sorted(i for index, _ in epoch for i in index) == list(range(IMAGES))


def test_the_loss_is_read_at_the_end_of_each_epoch_on_every_device(photos: Path) -> None:
    setup = prepared(photos)
    assert all(setup.looks(step) for step in range(setup.steps)), "on the CPU always"
    gpu = setup.compute._replace(device=torch.device("cuda"))
    on_gpu = dataclasses.replace(setup, compute=gpu)
    assert [step for step in range(setup.steps) if on_gpu.looks(step)] == [0, 2, 5]


def test_a_holdout_is_a_part_of_each_class(photos: Path) -> None:
    images = opened_photos(photos)
    bank, held_out = split_holdout(images, 0.25, seed=3)
    assert sorted([*bank.tolist(), *held_out.tolist()]) == list(range(IMAGES))
    assert images.labels is not None
    assert torch.bincount(images.labels[held_out]).tolist() == [4, 4, 4]
    assert torch.equal(held_out, split_holdout(images, 0.25, seed=3)[1])
    assert not torch.equal(held_out, split_holdout(images, 0.25, seed=4)[1])
    without = opened_photos(photos / "train")
    assert without.labels is None
    bank, held_out = split_holdout(without, 0.25, seed=3)
    assert (len(bank), len(held_out)) == (IMAGES, 0)


def test_mixers_by_name() -> None:
    assert mixer_of("none") is None
    assert mixer_of("mixco") is mixco


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_the_weights(photos: Path, method: str) -> None:
    needed = needed_by(method, photos.parent)
    one, same, other = (
        build(prepared(photos, method=method, seed=seed, **needed)).state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.ddp
def test_a_run_writes_nothing_on_ranks_above_0(photos: Path, tmp_path: Path) -> None:
    folders = {rank: tmp_path / f"rank-{rank}" for rank in range(2)}
    prepared(photos)  # the images are packed before two processes want them
    found = in_processes(2, a_run_with_a_folder_each, photos, tmp_path, folders)
    # The first one tells the others that the run is finished.
    assert found == [{"finished": True, "step": 3}] * 2
    assert (folders[0] / "encoder.safetensors").exists()
    assert len(read_metrics(folders[0])) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-0"]
