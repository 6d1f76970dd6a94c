"""What the 2020 code computes, in float64, equalled to 1e-9 (relative).

Only its lambda is float32, and so is its 1 - lambda: lambda is drawn in float32.
"""

import pytest
import torch
import torch.nn.functional as F
from golden_vectors import (
    Body,
    encoder,
    equal,
    equal_gradients,
    equal_keys,
    linear,
    load,
    names,
)
from torch import Tensor

from mixco.losses import similarity_logits
from mixco.methods.moco import MoCo
from mixco.methods.simclr import SimCLR
from mixco.mixing import Mixer, Pairs, blend
from mixco.models.encoder import Encoder


def mixer(*lam: Tensor) -> Mixer:
    """The halves of the batch blended; each draw takes the next lambda, the last one again and again."""
    left = list(lam)

    def draw(batch: int, _: torch.Generator) -> Pairs:
        first = torch.arange(batch // 2)
        return Pairs(first, first + batch // 2, (left.pop(0) if len(left) > 1 else left[0]).float())

    return Mixer(draw, blend)


@pytest.mark.parametrize("name", names("moco_*.npz") + names("mixco_*.npz"))
def test_moco(name: str) -> None:
    golden = load(name)
    temperature = golden["temperature"].item()
    mix_temperature = golden["mix_temperature"].item() if "lam" in golden else 1.0

    mix = mixer(golden["lam"]) if "lam" in golden else None
    generator = torch.Generator().manual_seed(0)
    method = MoCo(
        encoder(golden, "before.encoder_q"),
        dim=8,
        queue=golden["before.queue"].shape[1],
        momentum=golden["momentum"].item(),
        temperature=temperature,
        mix=mix,
        mix_temperature=mix_temperature,
        mix_weight=1.0,
        bn_splits=1,
        generator=generator,
    ).double()
    method.key_encoder.load_state_dict(encoder(golden, "before.encoder_k").state_dict())
    method.queue.keys.copy_(golden["before.queue"].T)
    method.queue.pointer.fill_(golden["before.queue_ptr"].item())
    queue_before = method.queue.keys.clone()

    losses = method([golden["im_q"], golden["im_k"]], generator)
    losses["loss"].backward()

    equal(losses["loss"], golden["loss"])
    equal_gradients(method.encoder, golden)
    equal_keys(method, golden)
    assert method.queue.pointer.item() == golden["ptr_after"].item()

    keys = F.normalize(method.key_encoder(golden["im_k"]), dim=1)
    queries = F.normalize(method.encoder(golden["im_q"]), dim=1)
    candidates = torch.cat([keys, queue_before])
    logits = similarity_logits(queries, candidates, temperature)
    batch = len(queries)
    equal(torch.cat([logits.diag()[:, None], logits[:, batch:]], dim=1), golden["logits"])
    if mix is not None:
        mixed = mix(golden["im_q"], generator)
        mixed_queries = F.normalize(method.encoder(mixed.images), dim=1)
        equal(similarity_logits(mixed_queries, candidates, mix_temperature), golden["logits_mix"])
        equal(mixed.targets.double(), golden["labels_mix"][:, :batch])
        assert golden["labels_mix"][:, batch:].eq(0).all()


@pytest.mark.parametrize("name", names("simclr_mixco_*.npz"))
def test_simclr(name: str) -> None:
    golden = load(name)
    head = linear(golden["weight.head.weight"], golden["weight.head.bias"])
    method = SimCLR(
        Encoder(Body(golden["weight.body.weight"]), head),
        temperature=golden["temperature"].item(),
        mix=mixer(golden["lam_i"], golden["lam_j"]),
        mix_temperature=golden["mix_temperature"].item(),
        mix_weight=1.0,
    )
    losses = method([golden["x_i"], golden["x_j"]], torch.Generator())
    losses["loss"].backward()

    equal(losses["clean"], golden["loss_clean"])
    equal(losses["loss"], golden["loss_total"])
    equal(losses["mixed"], golden["loss_total"] - golden["loss_clean"])
    for key, parameter in method.encoder.named_parameters():
        assert parameter.grad is not None
        equal(parameter.grad, golden[f"grad.{key.replace('backbone.', '')}"])
