"""Pretraining: the loop, top to bottom."""

from contextlib import ExitStack, closing
from pathlib import Path
from typing import cast

from mixco.methods.protocol import Method
from mixco.models.encoder import Encoder
from mixco.runtime.distributed import all_reduce_max, broadcast_buffers, ddp, rank, world
from mixco.runtime.errors import explain_machine_failures
from mixco.runtime.progress import say, training, waited
from mixco.settings.config import PretrainConfig
from mixco.training.build import build
from mixco.training.capture import build_step
from mixco.training.checkpoints import is_finished, signals_noticed
from mixco.training.loggers import require
from mixco.training.monitor import monitor, watched_views
from mixco.training.optimisers import build_optimizer
from mixco.training.rehearsal import Rehearsal, rehearse
from mixco.training.run import leave, not_finite, opened
from mixco.training.schedules import learning_rate
from mixco.training.setup import Setup, prepare

# Other settings would make it another run, but for the micro-batches.
REMEDY = "raise --micro-batches, or lower --batch-size, --queue or --size and give another --out"


def pretrain(
    config: PretrainConfig,
    *,
    stop_after: int | None = None,
    rehearsals: tuple[Rehearsal, ...] = (),
) -> Path:
    """Train an encoder without labels and leave everything in a run folder (see run_folder.py).

    A run that was stopped there, at any moment, is resumed and ends as one that never was stopped, with
    the same weights, queue, optimiser and metrics: on the CPU bit for bit. A finished run stays as it
    is.

    Where torchrun started several processes, each trains on its part of every batch and the first one
    writes; the run is the one that a single process would make, but for rounding and batch norms.

    Before the first step everything that comes last is tried: saving, reading back, drawing.

    stop_after: save and return after this step of the run; the same call without it resumes.
    rehearsals: what else is tried then.

    Returns the run folder. Raises UserError for what the user can mend, also for a loss that is not
    finite: then the last good checkpoint stays. On SIGINT, SIGTERM and SIGHUP the step is finished and
    saved, and KeyboardInterrupt or SystemExit(128 + its number) raised; a second signal acts at once.
    """
    require(config.run.log_to)
    with ExitStack() as stack, explain_machine_failures(REMEDY):
        return train(prepare(config, stack), stack, stop_after, rehearsals)


def train(
    setup: Setup,
    stack: ExitStack,
    stop_after: int | None = None,
    rehearsals: tuple[Rehearsal, ...] = (),
) -> Path:
    """The run of a setup, see `pretrain`. stack: given back when it is left, however."""
    compute, run_settings = setup.compute, setup.settings.run
    optimisation = setup.settings.optimisation
    method = build(setup)  # before the folder is made: what cannot be built leaves none
    peak = optimisation.lr
    optimizer = build_optimizer(method, optimisation.optimizer, optimisation.weight_decay, peak)
    if rank() == 0 and not is_finished(run_settings.out):
        rehearse(setup, method, rehearsals)
    run = stack.enter_context(opened(setup))
    if run.finished:
        say(f"{run.folder}: this run is finished already")
        return run.folder
    state = run.restore(method, optimizer)
    encoder, after_step = cast(Encoder, method.encoder), cast(Method, method).after_step
    take = build_step(setup, method, ddp(method.train()), optimizer, setup.steps - state.step)
    batches = setup.batches(run.on_unreadable, start=state.step)
    watched = watched_views(setup)
    with (
        training(setup.name, setup.steps, state.records, done=state.step) as on_step,
        closing(batches),
        signals_noticed() as signal_that_came,
    ):
        state.epoch.reset()
        for drawn in waited(batches, state.epoch, state.whole):
            step, epoch = state.step, len(state.records) + 1
            lr = learning_rate(
                step,
                steps=setup.steps,
                peak=peak,
                schedule=optimisation.schedule,
                warmup=optimisation.warmup,
                milestones=optimisation.milestones,
            )
            losses = take.losses(drawn, step)
            looks, steps = setup.looks(step), step % setup.steps_per_epoch + 1
            state.add(losses, lr)
            if looks and not state.look(steps):  # before a bad step reaches the weights
                raise not_finite("the loss is", setup, state)
            take.update(lr)
            state.count(optimisation.batch_size)
            after_step(state.step / setup.steps)
            text = f"epoch {epoch}/{optimisation.epochs}"
            on_step(text, {**state.means, "lr": lr}, state.epoch)

            ends, last = steps == setup.steps_per_epoch, state.step == setup.steps
            if ends:
                broadcast_buffers(encoder)  # the checks are shared, and are of one encoder
                record = state.end_epoch()
                record |= monitor(setup, encoder, watched, epoch, run.on_unreadable)
                run.log(state)
            keep = ends and run_settings.keep_every > 0 and epoch % run_settings.keep_every == 0
            # Processes must agree, which makes them wait for the device: only when they look.
            asked = 0
            if world() == 1 or looks or run.due.by_steps(state.step):
                asked = all_reduce_max(2 * signal_that_came() + run.due(state.step), compute.device)
            stops = state.step == stop_after
            if asked or keep or last or stops:
                run.save(method, optimizer, state, keep=keep)
            if asked > 1 and not last:
                leave(asked // 2, run, state)
            if stops and not last:
                return run.folder
            if ends:
                state.epoch.reset()
    run.finish(method, state)
    return run.folder
