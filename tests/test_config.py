import dataclasses
import json
import shlex
from contextlib import nullcontext
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from configs import resolved, with_images

from mixco.cli import commands
from mixco.data.datasets import Data
from mixco.methods import MIXERS
from mixco.report.table import distinguishes
from mixco.runtime.errors import UserError
from mixco.runtime.setting import Setting, declared
from mixco.settings.config import OptimisationConfig, PretrainConfig, Settings
from mixco.settings.options import help_of, is_required, parse, rows, table
from mixco.settings.parse import (
    affects,
    check_ranges,
    command_of,
    dotted_fields,
    from_dict,
    load_recipe,
    recipe_names,
    to_dict,
    with_settings,
    with_unsaid,
)
from mixco.settings.resolve import Facts, resolve
from mixco.training.checkpoints import open_run

CONFIGS = {name: resolve_name(command.config) for name, command in commands().items()}
SETTINGS = [
    pytest.param(kind, field, id=f"{command} {dotted}")
    for command, kind in CONFIGS.items()
    for dotted, field in dotted_fields(kind)
]


def write(tmp_path: Path, text: str) -> str:
    (tmp_path / "my.toml").write_text(text)
    return str(tmp_path / "my.toml")


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_read_and_resolved(name: str) -> None:
    settings = resolve(with_images(load_recipe(name)), Facts(100_000))
    assert settings.optimisation.lr
    plain = json.loads(json.dumps(to_dict(settings)))
    assert from_dict(Settings, plain, "x") == settings
    assert to_dict(from_dict(PretrainConfig, plain, "x")) == plain, "what was resolved can be asked"


def test_a_recipe_sets_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, '[method]\nmethod = "moco"\nqueue = 100\n'))
    assert (recipe.method.method, recipe.method.queue) == ("moco", 100)
    assert recipe.optimisation == OptimisationConfig()


RECIPE_OF_0_1 = """
[data]
data = "tiny-imagenet"
size = 64
loading = "auto"
[model]
arch = "resnet18"
stem = "conv3s2"
[method]
method = "moco"
mix = "mixco"
queue = 4096
bn_splits = 8
augmentation = "moco-v2"
[optimisation]
epochs = 100
pieces = 4
milestones = [0.6, 0.8]
[run]
seed = 3
knn_every = 10
linear_lr = 3.0
"""


def test_a_recipe_of_version_0_1_is_read(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, RECIPE_OF_0_1))
    assert (recipe.method.queue, recipe.optimisation.micro_batches, recipe.run.seed) == (4096, 4, 3)


def test_micro_batches_have_their_old_name_too(tmp_path: Path) -> None:
    by_recipe = load_recipe(write(tmp_path, "[optimisation]\npieces = 4\n"))
    by_keyword = with_settings(PretrainConfig(), {"pieces": 4}, "pretrain")
    by_option = parse(PretrainConfig, "pretrain", ["--pieces", "4"])
    joined = parse(PretrainConfig, "pretrain", ["--pieces=4"])
    for config in (by_recipe, by_keyword, by_option, joined):
        assert config.optimisation == OptimisationConfig(micro_batches=4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[method]\ntemprature = 0.1", ["temprature", "did you mean temperature?"]),
        ('[method]\nmethod = "mocco"', ["method", "mocco", "did you mean moco?"]),
        ('[optimisation]\nepochs = "ten"', ["epochs must be an integer", "'ten'"]),
        ("[optimisation]\nepochs = true", ["epochs must be an integer", "True"]),
        ("[metod]", ["metod", "did you mean method?"]),
        ("[method", ["not valid TOML"]),
        ("x = " + "[" * 9999, ["not valid TOML"]),
        ("[optimisation]\nlr = 1" + "0" * 400, ["lr must be a number"]),
        ("[optimisation]\nlr = 1" + "0" * 5000, ["not valid TOML"]),
        ("[data]\ndata = [1]", ["data", "a text", "1"]),
        ("[data]\ndata = 1", ["data", "a text", "1"]),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path: Path, text: str, words: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as told:
        load_recipe(path)
    assert all(word in str(told.value) for word in [*words, "my.toml"]), told.value


def test_a_recipe_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_bytes(b"\xff\xfe[")
    with pytest.raises(UserError, match=r"my\.toml.*UTF-8"):
        load_recipe(str(tmp_path / "my.toml"))


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean demo"):
        load_recipe("demos")
    with pytest.raises(UserError, match=r"none\.toml"):
        load_recipe(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 2000}, ["--batch-size", "1600 images"]),
        ({"batch_size": 1}, ["--batch-size", "at least 2"]),
        ({"batch_size": 6, "micro_batches": 4}, ["--batch-size 6", "4 micro-batches"]),
        ({"epochs": 0}, ["--epochs", "at least 1"]),
        ({"epochs": 10**400}, ["--epochs"]),
        ({"lr": -1.0}, ["--lr", "above 0"]),
        ({"lr": float("nan")}, ["lr", "nan"]),
        ({"weight_decay": -1.0}, ["--weight-decay", "at least 0"]),
        ({"milestones": (60.0, 80.0)}, ["--milestones", "below 1", "60 80"]),
        ({"temperature": 0.0}, ["--temperature", "above 0"]),
        ({"temperature": float("inf")}, ["temperature", "inf"]),
        ({"mix_weight": float("nan")}, ["mix_weight", "nan"]),
        ({"queue": 0}, ["--queue", "at least 1"]),
        ({"queue": 10**12}, ["--queue", "1,000,000,000,000"]),
        ({"method": "moco", "bn_splits": 200}, ["--bn-splits", "200"]),
        ({"method": "moco", "bn_over": "all"}, ["--bn-over", "--bn-splits 1"]),
        ({"mean": (0.5,), "std": (0.5,)}, ["--mean", "3 values"]),
        ({"size": 16}, ["--size", "between 32 and 224 pixels", "16"]),
        ({"holdout": 1.0}, ["--holdout", "below 1"]),
        ({"linear_lr": float("inf")}, ["linear_lr", "inf"]),
        ({"seed": 2**64}, ["--seed"]),
        ({"dim": 0}, ["--dim", "at least 1"]),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as told:
        resolved(1600, **change)
    assert all(word in str(told.value) for word in words), told.value


