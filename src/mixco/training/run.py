"""The run folder while a run is in it. On ranks above 0 nothing is written: the first process does."""

import dataclasses
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from mixco.data.decode import RGB
from mixco.data.images import Images
from mixco.encoders.checkpoint import save_encoder
from mixco.plots import draw_curves, draw_views
from mixco.runtime.device import describe
from mixco.runtime.distributed import broadcast_object, rank, world
from mixco.runtime.errors import UserError
from mixco.runtime.files import in_line, naming, replacing, shown
from mixco.runtime.progress import NUMBERS, in_words, redraws, say
from mixco.runtime.run_folder import (
    add_result,
    append_metrics,
    versions,
    write_json,
    write_metrics,
)
from mixco.runtime.seeding import generator_for
from mixco.settings.resolve import to_dict
from mixco.settings.warnings import of_settings
from mixco.training.checkpoints import (
    Due,
    is_finished,
    newest_state,
    open_run,
    restore,
    save_step,
)
from mixco.training.loggers import followed_by
from mixco.training.monitor import warn_of_collapse
from mixco.training.setup import Setup, mixer_of
from mixco.training.state import Record, TrainState, restored
from mixco.views.augment import Augmentation
from mixco.views.preview import Preview, preview


class Run:
    """Where a run is written: settings, metrics, checkpoints, and at the end the encoder."""

    def __init__(self, setup: Setup, stack: ExitStack) -> None:
        self.setup = setup
        self.folder = setup.settings.run.out
        self.first = rank() == 0
        self._stack = stack
        self._log: Callable[[Sequence[Record]], None] = lambda _: None
        run = setup.settings.run
        self.due = Due(run.checkpoint_minutes, run.checkpoint_steps)
        if self.first:
            stack.enter_context(open_run(self.folder, to_dict(setup.settings), say))
        self.finished: bool = broadcast_object(self.first and is_finished(self.folder))

    def restore(self, method: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
        """Go on from the newest checkpoint, or begin with one of step 0."""
        if self.first:
            device = describe(self.setup.compute.device)
            write_json(self.folder / "versions.json", versions(device))
            self._report_data()
        saved = broadcast_object(newest_state(self.folder, say) if self.first else None)
        state = TrainState()
        if saved is not None:
            images = self.setup.images
            if saved["data"] != self._identity():
                raise UserError(
                    f"--out {self.folder}: the run began on {saved['data']['images']:,} images of "
                    f"{saved['data']['name']}, now there are {len(images):,} of {images.source.name}; "
                    "give the same images to resume it, or another --out"
                )
            restore(method, optimizer, saved)
            state = restored(saved, self.setup.compute.device)
        if self.first:
            write_metrics(self.folder, state.records)
        say(summary(self.setup))
        if saved is None:
            for choice in self.setup.choices:
                say(f"  --{choice.option} {choice.value}: {choice.why}")
            self.save(method, optimizer, state)
        else:
            say(f"going on after step {state.step:,} of {self.setup.steps:,}")
        services = self.setup.settings.run.log_to if self.first else None
        done, config = len(state.records), to_dict(self.setup.settings)
        self._log = self._stack.enter_context(followed_by(services, self.folder, config, done))
        return state

    def log(self, state: TrainState) -> None:
        """Write the record of the epoch that is over, and say it."""
        record, optimisation = state.records[-1], self.setup.settings.optimisation
        if self.first:
            append_metrics(self.folder, record)
        self._log(state.records)
        left = (self.setup.steps - state.step) * optimisation.batch_size
        say_epoch(record, optimisation.epochs, left)
        warn_of_collapse(state.records)

    def save(
        self,
        method: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: TrainState,
        *,
        keep: bool = False,
    ) -> None:
        """Write a checkpoint. keep: for good.

        Raises UserError when a weight is not finite: the checkpoint before it stays the last one.
        """
        self.due.saved()
        if not self.first:
            return
        # The loss of the last step says nothing of the weights that came after it.
        if not all(value.isfinite().all() for value in method.state_dict().values()):
            raise not_finite("the weights are", self.setup, state)
        content = {
            "method": method.state_dict(),
            "optimizer": optimizer.state_dict(),
            **state.saved(),
            "data": self._identity(),
            "encoder": dataclasses.asdict(self.setup.encoder),
            "config": to_dict(self.setup.settings),
        }
        save_step(self.folder, state.step, content, keep=keep)

    def on_unreadable(self, file: str, reason: str) -> None:
        """List an image that cannot be read, once."""
        if self.folder.is_dir():  # other machines may not share it
            path, line = self.folder / "unreadable.txt", f"{in_line(file)}\t{reason}\n"
            with (
                naming(path),
                path.open("a+", encoding="utf-8", errors="surrogateescape") as listed,
            ):
                listed.seek(0)
                if line not in listed:
                    listed.write(line)
        place = shown(str(self.setup.images.source.root / file))
        say(f"warning: {place} cannot be read ({reason}); left out")

    def finish(self, method: nn.Module, state: TrainState) -> None:
        """Write the encoder, the pictures and the result."""
        if not self.first:
            return
        setup, folder = self.setup, self.folder
        backbone = method.get_submodule("encoder.backbone")
        save_encoder(folder / "encoder.safetensors", backbone, setup.encoder)
        mix, seed = setup.settings.method.mix, setup.settings.run.seed
        seen = preview_of(setup.images, setup.augmentation, mix, seed)
        picture = (seen.originals, seen.view_q, seen.view_k, seen.mixed, seen.pairs)
        draw_views(folder / "views.png", *picture)
        draw_curves(folder / "curves.png", {setup.name: state.records})
        result = {
            "method": setup.name,
            "data": setup.images.source.name,
            "images": len(setup.members),
            "arch": setup.settings.model.arch,
            "size": setup.settings.data.size,
            "epochs": setup.settings.optimisation.epochs,
            "loss": state.records[-1]["loss"],
            "images_per_second": round(state.whole.rate, 1),
            "data_wait": round(state.whole.data_wait, 4),
            "seconds": round(state.whole.seconds, 1),
            "seed": setup.settings.run.seed,
        }
        add_result(folder, "pretrain", result)

    def _identity(self) -> dict[str, Any]:
        """The images, as far as a checkpoint remembers them."""
        return {"name": self.setup.images.source.name, "images": len(self.setup.images)}

    def _report_data(self) -> None:
        """List the images that were left out, and warn of what may spoil the run."""
        setup, path = self.setup, self.folder / "unreadable.txt"
        if unreadable := setup.images.unreadable_files:
            lines = [f"{in_line(file)}\t{reason}\n" for file, reason in unreadable]
            with replacing(path) as temporary:
                temporary.write_text("".join(lines), "utf-8", "surrogateescape")
            say(f"{len(lines)} unreadable images left out, listed in {path}")
        size, side = setup.settings.data.size, setup.images.longest_side
        if side is not None and side < size:
            say(
                f"warning: no image is longer than {side} px, so --size {size} only enlarges them; "
                f"--size {max(32, side)} shows as much in less time"
            )
        bfloat16 = setup.compute.dtype == torch.bfloat16
        for warning in of_settings(setup.settings, len(setup.members), bfloat16=bfloat16):
            say(f"warning: {warning}")


@contextmanager
def opened(setup: Setup) -> Iterator[Run]:
    """Inside, the run folder is this run's alone, and its loggers follow it.

    Raises UserError when the folder holds something else or another run, or is in use.
    """
    with ExitStack() as stack:
        yield Run(setup, stack)


def summary(setup: Setup) -> str:
    """A run in one line."""
    images, settings, compute = setup.images, setup.settings, setup.compute
    pixel, processes = images.source.pixel, world()
    return (
        f"{setup.name}: {settings.model.arch} at {settings.data.size} px, {len(setup.members):,} images "
        f"{'' if pixel == RGB else f'with {pixel}, '}{setup.loading}, "
        f"{settings.optimisation.epochs} epochs of {setup.steps_per_epoch} steps, "
        f"{f'{processes} processes, each ' if processes > 1 else ''}{describe(compute.device)}, "
        f"{str(compute.dtype).removeprefix('torch.')}"
    )


def preview_of(images: Images, augmentation: Augmentation, mix: str, seed: int) -> Preview:
    """Eight images as training sees them: their views, and mixed images of these."""
    index = torch.linspace(0, len(images) - 1, min(8, len(images))).long()
    originals, extents = images.canvases(index, 2 * augmentation.input.size)
    draws = generator_for(seed, "what it saw")
    return preview(originals, extents, augmentation, mixer_of(mix), draws)


def say_epoch(record: Record, epochs: int, images_left: int) -> None:
    """A line in the log at each kNN check, the first and the last epoch, and each tenth of the run.

    images_left: how many images the rest of the run trains on, each counted as often as it is seen.
    """
    epoch = int(record["epoch"])
    if "knn" in record or epoch in (1, epochs) or epoch % max(1, epochs // 10) == 0:
        # A bar, where there is one, shows the rest.
        lasting = ("loss", "accuracy", "knn") if redraws() else NUMBERS
        left = None if redraws() else images_left / record["images_per_second"]
        say(f"epoch {epoch:>{len(str(epochs))}}/{epochs}  {in_words(record, lasting, left)}")


def not_finite(what: str, setup: Setup, state: TrainState) -> UserError:
    method, step = setup.settings.method, state.step
    return UserError(
        f"{what} not finite at step {step} (learning rate {state.lr:.3g}, temperature "
        f"{method.temperature:g}, mixed temperature {method.mix_temperature:g}); "
        f"the last good checkpoint is in {setup.settings.run.out / 'checkpoints'}. "
        "Lower --lr, raise --temperature or --warmup, or give --precision float32"
    )


def leave(number: int, run: Run, state: TrainState) -> None:
    """End the process as a signal asks: KeyboardInterrupt, or SystemExit with 128 + its number."""
    where = f"saved in {run.folder}; the same command goes on from there"
    what = f"stopped after step {state.step:,}, {where}"
    if number == signal.SIGINT:
        raise KeyboardInterrupt(what)
    say(what)
    raise SystemExit(128 + number)
