"""What the codes of i-Mix and Un-Mix compute, in float64, equalled to 1e-9 (relative).

Their lambda is float64 and ours float32, in which all of these are exact.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_vectors import Body, linear, load, names
from torch import Tensor, nn

from mixco.losses import own_cross_entropy, similarity_logits
from mixco.methods.mixers import paste
from mixco.methods.moco import MoCo
from mixco.methods.simclr import SimCLR
from mixco.mixing import Mixer, Pairs, blend
from mixco.models.encoder import Encoder

Golden = dict[str, Tensor]


def equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-9, atol=1e-12)


def encoder(golden: Golden, name: str) -> Encoder:
    weights = {k.removeprefix(f"before.{name}."): v for k, v in golden.items()}
    first, second = (linear(weights[f"fc.{i}.weight"], weights[f"fc.{i}.bias"]) for i in (0, 2))
    return Encoder(Body(weights["body.weight"]), nn.Sequential(first, nn.ReLU(), second))


def theirs(name: str) -> str:
    return name.replace("backbone.body", "body").replace("head", "fc")


def drawn(golden: Golden, **settings: Any) -> Mixer:
    """A mixer that draws what was drawn; none was mixed where no lambda was drawn."""
    batch = len(golden["x1"])
    first = torch.arange(batch)
    lam = golden.get("lam_drawn", torch.ones(())).expand(batch).float()
    assert torch.equal(lam.double(), golden.get("lam_drawn", torch.ones(())).expand(batch).double())
    if settings.get("alone"):
        lam = torch.maximum(lam, 1 - lam)  # in i-Mix, always
    pairs = Pairs(first, golden["perm"].long() if "perm" in golden else first, lam)
    if "box" not in golden:
        return Mixer(lambda *_: pairs, blend, **settings)
    centre = ((golden["centre"] + 0.5) / 4).float().expand(batch, 2)
    return Mixer(lambda *_: pairs._replace(centre=centre), paste, **settings)


def moco(golden: Golden, mixer: Mixer | None) -> MoCo:
    method = MoCo(
        encoder(golden, "encoder_q"),
        dim=8,
        queue=golden["before.queue"].shape[1],
        momentum=golden["momentum"].item(),
        temperature=golden["temperature"].item(),
        mix=mixer,
        mix_temperature=golden["temperature"].item(),
        mix_weight=1.0,
        bn_splits=1,
        generator=torch.Generator(),
    ).double()
    method.key_encoder.load_state_dict(encoder(golden, "encoder_k").state_dict())
    method.queue.keys.copy_(golden["before.queue"].T)
    method.queue.pointer.fill_(golden["before.queue_ptr"].item())
    return method


def check_mixed(mixer: Mixer, golden: Golden) -> None:
    if "x_mix" in golden:
        mixed = mixer(golden["x1"], torch.Generator())
        equal(mixed.images, golden["x_mix"])
        if golden["lam"].ndim == 0 and not torch.equal(
            golden["perm"], torch.arange(len(golden["x1"]))
        ):
            equal(mixed.targets.diag().double(), golden["lam"].expand(len(golden["x1"])).double())


def check_step(method: nn.Module, golden: Golden) -> dict[str, Tensor]:
    """One step: its loss, its gradients, and the momentum encoder and queue after it."""
    losses: dict[str, Tensor] = method([golden["x1"], golden["x2"]], torch.Generator())
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    equal(losses["loss"], golden["loss"])
    for key, parameter in method.get_submodule("encoder").named_parameters():
        assert parameter.grad is not None
        equal(parameter.grad, golden[f"grad.{theirs(key)}"])
    if isinstance(method, MoCo):
        for key, parameter in method.key_encoder.named_parameters():
            equal(parameter, golden[f"key_after.{theirs(key)}"])
        equal(method.queue.keys.T, golden["queue_after"])
        assert method.queue.pointer.item() == golden["ptr_after"].item()
    return losses


def test_mocos_clean_loss() -> None:
    golden = load("family/imix_moco_none.npz")
    check_step(moco(golden, None), golden)


@pytest.mark.parametrize(
    "name", [n for n in names("family/imix_mocon_*.npz") if not n.endswith("_sym.npz")]
)
def test_imix_on_moco(name: str) -> None:
    """In the place of the clean loss, among the keys of the batch and the queue."""
    golden = load(f"family/{name}")
    mixer = drawn(golden, alone=True)
    check_mixed(mixer, golden)
    check_step(moco(golden, mixer), golden)


@pytest.mark.parametrize("name", names("family/imix_npair_*.npz"))
def test_imix_on_npair(name: str) -> None:
    """That is SimCLR with the mixed loss alone."""
    golden = load(f"family/{name}")
    mixer = drawn(golden, alone=True)
    check_mixed(mixer, golden)
    temperature = golden["temperature"].item()
    method = SimCLR(
        encoder(golden, "encoder_q"),
        temperature=temperature,
        mix=mixer,
        mix_temperature=temperature,
        mix_weight=1.0,
    )
    check_step(method, golden)


@pytest.mark.parametrize("kind", ["global", "region"])
def test_unmix_on_moco(kind: str) -> None:
    golden = load(f"family/unmix_moco_{kind}_asym.npz")
    mixer = drawn(golden, own_denominators=True)
    check_mixed(mixer, golden)
    losses = check_step(moco(golden, mixer), golden)
    equal(losses["clean"], golden["loss_clean"])
    equal(losses["mixed"], golden["loss_mixed"])


@pytest.mark.parametrize("kind", ["global", "region"])
def test_the_loss_of_unmix_in_both_directions(kind: str) -> None:
    """MoCo has no symmetric form here, so its queue is not compared; the loss is made of the same."""
    golden = load(f"family/unmix_moco_{kind}_sym.npz")
    temperature = golden["temperature"].item()
    method = moco(golden, None)
    momentum = golden["momentum"].item()
    for key, weight in zip(
        method.key_encoder.parameters(), method.encoder.parameters(), strict=True
    ):
        key.data.mul_(momentum).add_(weight.data, alpha=1 - momentum)
    mixed = drawn(golden, own_denominators=True)(golden["x1"], torch.Generator())
    q1, q2, m = (
        F.normalize(method.encoder(x), dim=1) for x in (golden["x1"], golden["x2"], mixed.images)
    )
    k1, k2 = (F.normalize(method.key_encoder(golden[x]), dim=1) for x in ("x1", "x2"))
    own = torch.eye(len(m), dtype=torch.float64)
    parts = [((q1, own), k2), ((m, mixed.targets), k2), ((q2, own), k1), ((m, mixed.targets), k1)]
    losses = []
    for (queries, targets), keys in parts:
        candidates = torch.cat([keys, method.queue.keys])
        losses.append(
            own_cross_entropy(similarity_logits(queries, candidates, temperature), targets)
        )
    equal(torch.stack(losses).sum(), golden["loss"])


def test_boxes() -> None:
    """Of i-Mix and Un-Mix, on images of four sizes."""
    golden = load("family/boxes.npz")
    seen = set()
    for size, lam, centre, box, share in zip(
        *(golden[k] for k in ("size", "lam_drawn", "centre", "box_imix", "lam")), strict=True
    ):
        height, width = size.tolist()
        seen.add((height, width))
        pairs = Pairs(
            torch.tensor([0]),
            torch.tensor([1]),
            lam.float()[None],
            ((centre + 0.5) / size).float()[None],
        )
        first, second = torch.zeros(1, 1, height, width), torch.ones(1, 1, height, width)
        image, found = paste(first, second, pairs)
        top, left, bottom, right = box.tolist()
        expected = torch.zeros(height, width)
        expected[top:bottom, left:right] = 1
        assert torch.equal(image[0, 0], expected), (size, lam, centre)
        torch.testing.assert_close(found[0].double(), share, rtol=0, atol=1e-6)
    assert len(seen) == 4
    assert torch.equal(golden["box_imix"], golden["box_unmix"])
