"""The recipes of 2020 are the published settings; the others are as their comments say."""

import dataclasses
import json
import re
from importlib import resources
from pathlib import Path

import pytest
from configs import with_images
from sample_images import sample_images

from mixco.demo import of_demo
from mixco.runtime.seeding import generator_for
from mixco.settings.commands import DemoConfig, LinearConfig
from mixco.settings.config import PretrainConfig, Settings
from mixco.settings.parse import load_recipe, recipe_names, to_dict
from mixco.settings.resolve import Facts, resolve
from mixco.training.build import build_method

# Kim et al. 2020 and the code published with it, word for word.
TINY = {
    "data": "tiny-imagenet",
    "arch": "resnet18",
    "batch_size": 128,
    "epochs": 100,
    "size": 224,
    "stem": "standard",
    "dim": 128,
    "head": "mlp",
    "optimizer": "sgd",
    "schedule": "cosine",
    "linear_lr": 3.0,
}
MOCO = {
    "method": "moco",
    "temperature": 0.2,
    "queue": 65536,
    "momentum": 0.999,
    "weight_decay": 1e-4,
    "warmup": 0.0,
    "augmentation": "moco-v2",
}
SIMCLR = {
    "method": "simclr",
    "temperature": 0.5,
    "lr": 0.15,
    "weight_decay": 1e-6,
    "warmup": 0.1,
    "augmentation": "simclr",
}
IMAGENET = {
    "data": "imagenet",
    "arch": "resnet50",
    "batch_size": 256,
    "epochs": 200,
    "lr": 0.03,
    "linear_lr": 30.0,
    "bn_splits": 8,
}
PLAIN = {"mix": "none"}
PUBLISHED = {
    "exp_moco_res18_tinyimg": {**TINY, **MOCO, **PLAIN, "lr": 0.015},
    "exp_mix_res18_tinyimg": {**TINY, **MOCO, "lr": 0.015, "mix": "mixco", "mix_temperature": 0.05},
    "exp_moco_res50_imagenet": {**TINY, **MOCO, **PLAIN, **IMAGENET},
    "exp_mix_res50_imagenet": {
        **TINY,
        **MOCO,
        **IMAGENET,
        "mix": "mixco",
        "mix_temperature": 1.0,
    },
    "resnet18_batch128_gpu2": {**TINY, **SIMCLR, **PLAIN},
    "resnet18_batch128_gpu2_mix": {**TINY, **SIMCLR, "mix": "mixco", "mix_temperature": 0.5},
}
CIFAR_DEMONSTRATION = {
    "arch": "resnet18",
    "stem": "conv3s1",
    "size": 32,
    "batch_size": 512,
    "epochs": 200,
    "optimizer": "sgd",
    "lr": 0.06,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "warmup": 0.0,
    "method": "moco",
    "temperature": 0.1,
    "queue": 4096,
    "momentum": 0.99,
    "bn_splits": 8,
    "head": "linear",
    "dim": 128,
    "mix_weight": 1.0,
    "min_crop": 0.08,
    "blur": 0.0,
}
# What the publishers of each have in their scripts, README or paper.
SGD_OF_MYOL = {"optimizer": "sgd", "lr": 0.055, "weight_decay": 1e-4, "warmup": 0.02}
MYOL = {
    "method": "byol",
    "mix": "myol",
    "mix_alpha": 2.0,
    "arch": "resnet50",
    "epochs": 500,
    "batch_size": 256,
    "momentum": 0.996,
    "momentum_schedule": "constant",
    "milestones": (),
    "head": "mlp-bn",
    "head_hidden": 2048,
    "dim": 128,
    "predictor_hidden": 2048,
    **SGD_OF_MYOL,
}
UNMIX = {**CIFAR_DEMONSTRATION, "epochs": 1000, "mix": "unmix", "mix_temperature": 0.1}
IMIX = {
    "method": "moco",
    "mix": "imix",
    "arch": "resnet50",
    "batch_size": 256,
    "lr": 0.125,
    "weight_decay": 1e-4,
    "queue": 4096,
    "momentum": 0.999,
    "temperature": 0.2,
    "dim": 128,
    "head": "mlp-bn",
    "head_hidden": 2048,
    "optimizer": "sgd",
}
SIMSIAM = {
    "method": "simsiam",
    "mix": "none",
    "arch": "resnet18",
    "epochs": 800,
    "batch_size": 512,
    "lr": 0.06,
    "weight_decay": 5e-4,
    "optimizer": "sgd",
    "dim": 2048,
    "predictor_hidden": 512,
}
MIXBT = {
    "method": "barlow",
    "mix": "mixbt",
    "arch": "resnet18",
    "epochs": 2000,
    "batch_size": 256,
    "lr": 0.01,
    "weight_decay": 1e-6,
    "dim": 1024,
    "head_hidden": 512,
    "mix_weight": 4.0,
}
SIMCLR_OF_CIFAR = {
    "method": "simclr",
    "arch": "resnet18",
    "stem": "conv3s1",
    "epochs": 100,
    "batch_size": 512,
    "lr": 0.12,
    "weight_decay": 5e-4,
    "warmup": 0.0,
    "optimizer": "sgd",
    "schedule": "cosine",
    "temperature": 0.5,
    "head": "mlp",
    "head_hidden": 1024,
    "dim": 128,
    "augmentation": "photos",
}
OF_THE_FAMILY = {
    "cifar10_simclr": {**SIMCLR_OF_CIFAR, "mix": "none"},
    "cifar10_simclr_mixco": {**SIMCLR_OF_CIFAR, "mix": "mixco", "mix_temperature": 0.5},
    **{f"{data}_moco_unmix": UNMIX for data in ("cifar10", "cifar100")},
    "cifar10_moco_imix": {**IMIX, "epochs": 4000},
    "cifar100_moco_imix": {**IMIX, "epochs": 2000},
    **{f"{data}_byol_myol": MYOL for data in ("cifar10", "cifar100", "tinyimg64")},
    **{f"{data}_simsiam": SIMSIAM for data in ("cifar10", "cifar100")},
    **{
        f"{data}_barlow_mixbt": {**MIXBT, "off_diagonal": 2**-7} for data in ("cifar10", "cifar100")
    },
    "tinyimg64_barlow_mixbt": {**MIXBT, "off_diagonal": 0.0009765},
}
IMAGES_OF = {
    "sample": 1600,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "tiny-imagenet": 100_000,
    "imagenet": 1_281_167,
}
OF_THE_DEMO = {"demo", "demo_from_weights"}
SHIPPED = [name for name in recipe_names() if name not in OF_THE_DEMO]


