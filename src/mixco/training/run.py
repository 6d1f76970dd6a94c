"""The run folder while a run is in it. On ranks above 0 nothing is written: the first process does."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn

from mixco.data.datasets import Where
from mixco.data.decode import RGB
from mixco.data.image_list import ImageList
from mixco.data.run_images import digest, known_images, place_of, remember
from mixco.encoders.checkpoint import as_dict, save_encoder
from mixco.models.families import first_line
from mixco.runtime.device import describe, processor
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
from mixco.settings.config import label_source
from mixco.settings.defaults import SIZES
from mixco.settings.parse import to_dict
from mixco.settings.warnings import of_settings
from mixco.training.checkpoints import (
    Due,
    is_finished,
    newest_state,
    open_run,
    restore,
    save_step,
)
from mixco.training.initial_weights import keep
from mixco.training.loggers import followed_by
from mixco.training.monitor import warn_of_collapse
from mixco.training.pictures import draw_pictures
from mixco.training.setup import Setup
from mixco.training.state import Record, TrainState, restored


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
        if self.first and self.finished:
            self._remember_images()

    def restore(self, method: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
        """Go on from the newest checkpoint, or begin with one of step 0."""
        if self.first:
            device = describe(self.setup.compute.device)
            write_json(self.folder / "versions.json", versions(device, processor()))
            self._report_data()
        saved = broadcast_object(newest_state(self.folder, say) if self.first else None)
        state = TrainState()
        if saved is not None:
            images = self.setup.images
            if self._are_others(saved["data"]):
                raise UserError(
                    f"--out {self.folder}: the run began on {saved['data']['images']:,} images of "
                    f"{saved['data']['name']}, now there are {len(images):,} of {images.source.name}; "
                    "give the same images to resume it, or another --out"
                )
            if saved.get("teacher") != self._teacher:
                raise UserError(
                    f"--out {self.folder}: the run began with a teacher of other weights; give that "
                    "--teacher to resume it, or another --out"
                )
            restore(method, optimizer, saved)
            state = restored(saved, self.setup.compute.device)
        if self.first:
            self._remember_images()
            write_metrics(self.folder, state.records)
        say(summary(self.setup))
        if saved is None:
            for choice in self.setup.choices:
                say(f"  --{choice.option} {choice.value}: {choice.why}")
            self._keep_initial(method)
            self.save(method, optimizer, state)
        else:
            say(f"going on after step {state.step:,} of {self.setup.steps:,}")
        services = self.setup.settings.run.log_to if self.first else None
        done, config = len(state.records), to_dict(self.setup.settings)
        self._log = self._stack.enter_context(followed_by(services, self.folder, config, done))
        return state

    def _keep_initial(self, method: nn.Module) -> None:
        """Keep the weights that the run starts from, where there are any, and say what they are."""
        initial = self.setup.initial
        if initial is not None and self.first:
            about = initial.description
            # A report says where published weights are from.
            training = () if about.origin and initial.report else (about.training,)
            for line in (*training, *initial.report):
                say(f"  --init: {line}")
            keep(self.folder, initial, self.setup.encoder, method.get_submodule("encoder.backbone"))

    def log(self, state: TrainState) -> None:
        """Write the record of the epoch that is over, and say it."""
        record, optimisation = state.records[-1], self.setup.settings.optimisation
        if self.first:
            append_metrics(self.folder, record)
        self._log(state.records)
        left = (self.setup.steps - state.step) * optimisation.batch_size
        say_epoch(record, optimisation.epochs, left)
        warn_of_collapse(state.records, optimisation.warmup * optimisation.epochs)

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
            "data": self._identity,
            "encoder": as_dict(self.setup.encoder),
            **({"teacher": self._teacher} if self._teacher else {}),
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
        try:
            draw_pictures(folder, setup, state.records)
        except Exception as error:  # a picture is not worth a run
            reason = first_line(error) or type(error).__name__
            say(
                f"warning: the pictures of the run could not be drawn ({reason}); the rest is whole"
            )
        result: dict[str, Any] = {
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
        if setup.initial is not None:
            result |= setup.initial.description.provenance
        add_result(folder, "pretrain", result)

    def _remember_images(self) -> None:
        """Keep the list of the images in the run folder, and where they lie now."""
        data, known = self.setup.settings.data, known_images(self.folder)
        where = Where(data.data, data.data_path, label_source(data))
        if known and not known.is_at(where):
            say(f"the images are now at {place_of(where)}")
        elif known or self.finished:
            return
        remember(self.folder, where, data.cache, self.setup.images.source)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """The images, as far as a checkpoint remembers them."""
        images = self.setup.images
        listed = digest(images.source)
        return {"name": images.source.name, "images": len(images), "digest": listed}

    @property
    def _teacher(self) -> str | None:
        """The fingerprint of the teacher's weights."""
        return self.setup.teacher.fingerprint if self.setup.teacher else None

    def _are_others(self, saved: dict[str, Any]) -> bool:
        """Did the run begin on other images? An early checkpoint has no digest, only their name."""
        of_list = "digest" if "digest" in saved else "name"
        return any(saved[key] != self._identity[key] for key in (of_list, "images"))

    def _report_data(self) -> None:
        """List the images that were left out, and warn of what may spoil the run."""
        setup, path = self.setup, self.folder / "unreadable.txt"
        for note in setup.images.source.notes:
            say(note)
        if unreadable := setup.images.unreadable_files:
            lines = [f"{in_line(file)}\t{reason}\n" for file, reason in unreadable]
            with replacing(path) as temporary:
                temporary.write_text("".join(lines), "utf-8", "surrogateescape")
            say(f"{len(lines)} unreadable images left out, listed in {path}")
        elif setup.images.loading == "packed":
            path.unlink(missing_ok=True)  # of a start at which some could not be read
        size, side = setup.settings.data.size, setup.images.longest_side
        smaller = max(SIZES[0], side or 0)
        # Weights do best at their own size, also on images that are enlarged for it.
        if side is not None and smaller < size and setup.initial is None:
            say(
                f"warning: no image is longer than {side} px, so --size {size} only enlarges them; "
                f"--size {smaller} shows as much in less time"
            )
        if setup.settings.run.knn_every and (only := only_class(setup.images.source)):
            say(f"no kNN check: at least two class folders are expected, found one: {shown(only)}")
        bfloat16 = setup.compute.dtype == torch.bfloat16
        warnings = of_settings(
            setup.settings, len(setup.members), bfloat16=bfloat16, spread=setup.spread
        )
        for warning in warnings:
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
    side = str(settings.data.size)
    if settings.data.views != settings.data.size:
        side += f" px with views of {settings.data.views}"
    return (
        f"{setup.name}: {settings.model.arch} at {side} px, {len(setup.members):,} images "
        f"{'' if pixel == RGB else f'with {pixel}, '}{setup.loading}, "
        f"{settings.optimisation.epochs} epochs of {setup.steps_per_epoch} steps, "
        f"{f'{processes} processes, each ' if processes > 1 else ''}{describe(compute.device)}, "
        f"{str(compute.dtype).removeprefix('torch.')}"
    )


