import dataclasses
import json
import shlex
from pathlib import Path

import pytest

from mixco.cli import parse
from mixco.runtime.errors import UserError
from mixco.settings.config import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimisationConfig,
    PretrainConfig,
    RunConfig,
)
from mixco.settings.resolve import (
    command_of,
    from_dict,
    load_recipe,
    recipe_names,
    resolve,
    to_dict,
)


def write(tmp_path: Path, text: str) -> str:
    (tmp_path / "my.toml").write_text(text)
    return str(tmp_path / "my.toml")


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_read_and_resolved(name: str) -> None:
    recipe = load_recipe(name)
    resolved = resolve(recipe, 100_000)
    assert resolved.optimisation.lr
    assert from_dict(PretrainConfig, json.loads(json.dumps(to_dict(resolved))), "x") == resolved


def test_a_recipe_sets_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, '[method]\nmethod = "moco"\nqueue = 100\n'))
    assert (recipe.method.method, recipe.method.queue) == ("moco", 100)
    assert recipe.optimisation == OptimisationConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[method]\ntemprature = 0.1", "unknown key temprature; did you mean temperature"),
        ('[method]\nmethod = "mocco"', "did you mean moco"),
        ('[optimisation]\nepochs = "ten"', "epochs = 'ten' is not a int"),
        ("[optimisation]\nepochs = true", "is not a int"),
        ("[metod]", "unknown key metod; did you mean method"),
        ("[method", "not valid TOML"),
        ("x = " + "[" * 9999, "not valid TOML"),
        ("[optimisation]\nlr = 1" + "0" * 400, "is not a float"),
        ("[optimisation]\nlr = 1" + "0" * 5000, "not valid TOML"),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(write(tmp_path, text))


def test_a_recipe_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_bytes(b"\xff\xfe[")
    with pytest.raises(UserError, match=r"my\.toml: cannot be read \(it is not text in UTF-8\)"):
        load_recipe(str(tmp_path / "my.toml"))


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean demo"):
        load_recipe("demos")
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (OptimisationConfig(batch_size=2000), "only 1600 images"),
        (OptimisationConfig(batch_size=1), "at least 2"),
        (OptimisationConfig(epochs=0), "--epochs 0"),
        (OptimisationConfig(lr=-1.0), "--lr"),
        (MethodConfig(temperature=0.0), "--temperature"),
        (MethodConfig(queue=0), "--queue 0"),
        (MethodConfig(method="moco", bn_splits=200), "--bn-splits 200"),
        (RunConfig(holdout=1.0), "--holdout"),
        (RunConfig(linear_lr=float("inf")), "--linear-lr inf"),
        (RunConfig(seed=2**64), "--seed"),
        (OptimisationConfig(lr=float("nan")), "--lr nan"),
        (OptimisationConfig(weight_decay=-1.0), "--weight-decay -1.0"),
        (OptimisationConfig(milestones=(60.0, 80.0)), "--milestones 60.0 80.0: shares of the run"),
        (OptimisationConfig(epochs=10**400), "--epochs"),
        (MethodConfig(temperature=float("inf")), "--temperature inf"),
        (MethodConfig(mix_weight=float("nan")), "--mix-weight nan"),
        (MethodConfig(queue=10**12), "--queue 1000000000000"),
        (ModelConfig(dim=0), "--dim 0"),
    ],
)
def test_combinations_that_cannot_be_are_refused(change: object, message: str) -> None:
    name = {
        OptimisationConfig: "optimisation",
        MethodConfig: "method",
        ModelConfig: "model",
        RunConfig: "run",
    }
    config = dataclasses.replace(PretrainConfig(), **{name[type(change)]: change})  # type: ignore[index]
    with pytest.raises(UserError, match=message):
        resolve(config, 1600)


@pytest.mark.parametrize(("images", "queue"), [(1600, 256), (50_000, 8192), (1_300_000, 65536)])
def test_the_queue_stays_well_below_the_data(images: int, queue: int) -> None:
    config = PretrainConfig(method=MethodConfig(method="moco"))
    assert resolve(config, images).method.queue == queue


def test_a_run_tells_the_command_that_gives_it() -> None:
    """All that differs from the defaults is named, and parsed it is the same config."""
    config = resolve(
        PretrainConfig(
            recipe="demo",
            data=DataConfig(data="a folder; with $signs", data_path=Path("x y"), download=True),
            method=MethodConfig(method="moco", mix="none"),
            optimisation=OptimisationConfig(schedule="steps", milestones=(0.5, 0.7), warmup=0.0),
            run=RunConfig(exclude_holdout=True, out=Path("runs/a")),
        ),
        images=1000,
    )
    mixco, verb, *arguments = shlex.split(command_of(to_dict(config)))
    assert (mixco, verb) == ("mixco", "pretrain")
    assert "--schedule" in arguments
    assert "--dim" not in arguments
    parsed = parse(PretrainConfig, "pretrain", arguments, PretrainConfig())
    assert resolve(parsed, images=1000) == dataclasses.replace(config, recipe=None)
