"""SEED against the formulas of the paper, written out image by image; and what the teacher is not."""

from typing import Any

import pytest
import torch
from distributed_steps import plain_encoder, resnet, views_of_steps
from mixers import MIXES, works
from torch import Tensor, nn

from mixco.methods.distil import Distil
from mixco.runtime.seeding import generator_for

T_S, T_T, MIX_T, K = 0.2, 0.05, 0.1, 24
BATCH = 8


def teacher(seed: int = 3) -> nn.Module:
    """Without batch norm: images [B, 3, 32, 32] -> float64 [B, 8]."""
    encoder = plain_encoder().eval().requires_grad_(False)
    draws = torch.Generator().manual_seed(seed)
    for weight in encoder.parameters():
        weight.copy_(weight + torch.randn(weight.shape, generator=draws, dtype=weight.dtype) / 8)
    return encoder


def build(mix: str = "none", encoder: Any = None, **more: Any) -> Distil:
    usual: dict[str, Any] = {
        "dim": 8,
        "queue": K,
        "temperature": T_S,
        "teacher_temperature": T_T,
        "mix": MIXES[mix],
        "mix_temperature": MIX_T,
        "mix_weight": 0.5,
        "generator": generator_for(0, "queue"),
    }
    options = {"teacher": teacher(), **usual, **more}
    return Distil(encoder or plain_encoder(), **options).double()


def answer(output: Tensor, candidates: list[Tensor], temperature: float) -> Tensor:
    """Fang et al. 2021, eq. 3 and 4: p_j = exp(z d_j / tau) / sum over d of exp(z d / tau)."""
    powers = [(output @ candidate / temperature).exp() for candidate in candidates]
    return torch.stack([power / sum(powers) for power in powers])


def seed_by_hand(students: Tensor, taught: Tensor, queue: list[Tensor]) -> Tensor:
    """Eq. 5: cross-entropy of the student's answer; candidates are the own output and the queue."""
    losses = []
    for student, own in zip(students, taught, strict=True):
        wanted = answer(own, [own, *queue], T_T)
        losses.append(-(wanted * answer(student, [own, *queue], T_S).log()).sum())
    return torch.stack(losses).mean()


def unit(outputs: Tensor) -> Tensor:
    return outputs / outputs.norm(dim=1, keepdim=True)


def test_steps_are_the_papers_formula_and_the_queue_is_first_in_first_out() -> None:
    method = build()
    queue = list(method.queue.keys.clone())
    for view, _ in views_of_steps(BATCH, 4):  # the queue is overwritten from its start
        losses = method([view], generator_for(0, "method"))
        students, taught = unit(method.encoder(view)), unit(teacher()(view))
        expected = seed_by_hand(students, taught, queue)
        torch.testing.assert_close(losses["loss"], expected, rtol=1e-9, atol=1e-9)
        weights = list(method.encoder.parameters())
        wanted = torch.autograd.grad(expected, weights)
        found = torch.autograd.grad(losses["loss"], weights)
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)
        nearest = [
            all(student @ own > student @ other for other in queue)
            for student, own in zip(students, taught, strict=True)
        ]
        assert losses["accuracy"] == pytest.approx(100 * sum(nearest) / BATCH)
        queue = [*queue[BATCH:], *taught]
        assert sorted(map(float, method.queue.keys[:, 0])) == pytest.approx(
            sorted(float(output[0]) for output in queue)
        )


@pytest.mark.parametrize(
    "mix", [name for name, mixer in MIXES.items() if mixer and works("distil", mixer)]
)
def test_a_mixed_image_learns_the_answers_on_its_sources(mix: str) -> None:
    method = build(mix)
    view = views_of_steps(BATCH, 1)[0, 0]
    queue = list(method.queue.keys.clone())
    losses = method([view], generator_for(0, "method"))
    mixer, taught = MIXES[mix], unit(teacher()(view))
    assert mixer is not None
    pairs = mixer.draw(BATCH, generator_for(0, "method"))
    images, lam = mixer.combine(view[pairs.first], view[pairs.second], pairs)
    candidates = [*taught, *queue]
    answers = [answer(output, candidates, T_T) for output in taught]
    expected = []
    for image, first, second, part in zip(images, pairs.first, pairs.second, lam, strict=True):
        wanted = part * answers[first] + (1 - part) * answers[second]
        (student,) = unit(method.encoder(image[None]))
        expected.append(-(wanted * answer(student, candidates, MIX_T).log()).sum())
    mixed = torch.stack(expected).mean()
    torch.testing.assert_close(losses["mixed"], mixed.detach(), rtol=1e-5, atol=1e-6)
    if mixer.alone:
        assert "clean" not in losses
        torch.testing.assert_close(losses["loss"], 0.5 * mixed, rtol=1e-5, atol=1e-6)
        return
    clean = seed_by_hand(unit(method.encoder(view)), taught, queue)
    torch.testing.assert_close(losses["clean"], clean.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(losses["loss"], clean + 0.5 * mixed, rtol=1e-5, atol=1e-6)


def test_the_teacher_is_no_part_of_the_method() -> None:
    with_batch_norm = resnet().eval()
    before = {key: value.clone() for key, value in with_batch_norm.state_dict().items()}
    method = build(encoder=resnet(), teacher=with_batch_norm).train()
    names = [*method.state_dict(), *dict(method.named_parameters()), *dict(method.named_modules())]
    assert all(not name or name.split(".")[0] in ("encoder", "queue") for name in names)
    method([views_of_steps(BATCH, 1)[0, 0]], generator_for(0, "method"))["loss"].backward()
    assert not any(module.training for module in with_batch_norm.modules())
    assert all(weight.grad is None for weight in with_batch_norm.parameters())
    assert all(torch.equal(before[k], v) for k, v in with_batch_norm.state_dict().items())
    assert all(weight.grad is not None for weight in method.encoder.parameters())


def test_outputs_that_are_known_replace_the_teacher() -> None:
    def absent(_: Tensor) -> Tensor:
        raise AssertionError

    view = views_of_steps(BATCH, 1)[0, 0]
    looking, told = build("mixco"), build("mixco", teacher=absent)
    expected = looking([view], generator_for(0, "method"))
    found = told([view, 7 * teacher()(view)], generator_for(0, "method"))  # length does not count
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(told.queue.keys, looking.queue.keys)


def test_a_teacher_that_is_the_student_leaves_the_least_loss() -> None:
    """Cross-entropy is least where both answers are equal."""
    view = views_of_steps(BATCH, 1)[0, 0]
    encoder = plain_encoder()
    same = build(encoder=encoder, teacher=encoder, teacher_temperature=T_S)
    least = same([view], generator_for(0, "method"))["loss"]
    other = build(teacher=encoder, encoder=teacher(5), teacher_temperature=T_S)
    assert least < other([view], generator_for(0, "method"))["loss"]
    least.backward()
    norm = sum(float(w.grad.square().sum()) for w in encoder.parameters() if w.grad is not None)
    assert norm < 1e-20