@pytest.mark.parametrize(("images", "queue"), [(1600, 256), (50_000, 8192), (1_300_000, 65536)])
def test_the_queue_stays_well_below_the_data(images: int, queue: int) -> None:
    assert resolved(images, method="moco").method.queue == queue


@pytest.mark.parametrize("data", ["a folder; with $signs", ("b/", "a folder", "*.tar")])
def test_a_run_tells_the_command_that_gives_it(data: Data) -> None:
    """All that differs from the defaults is named, and parsed it is the same config."""
    config = resolved(
        1000,
        recipe="demo",
        data=data,
        labels_from=Path("a table.csv"),
        label_column="what it is",
        data_path=Path("x y"),
        download=True,
        method="moco",
        mix="none",
        schedule="steps",
        milestones=(0.5, 0.7),
        warmup=0.0,
        exclude_holdout=True,
        out=Path("runs/a"),
    )
    mixco, command, *arguments = shlex.split(command_of(to_dict(config)))
    assert (mixco, command) == ("mixco", "pretrain")
    assert from_dict(Settings, to_dict(config), "config.json") == config
    assert "--schedule" in arguments
    assert "--jitter" not in arguments
    parsed = parse(PretrainConfig, "pretrain", arguments)
    assert resolve(parsed, Facts(1000)) == dataclasses.replace(config, recipe=None)


# The declarations.


@pytest.mark.parametrize(("kind", "field"), SETTINGS)
def test_every_setting_is_declared(kind: type, field: "dataclasses.Field[Any]") -> None:
    found = declared(field)
    assert found.help.endswith(".")
    assert bool(found.chosen) == (field.default in (None, "")), "in words, what it means"
    assert found.rule is None or field.default is None
    assert found.range in help_of(found)
    assert kind.__doc__


def outside(found: Setting, default: Any) -> list[float]:
    """Numbers just outside of the declared range."""
    step = 1 if isinstance(default, int) else 1e-6
    bounds = [
        found.above,
        found.below,
        None if found.at_least is None else found.at_least - step,
        None if found.at_most is None else found.at_most + step,
    ]
    return [bound for bound in bounds if bound is not None]


RANGED = [param for param in SETTINGS if declared(param.values[1]).range]


@pytest.mark.parametrize(("kind", "field"), RANGED)
def test_a_declared_range_is_enforced(kind: type, field: "dataclasses.Field[Any]") -> None:
    found = declared(field)
    owner = next(owner for owner in owners(kind) if field.name in owner.__dataclass_fields__)
    needed = {f.name: "x" for f in dataclasses.fields(owner) if is_required(f)}
    several = isinstance(field.default, tuple) or field.name in ("mean", "std")
    for number in [*outside(found, field.default), float("nan")]:
        config = owner(**{**needed, field.name: (number,) if several else number})
        with pytest.raises(UserError) as told:
            check_ranges(config)
        assert f"--{field.name.replace('_', '-')} must be" in str(told.value)
        assert found.range in str(told.value)


