"""A step never waits for the device: nothing is read back, and nothing is copied with waiting.

The device here is torch's "meta", which holds no values: whatever would read one back fails on it, as
it would wait on a GPU. Copies to it are looked at one by one. (Not seen: torch.tensor with a device.)
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from configs import resolved
from sample_images import sample_images
from torch.utils._python_dispatch import TorchDispatchMode

from mixco.data.packed import take_rows
from mixco.methods import METHODS
from mixco.models.encoder import build_backbone
from mixco.runtime.device import Compute
from mixco.runtime.seeding import generator_for
from mixco.training.build import build_method
from mixco.training.step import forward_backward, update
from mixco.training.teacher import Teacher
from mixco.views import augment as views
from mixco.views.augmentation import AUGMENTATIONS, Input

META = torch.device("meta")


class WaitingCopies(TorchDispatchMode):
    """Collects the copies from the CPU to the device that make the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            target, source = out, args[0] if name == "_to_copy" else args[1]
            if target.device == META and source.device != META:
                self.copies += 1
                if not (kwargs or {}).get("non_blocking", args[2] if len(args) > 2 else False):
                    self.waiting.append(f"{name} of {list(source.shape)}")
        return out


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("mix", ["none", "mixco"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_makes_no_round_trip(
    method: str, mix: str, augmentation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # "meta" has no autocast.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    own: dict[str, dict[str, Any]] = {
        "moco": {"queue": 64},
        "distil": {"queue": 64, "teacher": "a run", "dim": 96},
    }
    settings = resolved(
        images=64, size=32, method=method, mix=mix, batch_size=16, epochs=1, **own.get(method, {})
    )
    teacher = Teacher(
        build_backbone("test_resnet", 48, "standard").eval().to(META),
        name="test_resnet",
        input=Input(48, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)),
        views=Input(32),
        dim=96,
        compute=Compute(META, torch.float32),
    )
    taught = teacher if METHODS[method].teacher else None
    model = build_method(settings, teacher=taught).to(META).train()
    canvases = sample_images(32).to(META)
    extents = torch.tensor([[64, 64]]).expand(32, 2)
    index = torch.randperm(32, generator=torch.Generator().manual_seed(0))[:16]
    chosen = AUGMENTATIONS[augmentation](Input(32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)

    with WaitingCopies() as copies:
        batch = take_rows(canvases, index, META)
        draws = generator_for(0, "views")
        both = views.two_views(batch, extents[index], chosen, draws, torch.bfloat16)
        losses = forward_backward(
            model,
            [view.float() for view in both[: METHODS[method].views]],
            generator_for(0, "method"),
            compute=Compute(META, torch.float32),
        )
        update(optimizer, 1e-3)
    assert losses["loss"].device == META
    assert copies.copies > 0
    assert copies.waiting == []


def test_what_waits_is_seen() -> None:
    values = torch.arange(3.0)
    with WaitingCopies() as copies:
        values.to(META)
        values.to(META, non_blocking=True)
    assert copies.waiting == ["_to_copy of [3]"]
    assert copies.copies == 2
    with pytest.raises(RuntimeError):
        values.to(META).sum().item()
