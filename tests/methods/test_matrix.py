"""Every base with every mixer: what docs/family.md says of the pair, and what holds for all of them."""

import itertools
from pathlib import Path

import pytest
import torch
from configs import resolved
from distributed_steps import build, plain_encoder, views_of_steps
from torch import Tensor, nn

from mixco.methods import METHODS, MIXERS, NO_MIXER, mixer_of, passes_of, works
from mixco.mixing import Mixer, Pairs
from mixco.models.gradient_caching import encode_in_micro_batches
from mixco.runtime.errors import UserError
from mixco.runtime.seeding import generator_for

PAGE = Path(__file__).parents[2] / "docs" / "family.md"
ALL = list(itertools.product(METHODS, MIXERS))
PAIRS = [pair for pair in ALL if works(*pair)]
BATCH = 8


def views(method: str) -> list[Tensor]:
    return list(views_of_steps(BATCH, 1)[0])[: METHODS[method].views]


def losses_of(method: str, mixer: Mixer | None, given: list[Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = build(method, mixer, plain_encoder())(
        given, generator_for(0, "method")
    )
    return found


def on_the_page(method: str, mix: str) -> str:
    """What the page says that a pair costs."""
    table = PAGE.read_text("utf-8").partition("## What it costs")[2].partition("\n## ")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    head, row = (next(r for r in rows if r[:1] == [name]) for name in ("--mix", mix))
    return row[head.index(method)]


@pytest.mark.parametrize(("method", "mix"), [pair for pair in ALL if pair not in PAIRS])
def test_a_pair_without_sense_is_refused(method: str, mix: str) -> None:
    """With the nearest one that works, by the options that the message names."""
    teacher = {"teacher": "timm:resnet18"} if METHODS[method].teacher else {}
    with pytest.raises(UserError, match=mix) as refused:
        resolved(method=method, mix=mix, **teacher)
    assert on_the_page(method, mix) == "–"
    remedy = str(refused.value).partition("give --")[2].partition(",")[0]
    name, value = remedy.split()
    assert resolved(**{"method": method, "mix": mix, **teacher, name.replace("-", "_"): value})


def test_a_mixer_in_the_table_is_what_the_table_says() -> None:
    for name, entry in MIXERS.items():
        mixer = mixer_of(name)
        assert mixer is not None
        assert entry.needs_own_views == mixer.across
        assert (entry.loss == "alone") == mixer.alone
        assert not entry.needs_own_views or not MIXERS[entry.nearest].needs_own_views


@pytest.mark.parametrize(("method", "mix"), [*itertools.product(METHODS, [NO_MIXER]), *PAIRS])
def test_the_passes_of_a_pair(method: str, mix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page says, and what the encoder gets."""
    mixer = mixer_of(mix)
    passes = passes_of(METHODS[method], mixer)
    assert float(on_the_page(method, mix)) == passes

    seen = []

    def counting(encoder: nn.Module, images: Tensor, micro_batches: int) -> Tensor:
        outputs = encode_in_micro_batches(encoder, images, micro_batches)
        if outputs.requires_grad:
            seen.append(len(images))
        return outputs

    monkeypatch.setattr(f"mixco.methods.{method}.encode_in_micro_batches", counting)
    losses_of(method, mixer, views(method))
    assert sum(seen) == passes * BATCH


@pytest.mark.parametrize(("method", "mix"), PAIRS)
def test_lambda_of_one_is_the_clean_image(method: str, mix: str) -> None:
    """Nothing is mixed then: the mixed loss is that of the same images, whoever the partner is."""
    mixer = mixer_of(mix)
    assert mixer is not None

    def whole(batch: int, generator: torch.Generator) -> Pairs:
        pairs = mixer.draw(batch, generator)
        return pairs._replace(lam=torch.ones_like(pairs.lam))

    def itself(batch: int, generator: torch.Generator) -> Pairs:
        pairs = mixer.draw(batch, generator)
        # Across the views an image meets its other view, which is another image.
        lam = torch.ones_like(pairs.lam) if mixer.across else pairs.lam
        return pairs._replace(second=pairs.first, lam=lam)

    found = [
        losses_of(method, mixer._replace(draw=draw), views(method))["mixed"]
        for draw in (whole, itself)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("method", "mix"), PAIRS)
def test_permuting_the_batch_permutes_the_result(method: str, mix: str) -> None:
    """The same pairs of images, at other places of the batch: the same losses and gradients."""
    mixer = mixer_of(mix)
    assert mixer is not None
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))
    place = order.argsort()  # of each image in the permuted batch

    def moved(batch: int, generator: torch.Generator) -> Pairs:
        pairs = mixer.draw(batch, generator)
        return pairs._replace(first=place[pairs.first], second=place[pairs.second])

    results = []
    for mix_of, given in (
        (mixer, views(method)),
        (mixer._replace(draw=moved), [view[order] for view in views(method)]),
    ):
        built = build(method, mix_of, plain_encoder())
        losses = built(given, generator_for(0, "method"))
        losses["loss"].backward()
        gradients = [p.grad for p in built.get_submodule("encoder").parameters()]
        results.append([*(losses[key] for key in sorted(losses)), *gradients])
    for one, other in zip(*results, strict=True):  # Barlow's has no gradient to the last bias
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mix", MIXERS)
@pytest.mark.parametrize("batch", [2, 3, 8, 9])
def test_targets_sum_to_one(mix: str, batch: int) -> None:
    mixer = mixer_of(mix)
    assert mixer is not None
    images = torch.rand(batch, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    for seed in range(5):
        mixed = mixer(images, torch.Generator().manual_seed(seed), images.flip(0))
        assert mixed.targets.dtype == torch.float32
        torch.testing.assert_close(mixed.targets.sum(1), torch.ones(len(mixed.images)))
        assert (mixed.targets >= 0).all()
        assert len(mixed.images) == int(batch * mixer.per_image)
