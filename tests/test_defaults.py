"""The rules that choose unset settings, and what is warned of: plain numbers, no data."""

from typing import Any

import pytest
from configs import pretrain_config, resolved, with_images
from hypothesis import given
from hypothesis import strategies as st

from mixco.methods import METHODS, options
from mixco.runtime.setting import declared
from mixco.settings import defaults, warnings
from mixco.settings.config import PretrainConfig, Settings
from mixco.settings.parse import dotted_fields, from_dict, to_dict
from mixco.settings.resolve import Facts, resolve

IMAGES = st.integers(2, 2_000_000)


@pytest.mark.parametrize(
    ("median", "device", "size", "why"),
    [
        ((375, 500), "cpu", 64, "the median image is 500 x 375, but on a CPU 128"),
        ((375, 500), "cuda", 128, "224 would take three times"),
        ((64, 64), "cpu", 64, "the median image is 64 x 64"),
        ((64, 64), "cuda", 64, "enlarged ones would hold nothing more"),
        ((96, 96), "cuda", 96, "enlarged ones"),
        ((96, 96), "mps", 96, "enlarged ones"),
        ((28, 28), "cpu", 32, "32 is the smallest size"),
        ((1000, 40), "cuda", 32, "enlarged ones"),
    ],
)
def test_size(median: tuple[int, int], device: str, size: int, why: str) -> None:
    value, reason = defaults.size(*median, device)
    assert value == size
    assert why in reason


@pytest.mark.parametrize(
    ("weights", "device", "size"),
    [(224, "cpu", 96), (224, "cuda", 128), (64, "cpu", 64), (48, "cuda", 48), (128, "cuda", 128)],
)
def test_the_size_follows_the_weights_to_start_from(weights: int, device: str, size: int) -> None:
    assert defaults.size(32, 32, device, weights)[0] == size
    assert defaults.size(500, 375, device, weights)[0] == size


@pytest.mark.parametrize(
    ("images", "batch", "device", "epochs"),
    [(1600, 128, "cpu", 21), (100_000, 256, "cuda", 10), (300, 32, "cuda", 40)],
)
def test_runs_from_weights_are_short_and_careful(
    images: int, batch: int, device: str, epochs: int
) -> None:
    assert defaults.epochs(images, batch, device, "timm")[0] == epochs
    for optimizer in ("adamw", "sgd"):
        scratch, _ = defaults.lr(optimizer, 1e-3, 0.3, batch, None)
        assert defaults.lr(optimizer, 1e-3, 0.3, batch, "timm")[0] == pytest.approx(
            0.4 * scratch, rel=1e-2
        )


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.sampled_from(["cpu", "cuda", "mps"]))
def test_a_size_never_enlarges_more_than_it_must(height: int, width: int, device: str) -> None:
    value, reason = defaults.size(height, width, device)
    assert value in defaults.SIZES
    assert value <= max(32, min(height, width))
    assert f"{width} x {height}" in reason


@given(IMAGES, st.floats(1e3, 1e10), st.integers(2**28, 2**38))
def test_a_batch_is_within_the_images_and_the_memory(
    images: int, image_bytes: float, memory: int
) -> None:
    value, _ = defaults.batch_size(images, image_bytes, memory)
    assert 2 <= value <= min(images, 256)
    assert value & (value - 1) == 0
    assert value == 2 or value * image_bytes <= memory / 2
    if images >= 256 and memory / 2 / image_bytes >= 256:
        assert images // value >= 8


@pytest.mark.parametrize(
    ("images", "batch", "why"),
    [
        (1_281_167, 256, "MoCo's"),
        (1_600, 128, "at least 8 steps an epoch"),
        (100, 32, "only 100 images"),
        (7, 4, "only 7 images"),
    ],
)
def test_batch(images: int, batch: int, why: str) -> None:
    value, reason = defaults.batch_size(images, None, None)
    assert value == batch
    assert why in reason


def test_a_batch_that_memory_bounds_says_so() -> None:
    value, reason = defaults.batch_size(100_000, 50 * 2**20, 8 * 2**30)
    assert value == 64
    assert reason == "more would not fit into half of the 8.0 GiB of memory"


