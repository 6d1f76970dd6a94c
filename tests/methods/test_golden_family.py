"""What the published codes of the family compute, in float64, equalled to 1e-9 (relative).

Their lambda is float64 and ours float32, in which all of these are exact.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_vectors import (
    encoder,
    equal,
    equal_gradients,
    equal_keys,
    linear,
    load,
    names,
    theirs,
)
from torch import Tensor, nn

from mixco.losses import (
    barlow_twins,
    mixed_residue,
    own_cross_entropy,
    similarity_logits,
    standardised,
)
from mixco.methods.barlow import BarlowTwins
from mixco.methods.byol import BYOL
from mixco.methods.mixers import paste
from mixco.methods.moco import MoCo
from mixco.methods.simclr import SimCLR
from mixco.methods.simsiam import SimSiam
from mixco.mixing import Mixer, Pairs, blend, soft_targets
from mixco.models.momentum import momentum_update

Golden = dict[str, Tensor]


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
        encoder(golden, "before.encoder_q"),
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
    method.key_encoder.load_state_dict(encoder(golden, "before.encoder_k").state_dict())
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
    equal_gradients(method.get_submodule("encoder"), golden)
    if isinstance(method, MoCo):
        equal_keys(method, golden)
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


def test_imix_on_moco_in_both_directions() -> None:
    """As two steps of ours on one gradient: the key encoder moves, and keys are pushed, in each."""
    golden = load("family/imix_mocon_imixup_a1_sym.npz")
    method, loss = moco(golden, None), torch.zeros((), dtype=torch.float64)
    for here, there in (("1", "2"), ("2", "1")):
        method.mix = drawn(
            {k: golden[k] for k in ("x1",)}
            | {k: golden[f"{k}_{here}"] for k in ("lam_drawn", "perm")},
            alone=True,
        )
        equal(method.mix(golden[f"x{here}"], torch.Generator()).images, golden[f"x_mix_{here}"])
        views = [golden[f"x{here}"], golden[f"x{there}"]]
        loss = loss + method(views, torch.Generator())["loss"]
    loss.backward()  # type: ignore[no-untyped-call]
    equal(loss, golden["loss"])
    equal_gradients(method.encoder, golden)
    equal_keys(method, golden)


@pytest.mark.parametrize("name", names("family/imix_npair_*.npz"))
def test_imix_on_npair(name: str) -> None:
    """That is SimCLR with the mixed loss alone."""
    golden = load(f"family/{name}")
    mixer = drawn(golden, alone=True)
    check_mixed(mixer, golden)
    temperature = golden["temperature"].item()
    method = SimCLR(
        encoder(golden, "before.encoder_q"),
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


def predictor(golden: Golden) -> nn.Module:
    weights = {k.removeprefix("before.predictor."): v for k, v in golden.items()}
    first, second = (linear(weights[f"{i}.weight"], weights[f"{i}.bias"]) for i in (0, 2))
    return nn.Sequential(first, nn.ReLU(), second)


def byol(golden: Golden, mixer: Mixer | None, target: str = "before.encoder_k") -> BYOL:
    method = BYOL(
        encoder(golden, "before.encoder_q"),
        predictor(golden),
        momentum=golden["momentum"].item(),
        mix=mixer,
        mix_weight=1.0,
    )
    for key, parameter in method.target.named_parameters():
        parameter.data.copy_(golden[f"{target}.{theirs(key)}"])
    return method


def check_predictor(method: nn.Module, golden: Golden) -> None:
    for key, parameter in method.get_submodule("predictor").named_parameters():
        assert parameter.grad is not None
        equal(parameter.grad, golden[f"grad_predictor.{key}"])


def check_update(method: BYOL, golden: Golden) -> None:
    """Plain SGD, and then the target's own update, as at the first step of a run."""
    trained = [p for p in method.parameters() if p.requires_grad]
    torch.optim.SGD(trained, lr=golden["lr"].item()).step()
    method.after_step(0.0)
    for name, module in (("query_after", method.encoder), ("key_after", method.target)):
        for key, parameter in module.named_parameters():
            equal(parameter, golden[f"{name}.{theirs(key)}"])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("byol", None),
        ("myol", {"target_view": "own"}),
        ("byol_imix", {"alone": True}),
        ("byol_unmix_global", {"target_view": "same"}),
        ("byol_unmix_region", {"target_view": "same"}),
    ],
)
def test_myols_code_on_byol(name: str, settings: dict[str, Any] | None) -> None:
    """BYOL, and four mixers on it: losses, gradients, and both encoders after the step."""
    golden = load(f"family/{name}.npz")
    mixer = None if settings is None else drawn(golden, **settings)
    if mixer is not None:
        equal(mixer(golden["x1"], torch.Generator(), golden["x2"]).images, golden["x_mix"])
    method = byol(golden, mixer)
    losses = check_step(method, golden)
    for part in {"clean", "mixed"} & losses.keys():
        if f"loss_{part}" in golden:
            equal(losses[part], golden[f"loss_{part}"])
    check_predictor(method, golden)
    check_update(method, golden)


@pytest.mark.parametrize(
    "name", [n for n in names("family/imix_byol_*.npz") if not n.endswith("_sym.npz")]
)
def test_imix_on_byol(name: str) -> None:
    """Its code updates the target before it is used, ours after the step: so it begins with theirs."""
    golden = load(f"family/{name}")
    mixer = drawn(golden, alone=True)
    check_mixed(mixer, golden)
    method = byol(golden, mixer, "key_after")
    check_step(method, golden)
    check_predictor(method, golden)


