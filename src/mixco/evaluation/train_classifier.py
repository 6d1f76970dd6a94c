"""A classifier trained on augmented images: on the frozen encoder, or the whole network with it.

Frozen, it is linear evaluation as published (He et al. 2020, section 4.1; Kim et al. 2020): the
encoder stays as it is, running statistics included, and a linear layer learns on top. Otherwise it is
fine-tuning, or from random weights the supervised baseline.
"""

import json
import math
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mixco.data.images import Images, Plan
from mixco.data.loading import epoch_batches
from mixco.encoders.checkpoint import fingerprint
from mixco.models.encoder import drops_at_random
from mixco.runtime.device import Compute
from mixco.runtime.errors import UserError
from mixco.runtime.files import replacing
from mixco.runtime.progress import Stopwatch, say, training, waited
from mixco.runtime.seeding import generator_for, global_draws
from mixco.training.schedules import learning_rate
from mixco.views.augment import Augmentation


class Classifier(nn.Module):
    """Backbone, then a linear layer in float32: images [B, C, S, S] -> logits float32 [B, classes].

    The layer's weights are drawn from N(0, 0.01), its biases are zero, as published.
    """

    def __init__(self, backbone: nn.Module, features: int, classes: int, seed: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        # Without torch's own initialisation, which would draw from the global generator.
        self.head = nn.utils.skip_init(nn.Linear, features, classes)  # type: ignore[no-untyped-call]
        nn.init.normal_(self.head.weight, std=0.01, generator=generator_for(seed, "classifier"))
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.backbone(images))

    def classify(self, features: Tensor) -> Tensor:
        """[B, D] of any dtype -> logits; outside autocast, whose logits would be coarse."""
        with torch.autocast(features.device.type, enabled=False):
            return cast(Tensor, self.head(features.float()))


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; top1 and top5 in percent of the test split."""

    epoch: int
    loss: float
    top1: float
    top5: float


def train_classifier(
    model: Classifier,
    images: Images,
    test: Callable[[], tuple[float, float]],
    *,
    frozen: bool,
    augmentation: Augmentation,
    optimizer: str,
    lr: float,
    head_lr: float,
    weight_decay: float,
    schedule: str,
    milestones: tuple[float, ...],
    batch_size: int,
    epochs: int,
    seed: int,
    compute: Compute,
    name: str,
) -> list[Epoch]:
    """Train in place; the records of all epochs, of which the last is the result.

    images: labelled. test: top-1 and top-5 in percent, asked after each epoch; nothing is chosen by it.
    frozen: the backbone is in evaluation mode and no gradient reaches it. Else all of it learns.
    optimizer: "sgd" (momentum 0.9) or "adam". lr: peak rate of the backbone; head_lr: of the layer.
    schedule, milestones: see training/schedules.py. batch_size: cut down to the number of images;
        images that fill no batch are left out of an epoch, others in each.
    name: for the progress bar.

    Raises UserError when the loss is not finite, RuntimeError when a frozen backbone has changed.
    """
    assert images.labels is not None
    device = compute.device
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train(not frozen)
    model.backbone.requires_grad_(not frozen)
    before = fingerprint(model.backbone) if frozen else ""
    drops = not frozen and drops_at_random(model)
    groups = [{"params": list(model.head.parameters()), "peak": head_lr}]
    if not frozen:
        groups.append({"params": list(model.backbone.parameters()), "peak": lr})
    chosen: torch.optim.Optimizer = (
        torch.optim.SGD(groups, lr=0.0, momentum=0.9, weight_decay=weight_decay)
        if optimizer == "sgd"
        else torch.optim.Adam(groups, lr=0.0, weight_decay=weight_decay)
    )
    members = torch.arange(len(images))
    batch_size = min(batch_size, len(members))
    steps_per_epoch = len(members) // batch_size
    steps = epochs * steps_per_epoch
    views = images.view_batches(
        plan(members, batch_size, epochs, seed),
        augmentation,
        members=members,
        batch_size=batch_size,
        compute=compute,
        on_unreadable=lambda file, reason: say(f"warning: {file} cannot be read ({reason})"),
        count=1,
    )
    records: list[Epoch] = []
    watch = Stopwatch()
    step = 0
    with training(name, steps) as on_step, closing(views):
        for epoch in range(1, epochs + 1):
            watch.reset()
            total = torch.zeros((), device=device)
            for index, (view,) in waited(islice(views, steps_per_epoch), watch):
                labels = images.labels[index].to(device)
                for group in chosen.param_groups:
                    group["lr"] = learning_rate(
                        step,
                        steps=steps,
                        peak=group["peak"],
                        schedule=schedule,
                        milestones=milestones,
                    )
                dropout = generator_for(seed, "classifier dropout", step=step)
                with (
                    compute.autocast(),
                    global_draws(dropout, device) if drops else nullcontext(),
                ):
                    loss = F.cross_entropy(model(view), labels)
                loss.backward()  # type: ignore[no-untyped-call]
                chosen.step()
                chosen.zero_grad(set_to_none=True)
                total += loss.detach()
                step += 1
                watch.images += len(index)
                on_step(f"epoch {epoch}/{epochs}", {}, watch)

            # Once an epoch: each look waits for the device, and until the end nothing is saved.
            if not math.isfinite(total.item()):
                raise UserError(
                    f"{name}: the loss is not finite in epoch {epoch}; nothing was saved. Lower --lr "
                    f"(the peak rate of the layer was {head_lr:g}), or give --precision float32"
                )
            top1, top5 = test()
            records.append(
                Epoch(epoch, total.item() / steps_per_epoch, round(top1, 2), round(top5, 2))
            )
            if epoch in (1, epochs) or epoch % max(1, epochs // 10) == 0:
                say(
                    f"epoch {epoch:>4}/{epochs}  loss {records[-1].loss:.3f}  "
                    f"top-1 {top1:.1f} %  {watch.rate:,.0f} images/s"
                )
    if frozen and fingerprint(model.backbone) != before:
        raise RuntimeError(
            "the frozen encoder has changed while the classifier was trained: a weight or a running "
            "statistic moved, so this is no linear evaluation; nothing was saved"
        )
    return records


def plan(members: Tensor, batch_size: int, epochs: int, seed: int) -> Plan:
    """Of every step the images, int64 [B], and where the draws of their views come from."""
    step = 0
    for epoch in range(1, epochs + 1):
        shuffle = generator_for(seed, "classifier epoch", step=epoch)
        for index in epoch_batches(members, batch_size, shuffle):
            yield index, generator_for(seed, "classifier views", step=step)
            step += 1


def save_classifier(
    path: Path, model: Classifier, classes: tuple[str, ...], *, whole: bool
) -> None:
    """Write atomically: the linear layer and which encoder it is for, or the whole network.

    Keys are head.weight [classes, D], head.bias, and for the whole network backbone.* with timm's
    keys. The file's metadata hold the class names.
    """
    tensors = {
        key: value.detach().cpu().contiguous()
        for key, value in model.state_dict().items()
        if whole or key.startswith("head.")
    }
    notes = {"classes": classes, "encoder": None if whole else fingerprint(model.backbone)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"mixco-classifier": json.dumps(notes)})


def load_classifier(path: Path, model: Classifier, classes: tuple[str, ...]) -> None:
    """Load what `save_classifier` wrote into the model, all of it.

    Raises UserError when the file is missing, damaged or of another kind, when its classes are not
    `classes`, and when a linear layer was trained on another encoder than the model's.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; train the classifier before --evaluate")
    try:
        with safe_open(path, "pt") as file:
            notes = json.loads((file.metadata() or {}).get("mixco-classifier", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: damaged or not a classifier ({error}); train it again") from None
    if notes is None:
        raise UserError(f"{path}: a safetensors file, but not a classifier of mixco")
    if tuple(notes["classes"]) != classes:
        raise UserError(
            f"{path}: this classifier knows the {len(notes['classes'])} classes "
            f"{', '.join(notes['classes'][:3])}, ...; the images have {len(classes)}: "
            f"{', '.join(classes[:3])}, ..."
        )
    if notes["encoder"] is not None:
        if notes["encoder"] != fingerprint(model.backbone):
            raise UserError(
                f"{path}: this classifier was trained on another encoder; train it again"
            )
        tensors |= {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: the weights do not fit this network ({reason})") from None