def flat(config: PretrainConfig | Settings) -> dict[str, object]:
    parts = (config.data, config.model, config.method, config.optimisation, config.run)
    return {key: value for part in parts for key, value in vars(part).items()}


def text(name: str) -> str:
    return resources.files("mixco").joinpath("recipes", f"{name}.toml").read_text("utf-8")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipes_of_2020_have_the_published_settings(name: str) -> None:
    settings = flat(load_recipe(name))
    assert {key: settings[key] for key in PUBLISHED[name]} == PUBLISHED[name]
    assert settings["mix_weight"] == 1.0
    resolved = flat(resolve(with_images(load_recipe(name)), Facts(100_000)))
    assert {key: resolved[key] for key in PUBLISHED[name]} == PUBLISHED[name]


def test_the_rest_of_linear_evaluation_is_the_protocols_default() -> None:
    """SGD, batch 256, 100 epochs, a tenth at 60 and 80, no decay: recipes hold the rate alone."""
    linear = LinearConfig()
    assert (linear.epochs, linear.milestones) == (100, (0.6, 0.8))
    assert (linear.classifier.optimizer, linear.classifier.batch_size) == ("sgd", 256)
    assert not linear.classifier.weight_decay


@pytest.mark.parametrize("mix", ["", "_mixco"])
@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_the_recipes_of_cifar_have_the_demonstrations_settings(data: str, mix: str) -> None:
    settings = flat(load_recipe(f"{data}_moco{mix}"))
    assert {key: settings[key] for key in CIFAR_DEMONSTRATION} == CIFAR_DEMONSTRATION
    assert settings["data"] == data


@pytest.mark.parametrize("name", OF_THE_FAMILY)
def test_the_recipes_of_the_family_have_the_published_settings(name: str) -> None:
    recipe = load_recipe(name)
    settings = flat(recipe)
    assert {key: settings[key] for key in OF_THE_FAMILY[name]} == OF_THE_FAMILY[name]
    assert {"cifar10": 32, "cifar100": 32, "tiny-imagenet": 64}[
        recipe.data.data
    ] == recipe.data.size
    found = resolve(with_images(recipe), Facts(IMAGES_OF[recipe.data.data]))
    # A step of the very method, around a small network.
    model = dataclasses.replace(found.model, arch="test_resnet", stem="standard")
    small = dataclasses.replace(found, model=model)
    views = [image.float() / 255 for image in sample_images(32).chunk(2)]
    built = build_method(small).train()
    losses = built([view[:, :, ::2, ::2] for view in views], generator_for(0, "method"))
    losses["loss"].backward()
    assert all(value.isfinite() for value in losses.values())
    assert ("mixed" in losses) == (found.method.mix != "none")


