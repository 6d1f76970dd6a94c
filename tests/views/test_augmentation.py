"""Augmentations by name, and what settings make of them."""

import pytest

from mixco.views.augmentation import AUGMENTATIONS, Input, augmentation_of


def test_settings_replace_what_the_name_says_and_nothing_else() -> None:
    plain = AUGMENTATIONS["photos"](Input(96))
    assert augmentation_of({"augmentation": "photos"}, Input(96)) == plain
    unset = dict.fromkeys(("min_crop", "grey", "blur", "vertical_flip", "quarter_turns"))
    assert augmentation_of({"augmentation": "photos", "jitter": 1.0, **unset}, Input(96)) == plain
    given = {"grey": 0.3, "blur": 0.0, "vertical_flip": 0.5, "quarter_turns": 0.75}
    made = augmentation_of({"augmentation": "photos", "min_crop": 0.08, **given}, Input(96))
    assert made.scale == (0.08, 1.0)
    assert (made.grey, made.blur, made.vertical_flip) == (0.3, 0.0, 0.5)
    assert made.quarter_turns == 0.75
    assert (made.jitter, made.flip, made.ratio) == (plain.jitter, plain.flip, plain.ratio)


def test_no_can_be_asked_for() -> None:
    """0 is a value, not "unset"."""
    made = augmentation_of({"augmentation": "aerial", "quarter_turns": 0, "grey": 0}, Input(96))
    assert (made.quarter_turns, made.grey) == (0, 0)


def test_jitter_multiplies_the_strength() -> None:
    half = augmentation_of({"augmentation": "simclr", "jitter": 0.5}, Input(32))
    assert half.jitter == (0.4, 0.4, 0.4, 0.1)


@pytest.mark.parametrize(("size", "blur"), [(32, 0.0), (64, 0.0), (96, 0.5)])
@pytest.mark.parametrize("name", ["photos", "aerial", "documents"])
def test_small_views_stay_sharp(name: str, size: int, blur: float) -> None:
    assert AUGMENTATIONS[name](Input(size)).blur == blur


def test_pages_keep_their_upright_side() -> None:
    page = AUGMENTATIONS["documents"](Input(64))
    assert (page.flip, page.vertical_flip, page.quarter_turns) == (0.0, 0.0, 0.0)