def test_the_loss_of_imix_on_byol_in_both_directions() -> None:
    """Its target moves before each direction, so two times a step."""
    golden = load("family/imix_byol_imixup_a1_sym.npz")
    loss, target = torch.zeros((), dtype=torch.float64), byol(golden, None).target
    for here, there in (("1", "2"), ("2", "1")):
        mixed = {k: golden[f"{k}_{here}"] for k in ("lam_drawn", "perm", "x_mix")}
        one = golden | mixed | {"x1": golden[f"x{here}"], "x2": golden[f"x{there}"]}
        method = byol(one, drawn(one, alone=True))
        momentum_update(target, method.encoder, golden["momentum"].item())
        method.target = target
        loss = loss + method([one["x1"], one["x2"]], torch.Generator())["loss"]
    equal(loss, golden["loss"])


def test_simsiam() -> None:
    golden = load("family/simsiam.npz")
    method = SimSiam(
        encoder(golden, "before.encoder_q"), predictor(golden), mix=None, mix_weight=1.0
    )
    check_step(method, golden)
    check_predictor(method, golden)


@pytest.mark.parametrize("name", names("family/barlow_*.npz"))
def test_barlow_twins(name: str) -> None:
    golden = load(f"family/{name}")
    z = [golden[key].clone().requires_grad_() for key in ("z1", "z2")]
    loss = barlow_twins(*map(standardised, z), golden["lambd"].item()) * golden["scale_loss"]
    loss.backward()  # type: ignore[no-untyped-call]
    equal(loss, golden["loss"])
    for key, each in zip(("z1", "z2"), z, strict=True):
        assert each.grad is not None
        equal(each.grad, golden[f"grad.{key}"])


def by_unbiased_deviation(z: Tensor) -> Tensor:
    """As mix-bt standardises; Barlow Twins, and we, divide by the biased one."""
    return (z - z.mean(0)) / z.std(0)


@pytest.mark.parametrize("name", names("family/mixbt_B*.npz"))
def test_the_loss_of_mixed_barlow_twins(name: str) -> None:
    golden = load(f"family/{name}")
    z = {key: golden[key].clone().requires_grad_() for key in ("z1", "z2", "zm")}
    s1, s2, sm = map(by_unbiased_deviation, z.values())
    lam = golden["lam"].float().expand(len(s1))
    pairs = Pairs(torch.arange(len(s1)), golden["perm"].long(), lam)
    targets = soft_targets(pairs, lam, len(s1), across=True)
    clean = barlow_twins(s1, s2, golden["lambd"].item())
    residue = mixed_residue(sm, torch.cat([s1, s2]), targets, [s1, s2])
    loss = clean + golden["mix_scale"] * golden["lambd"] * residue
    loss.backward()  # type: ignore[no-untyped-call]
    equal(clean, golden["loss_clean"])
    equal(loss, golden["loss"])
    for key, each in z.items():
        assert each.grad is not None
        equal(each.grad, golden[f"grad.{key}"])


def test_a_step_of_mixed_barlow_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its deviation, and with projections of unit length, as its code for small images has them."""
    golden = load("family/mixbt_step_B8.npz")
    monkeypatch.setattr("mixco.methods.barlow.standardised", by_unbiased_deviation)
    inner = encoder(golden, "before.encoder_q")
    head = nn.Sequential(*inner.get_submodule("head").children())
    head.register_forward_hook(lambda _module, _input, output: F.normalize(output, dim=1))
    inner.head = head
    mixer = drawn(golden, target_view="own")
    equal(mixer(golden["x1"], torch.Generator(), golden["x2"]).images, golden["x_mix"])
    method = BarlowTwins(
        inner,
        off_diagonal=golden["lambd"].item(),
        mix=mixer,
        mix_weight=golden["mix_scale"].item(),
    )
    losses = check_step(method, golden)
    equal(losses["clean"], golden["loss_clean"])
    equal(losses["mixed"] * golden["mix_scale"], golden["loss_mixed"])


def test_the_loss_of_mixed_barlow_twins_code_for_imagenet() -> None:
    """For view 2 it takes the first source's other view; ours does as its code for small images."""
    golden = load("family/mixbt_imagenet_B8.npz")
    s1, s2, sm = (by_unbiased_deviation(golden[key]) for key in ("z1", "z2", "zm"))
    lam = golden["lam"].float().expand(len(s1))
    pairs = Pairs(torch.arange(len(s1)), golden["perm"].long(), lam)
    both, of_second = (soft_targets(pairs, lam, len(s1), across) for across in (True, False))
    residues = mixed_residue(sm, torch.cat([s1, s2]), both, [s1]) + mixed_residue(
        sm, s2, of_second, [s2]
    )
    clean = barlow_twins(s1, s2, golden["lambd"].item())
    equal(clean + golden["mix_scale"] * golden["lambd"] * residues, golden["loss"])


def test_the_loss_of_symmetric_moco() -> None:
    """solo-learn's, with a queue for each view. MoCo has one direction here; its loss is of the same."""
    golden = load("family/moco_symmetric_solo.npz")
    temperature = golden["temperature"].item()
    losses = []
    for query, key in ((1, 2), (2, 1)):
        q, k = (
            F.normalize(golden[f"{name}{view}"], dim=1)
            for name, view in (("z", query), ("zk", key))
        )
        candidates = torch.cat([k, golden["before.queue"][key - 1].T])
        logits = similarity_logits(q, candidates, temperature)
        losses.append(own_cross_entropy(logits, torch.eye(len(q), dtype=torch.float64)))
    equal(torch.stack(losses).mean(), golden["loss"])