def owners(kind: Any) -> list[Any]:
    """A config, and the classes of its parts."""
    parts = [field.default_factory for field in dataclasses.fields(kind)]
    return [
        kind,
        *(owner for part in parts if dataclasses.is_dataclass(part) for owner in owners(part)),
    ]


def test_the_table_of_options_has_a_row_for_each() -> None:
    lines = table(PretrainConfig).splitlines()
    assert lines[0].startswith("| option |") and set(lines[1]) == set("| -")
    assert len(lines) == 2 + len(dict(dotted_fields(PretrainConfig)))
    assert all(len(line.replace("\\|", "").split("|")) == 5 for line in lines)
    (size,) = (line for line in lines if line.startswith("| `--size` |"))
    assert "between 32 and 224 pixels" in size and "median image" in size
    assert [row.option for row in rows(CONFIGS["embed"])][:3] == ["RUN", "[DATA ...]", "--out"]


# (setting, what it affects, whether it tells two results apart)
AFFECTS = [
    ("data.size", "learning", True),
    ("method.queue", "learning", True),
    ("optimisation.lr", "learning", True),
    ("run.seed", "learning", False),  # other seeds repeat an experiment
    ("run.precision", "learning", True),
    ("run.memory_format", "run", False),
    ("run.holdout", "learning", True),
    ("data.cache", "run", False),
    ("data.data_path", "run", False),
    ("data.workers", "run", False),
    ("optimisation.micro_batches", "run", False),
    ("optimisation.pieces", "run", False),
    ("run.device", "run", False),
    ("run.knn_every", "run", False),
    ("run.linear_lr", "run", False),
    ("run.out", "nothing", False),
    ("run.report", "nothing", False),
    ("data.download", "nothing", False),
    ("recipe", "nothing", False),
]


@pytest.mark.parametrize(("name", "what", "tells_apart"), AFFECTS)
def test_what_a_setting_affects(tmp_path: Path, name: str, what: str, tells_apart: bool) -> None:
    """What may change on resuming, and which settings tell two results apart."""
    assert affects()[name] == what
    assert distinguishes(name) == tells_apart
    part, _, key = name.rpartition(".")
    begun, now, told = to_dict(resolved()), to_dict(resolved()), list[str]()
    (now[part] if part else now)[key] = "another"
    with open_run(tmp_path / "run", begun, told.append):
        pass
    refused = pytest.raises(UserError, match=f"--{key.replace('_', '-')} was")
    with (
        refused if what == "learning" else nullcontext(),
        open_run(tmp_path / "run", now, told.append),
    ):
        assert bool(told) == (what == "run")


@pytest.mark.parametrize("damaged", [None, 3, [], "text"])
def test_what_older_runs_had_is_filled_in_where_there_are_sections(damaged: Any) -> None:
    said = {"data": damaged, "method": {"mix": "none"}, "model": {"bn_statistics": "frozen"}}
    found = with_unsaid(said)
    assert found["data"] is damaged
    assert found["method"] == {"mix": "none", "mix_alpha": None, "mix_loss": "added"}
    assert found["model"] == {"bn_statistics": "frozen"}
    assert found["run"] == {"memory_format": "channels_last"}
    assert with_unsaid({"method": damaged})["method"] is damaged
    assert with_unsaid({"method": {"mix": "mixco"}})["method"]["mix_alpha"] == 1.0


def test_the_mixed_loss_alone_needs_mixed_images() -> None:
    with pytest.raises(UserError, match="--mix none; leave one of them out"):
        resolved(mix="none", mix_loss="alone")
    assert resolved(mix="none", mix_loss="added").method.mix_alpha is None
    pairs = {"mix": "mixco", "mix_loss": "alone", "batch_size": 16}
    with pytest.raises(UserError, match=r"\(8\).* 8 parts.*--batch-size 32, or --mix-loss added"):
        resolved(method="moco", bn_splits=8, **pairs)
    with pytest.raises(UserError, match=r"8 parts.*--batch-size 32"):
        resolved(method="moco", micro_batches=8, bn_splits=1, **pairs)
    resolved(method="simclr", micro_batches=8, **pairs)  # encodes clean images of a view too
    assert resolved(method="moco", bn_splits=4, **pairs).method.mix_loss == "alone"
    everyone = resolved(method="moco", bn_splits=8, mix="imix", batch_size=16)
    assert (everyone.method.mix_loss, everyone.method.mix_alpha) == ("alone", 1.0)


def test_a_mixer_without_a_law_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MIXERS, "mixco", MIXERS["mixco"]._replace(alpha=None))
    assert resolved(mix="mixco").method.mix_alpha is None
    with pytest.raises(UserError, match=r"--mix-alpha 2.*leave it out"):
        resolved(mix="mixco", mix_alpha=2.0)