@given(IMAGES, st.integers(2, 256), st.sampled_from(["cpu", "cuda", "mps"]))
def test_epochs_make_the_steps_within_bounds(images: int, batch: int, device: str) -> None:
    value, _ = defaults.epochs(images, batch, device, None)
    assert 100 <= value <= 400
    steps = max(1, images // batch) * value
    assert value == 400 or steps >= defaults.STEPS[device]


@given(IMAGES)
def test_a_queue_is_within_a_quarter_of_the_images(images: int) -> None:
    value, _ = options.queue(images)
    assert 1 <= value <= 65536
    assert value == 1 or value <= images / 4


def test_rates_grow_with_the_batch() -> None:
    moco, simclr = METHODS["moco"].sgd_lr, METHODS["simclr"].sgd_lr
    assert defaults.lr("adamw", 1e-3, simclr, 256, None)[0] == 1e-3
    assert defaults.lr("adamw", 3e-4, simclr, 64, None)[0] == 1.5e-4
    assert defaults.lr("sgd", 1e-3, moco, 128, None)[0] == 0.03
    assert defaults.lr("sgd", 1e-3, simclr, 512, None)[0] == 0.6


def test_without_mixing_its_temperature_is_left_alone() -> None:
    assert options.mix_temperature(0.5, "mixco")[0] == 0.5
    assert options.mix_temperature(0.5, "none") == (0.2, options.UNTOLD)


def test_every_rule_asks_for_facts_that_there_are() -> None:
    fields = dict(dotted_fields(PretrainConfig))
    settings = {name.rpartition(".")[2] for name in fields}
    known = {*settings, *Facts._fields, "adamw_lr", "sgd_lr", "usual_head", "usual_dim", "steps"}
    rules = [rule for field in fields.values() if (rule := declared(field).rule)]
    assert rules and all(known.issuperset(rule.facts) for rule in rules)


def test_what_is_chosen_is_told_and_what_is_given_is_not() -> None:
    told: dict[str, str] = {}
    config = with_images(pretrain_config(method="moco", queue=100))
    facts = Facts(5000, device_kind="cuda")
    settings = resolve(config, facts, lambda o, v, why: told.update({o: f"{v}: {why}"}))
    assert settings.method.queue == 100
    assert "queue" not in told
    assert told["batch_size"].startswith("256: ")
    assert told["epochs"].startswith("400: ")
    assert settings.optimisation.epochs == 400
    again = from_dict(PretrainConfig, to_dict(settings), "what was resolved")
    assert resolve(again, facts, lambda *_: pytest.fail("nothing is left to choose")) == settings


def test_settings_of_other_bases_stay_unset() -> None:
    assert resolved(method="simclr").method.queue is None
    assert resolved(method="moco").method.queue == 256


def test_settings_that_depend_on_the_images_must_be_there() -> None:
    with pytest.raises(ValueError, match="must be set"):
        resolve(pretrain_config(), Facts(1600))


SOUND: dict[str, Any] = {
    "method": "moco",
    "mix": "mixco",
    "batch_size": 256,
    "epochs": 100,
    "queue": 8192,
    "bn_splits": 8,
}


def found_in(settings: Settings, images: int) -> list[options.Advice]:
    return list(warnings.of_settings(settings, images, bfloat16=True))


FEW: dict[str, Any] = {"queue": 64, "batch_size": 32, "bn_splits": 2}


@pytest.mark.parametrize(
    ("images", "change", "what", "remedy"),
    [
        (300, FEW, "300 images", "add more"),
        (50_000, {"queue": 30_000}, "queue of 30,000", "--queue 12500"),
        (50_000, {"batch_size": 64}, "8 images", "--bn-splits 4"),
        (50_000, {"batch_size": 16, "bn_splits": 2}, "8 images", "--batch-size 32"),
        (50_000, {"method": "simclr", "batch_size": 32}, "32 images", "--method moco"),
        (50_000, {"mix_temperature": 0.02}, "--mix-temperature 0.02", "--precision float32"),
        (50_000, {"temperature": 0.02, "mix_temperature": 0.2}, "--temperature 0.02", "float32"),
        (50_000, {"epochs": 2}, "390 steps", "--epochs 6"),
    ],
)
def test_what_spoils_a_run_is_told_with_its_remedy(
    images: int, change: dict[str, Any], what: str, remedy: str
) -> None:
    assert not found_in(resolved(50_000, **SOUND), 50_000)
    (found,) = found_in(resolved(images, **{**SOUND, **change}), images)
    assert what in found.what
    assert remedy in found.remedy


@given(IMAGES, st.sampled_from(["moco", "simclr"]), st.sampled_from(["cpu", "cuda"]))
def test_what_is_chosen_for_enough_images_is_warned_of_by_none(
    images: int, method: str, device: str
) -> None:
    config = with_images(pretrain_config(method=method))
    settings = resolve(config, Facts(images, device_kind=device))
    assert images < 1000 or not found_in(settings, images)
