"""The two views for other people's loops."""

import pytest
import torch
from sample_images import sample_images

import mixco


def test_bytes_and_floats_give_the_same_views() -> None:
    images = sample_images(6)
    first, second = mixco.TwoViews(size=32, seed=3)(images)
    assert first.shape == second.shape == (6, 3, 32, 32)
    assert first.dtype == torch.float32
    assert not torch.equal(first, second)
    for others in (images.float() / 255, images.double() / 255):
        again, _ = mixco.TwoViews(size=32, seed=3)(others)
        torch.testing.assert_close(again, first)
    assert images.equal(sample_images(6)), "the images stay as they are"


def test_draws_are_its_own_and_go_on_from_its_state() -> None:
    images = sample_images(4)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    views = mixco.TwoViews(size=32)
    made = [views(images)[0] for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(made[0], made[1])
    other = torch.nn.Sequential(mixco.TwoViews(size=32))
    assert not torch.equal(mixco.TwoViews(size=32, rank=1)(images)[0], made[0])
    two = torch.nn.Sequential(mixco.TwoViews(size=32))
    two[0](images), two[0](images)
    other.load_state_dict(two.state_dict())
    assert torch.equal(other[0](images)[0], made[2])
    assert list(views.parameters()) == []


def test_what_it_does_not_take_is_reported() -> None:
    views = mixco.TwoViews(size=32)
    for images, what in (
        (torch.zeros(3, 64, 64), r"\[B, 3, H, W\], got \[3, 64, 64\]"),
        (torch.zeros(2, 1, 64, 64), r"got \[2, 1, 64, 64\]"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.int64), "got torch.int64"),
    ):
        with pytest.raises(ValueError, match=what):
            views(images)