def only_class(source: ImageList) -> str | None:
    """The class of all images, or the one folder of train/ that they lie in; None for other layouts."""
    if source.classes:
        return source.classes[0] if len(source.classes) == 1 else None
    tops = {name.partition("/")[0] for name in source.files}
    in_folders = source.root.name == "train" and all("/" in name for name in source.files)
    return tops.pop() if in_folders and len(tops) == 1 else None


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
    method, step = vars(setup.settings.method), state.step
    clean, mixed = method["temperature"], method["mix_temperature"]
    cold = "" if clean is None else f", temperature {clean:g}, mixed temperature {mixed:g}"
    return UserError(
        f"{what} not finite at step {step} (learning rate {state.lr:.3g}{cold}); "
        f"the last good checkpoint is in {setup.settings.run.out / 'checkpoints'}. "
        f"Lower --lr, raise {'--temperature or ' if cold else ''}--warmup, or give --precision float32"
    )


def leave(number: int, run: Run, state: TrainState) -> None:
    """End the process as a signal asks: KeyboardInterrupt, or SystemExit with 128 + its number."""
    where = f"saved in {run.folder}; the same command goes on from there"
    what = f"stopped after step {state.step:,}, {where}"
    if number == signal.SIGINT:
        raise KeyboardInterrupt(what)
    say(what)
    raise SystemExit(128 + number)
