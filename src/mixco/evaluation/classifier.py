"""A backbone with a linear layer on top, and its file."""

import json
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mixco.encoders.checkpoint import fingerprint
from mixco.runtime.errors import UserError
from mixco.runtime.files import replacing
from mixco.runtime.seeding import generator_for


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


def save_classifier(
    path: Path, model: Classifier, classes: tuple[str, ...], *, whole: bool
) -> None:
    """Write atomically: the linear layer and its encoder's fingerprint, or the whole network.

    Keys: head.weight [classes, D], head.bias, and for the whole network backbone.* with timm's keys.
    The file's metadata hold the class names.
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
    """Load a file of `save_classifier` into the model, all of it.

    Raises UserError when the file is missing, damaged or no classifier, when its classes are not
    `classes`, and when a linear layer was trained on another encoder than the model's.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; train the classifier before --evaluate")
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
            f"{path}: trained on the {len(notes['classes'])} classes "
            f"{', '.join(notes['classes'][:3])}, ...; the images have {len(classes)}: "
            f"{', '.join(classes[:3])}, ...; train it again, or give other --data"
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
