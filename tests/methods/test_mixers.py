"""A step with any mixer against the paper's formulas, written out image by image."""

import math

import pytest
import torch
import torch.nn.functional as F
from distributed_steps import build, plain_encoder, views_of_steps
from mixers import MIXES, works
from torch import Tensor

from mixco.methods.moco import MoCo
from mixco.methods.simclr import SimCLR
from mixco.mixing import Mixer, Pairs, blend
from mixco.runtime.seeding import generator_for

T, MIX_T = 0.2, 0.1  # as `build` has them
MIXERS = [name for name, mixer in MIXES.items() if mixer and works("moco", mixer)]


def mixed_by_hand(mixer: Mixer, view: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each mixed image, and its two sources with their parts as a row of the batch."""
    pairs = mixer.draw(len(view), draws)
    images, targets = [], []
    for m in range(len(pairs.lam)):
        i, j, lam = int(pairs.first[m]), int(pairs.second[m]), pairs.lam[m].double()
        blended = mixer.combine is blend or (pairs.pasted is not None and not pairs.pasted[m])
        if blended:
            image = lam * view[i] + (1 - pairs.lam[m]).double() * view[j]
        else:
            assert pairs.centre is not None
            image, side = view[i].clone(), view.shape[-1]
            half = int(side * (1 - lam) ** 0.5) // 2
            down, across = (int(side * part) for part in pairs.centre[m])
            top, left = max(0, down - half), max(0, across - half)
            bottom, right = min(side, down + half), min(side, across + half)
            image[:, top:bottom, left:right] = view[j, :, top:bottom, left:right]
            lam = torch.tensor(1 - (bottom - top) * (right - left) / side**2)
        target = torch.zeros(len(view), dtype=torch.float64)
        target[i] += lam
        target[j] += 1 - lam
        images.append(image)
        targets.append(target)
    return torch.stack(images), torch.stack(targets)


def mixed_loss(
    queries: Tensor, candidates: Tensor, targets: Tensor, own_denominators: bool = False
) -> Tensor:
    """Kim et al. 2020, eq. 4: -sum over sources of their part x log p(source), mean over images.

    In Un-Mix a source's p has the source and the queue below it, and no other key of the batch.
    """
    losses = []
    for query, target in zip(queries, targets, strict=True):
        similarities = [query @ key / MIX_T for key in candidates]
        parts = []
        for source, part in enumerate(target):
            below = similarities
            if own_denominators:
                below = [similarities[source], *similarities[len(target) :]]
            denominator = torch.stack(below).exp().sum().log()
            parts.append(-part * (similarities[source] - denominator))
        losses.append(torch.stack(parts).sum())
    return torch.stack(losses).mean()


def clean_loss(queries: Tensor, own: list[int], candidates: Tensor, allowed: Tensor) -> Tensor:
    """-log p(own candidate), mean over the queries; allowed: bool, which candidates a query has."""
    losses = []
    for query, mine, known in zip(queries, own, allowed, strict=True):
        exponentials = (candidates[known] @ query / T).exp()
        losses.append(-(candidates[mine] @ query / T) + exponentials.sum().log())
    return torch.stack(losses).mean()


def moco_by_hand(method: MoCo, mixer: Mixer, view_q: Tensor, view_k: Tensor) -> dict[str, Tensor]:
    batch = len(view_q)
    images, targets = mixed_by_hand(mixer, view_q, generator_for(0, "method"))
    with torch.no_grad():
        pairs = zip(method.key_encoder.parameters(), method.encoder.parameters(), strict=True)
        for key_weight, weight in pairs:
            key_weight.copy_(method.momentum * key_weight + (1 - method.momentum) * weight)
        candidates = torch.cat(
            [F.normalize(method.key_encoder(view_k), dim=1), method.queue.keys.clone()]
        )
    own = torch.arange(len(candidates))
    allowed = torch.stack([(own == i) | (own >= batch) for i in range(batch)])
    queries = F.normalize(method.encoder(view_q), dim=1)
    clean = clean_loss(queries, list(range(batch)), candidates, allowed)
    queries = F.normalize(method.encoder(images), dim=1)
    mixed = mixed_loss(queries, candidates, targets, mixer.own_denominators)
    if mixer.alone:
        return {"loss": mixed, "mixed": mixed}
    return {"loss": clean + mixed, "clean": clean, "mixed": mixed}


def simclr_by_hand(
    method: SimCLR, mixer: Mixer, view_i: Tensor, view_j: Tensor
) -> dict[str, Tensor]:
    batch, draws = len(view_i), generator_for(0, "method")
    if mixer.alone:
        images, targets = mixed_by_hand(mixer, view_i, draws)
        queries, keys = (F.normalize(method.encoder(x), dim=1) for x in (images, view_j))
        loss = mixed_loss(queries, keys, targets)
        return {"loss": loss, "mixed": loss}
    both = F.normalize(method.encoder(torch.cat([view_i, view_j])), dim=1)
    others = [(i + batch) % (2 * batch) for i in range(2 * batch)]
    clean = clean_loss(both, others, both, ~torch.eye(2 * batch, dtype=torch.bool))
    mixed = []
    for view, candidates in ((view_i, both[batch:]), (view_j, both[:batch])):
        images, targets = mixed_by_hand(mixer, view, draws)
        mixed.append(mixed_loss(F.normalize(method.encoder(images), dim=1), candidates, targets))
    mean = torch.stack(mixed).mean()
    return {"loss": clean + mean, "clean": clean, "mixed": mean}


@pytest.mark.parametrize("batch", [8, 9])
@pytest.mark.parametrize("mix", MIXERS)
@pytest.mark.parametrize("method", ["moco", "simclr"])
def test_a_step_is_the_papers_formula(method: str, mix: str, batch: int) -> None:
    mixer = MIXES[mix]
    assert mixer is not None
    view_q, view_k = views_of_steps(batch, 1)[0]
    ours, theirs = (build(method, mix, plain_encoder()) for _ in range(2))
    losses = ours([view_q, view_k], generator_for(0, "method"))
    if isinstance(theirs, MoCo):
        expected = moco_by_hand(theirs, mixer, view_q, view_k)
    else:
        expected = simclr_by_hand(theirs, mixer, view_q, view_k)
    assert losses.keys() == expected.keys() | {"accuracy"}
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-6, atol=1e-6, msg=name)
    losses["loss"].backward()
    expected["loss"].backward()
    for weight, other in zip(ours.encoder.parameters(), theirs.encoder.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, other.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["moco", "simclr"])
def test_a_mixer_may_find_nothing_to_mix(method: str) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    idle = Mixer(lambda _batch, _draws: Pairs(nothing, nothing, torch.zeros(0)), blend, 0.0)
    views = list(views_of_steps(8, 1)[0])
    built = build(method, "none", plain_encoder())
    built.mix = idle
    losses = built(views, generator_for(0, "method"))
    losses["loss"].backward()
    assert losses["mixed"] == 0
    assert losses["loss"] == losses["clean"]
    assert math.isfinite(losses["loss"].item())