@pytest.mark.parametrize("method", ["moco", "simclr"])
def test_mixing_is_all_that_a_pair_of_recipes_differs_in(method: str) -> None:
    pairs = [
        ("exp_moco_res18_tinyimg", "exp_mix_res18_tinyimg"),
        ("exp_moco_res50_imagenet", "exp_mix_res50_imagenet"),
        ("resnet18_batch128_gpu2", "resnet18_batch128_gpu2_mix"),
        (f"tinyimg64_{method}", f"tinyimg64_{method}_mixco"),
        ("cifar10_moco", "cifar10_moco_mixco"),
        ("cifar10_simclr", "cifar10_simclr_mixco"),
        ("cifar100_moco", "cifar100_moco_mixco"),
    ]
    for plain, mixed in pairs:
        a, b = flat(load_recipe(plain)), flat(load_recipe(mixed))
        assert {k for k in a if a[k] != b[k]} - {"mix_temperature"} == {"mix"}, plain


@pytest.mark.parametrize(
    ("small", "published"),
    [
        ("tinyimg64_moco", "exp_moco_res18_tinyimg"),
        ("tinyimg64_moco_mixco", "exp_mix_res18_tinyimg"),
        ("tinyimg64_simclr", "resnet18_batch128_gpu2"),
        ("tinyimg64_simclr_mixco", "resnet18_batch128_gpu2_mix"),
    ],
)
def test_the_small_variants_differ_in_what_suits_small_images(small: str, published: str) -> None:
    a, b = flat(load_recipe(small)), flat(load_recipe(published))
    differing = {key: a[key] for key in a if a[key] != b[key]}
    assert differing.pop("queue", 16384) == 16384
    differing.pop("bn_splits", None)
    # The published rate of linear evaluation belongs to features of 224 px.
    assert differing == {"size": 64, "stem": "auto", "linear_lr": None}


@pytest.mark.parametrize("name", SHIPPED)
def test_each_says_its_command_its_cost_and_what_to_expect(name: str) -> None:
    head = text(name).split("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"bash experiments/{name}.sh" in head
    assert f"mixco pretrain --recipe {name} " in head
    cost = re.search(r"Cost: ([\d,]+) images x (\d+) epochs: ([\d.]+) million", head)
    assert cost is not None
    images, epochs = int(cost[1].replace(",", "")), int(cost[2])
    assert epochs == load_recipe(name).optimisation.epochs
    assert float(cost[3]) == pytest.approx(images * epochs / 1e6, rel=1e-3)
    for hours, rate in re.findall(r"([\d.]+) h at ([\d,]+) images a second", head):
        seconds = images * epochs / int(rate.replace(",", ""))
        assert float(hours) == pytest.approx(seconds / 3600, abs=0.05)
    assert "Expected: not measured here" in head


RESOLVED = json.loads((Path(__file__).parent / "resolved_recipes.json").read_text("utf-8"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", RESOLVED)
def test_the_rules_for_what_is_not_given_leave_the_recipes_as_they_were(
    name: str, device: str
) -> None:
    """resolved_recipes.json is what they came to before there were such rules."""
    demo = name.removeprefix("demo ")
    recipe = load_recipe(name) if demo == name else of_demo(DemoConfig(), "demo", demo)
    # Little memory: a batch that were chosen would be another.
    facts = Facts(
        IMAGES_OF[recipe.data.data], device_kind=device, memory=2**30, image_bytes=2.0**30
    )
    now = to_dict(resolve(with_images(recipe), facts))
    for part, settings in RESOLVED[name].items():
        if isinstance(settings, dict):
            if "cache" in settings:
                settings = settings | {"cache": str(Path(settings["cache"]).expanduser())}
            assert {key: now[part][key] for key in settings} == settings
        else:
            assert now[part] == settings
    # demo_from_weights and those of the family came later.
    assert {"demo none", "demo mixco", *SHIPPED, "demo"} - set(OF_THE_FAMILY) == RESOLVED.keys()
