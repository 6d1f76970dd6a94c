"""Runs of tiny encoders, prepared, and made by several processes."""

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from configs import pretrain_config

from mixco.runtime.distributed import rank
from mixco.runtime.seeding import generator_for
from mixco.settings.config import PretrainConfig
from mixco.training.build import build
from mixco.training.optimisers import build_optimizer
from mixco.training.run import opened
from mixco.training.setup import Setup, prepare
from mixco.training.step import forward_backward, update

BATCH = 16


def config(photos: Path, **settings: Any) -> PretrainConfig:
    usual = {
        "size": 32,
        "arch": "test_resnet",
        "stem": "standard",
        "batch_size": BATCH,
        "epochs": 2,
    }
    places = {"data": str(photos), "cache": photos.parent / "cache", "out": photos.parent / "run"}
    return pretrain_config(**{**usual, **places, **settings})


def prepared(photos: Path, **settings: Any) -> Setup:
    with ExitStack() as stack:
        return prepare(config(photos, **settings), stack)


def a_run_with_a_folder_each(photos: Path, places: Path, rank_of_folder: dict[int, Path]) -> Any:
    """A run of one epoch, with a checkpoint and its end, on each process in a folder of its own."""
    setup = prepared(photos, out=places / "shared")
    run_settings = dataclasses.replace(setup.settings.run, out=rank_of_folder[rank()])
    settings = dataclasses.replace(setup.settings, run=run_settings)
    setup = dataclasses.replace(setup, settings=settings)
    method = build(setup)
    optimizer = build_optimizer(method, "sgd", 0.0)
    with opened(setup) as run:
        assert not run.finished
        state = run.restore(method, optimizer)
        batches = setup.batches(run.on_unreadable)
        for step in range(setup.steps_per_epoch):
            both = setup.make_views(next(batches))
            draws = generator_for(0, "method", step=step)
            losses = forward_backward(method, both, draws, compute=setup.compute, batch=BATCH)
            state.add(losses, 0.1)
            state.look(step + 1)
            update(optimizer, 0.1)
            state.count(BATCH)
        state.end_epoch()
        run.log(state)
        run.save(method, optimizer, state)
        run.finish(method, state)
        batches.close()
    with opened(setup) as again:
        return {"finished": again.finished, "step": state.step}
