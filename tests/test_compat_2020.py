"""The command lines of 2020's scripts, as those scripts had them, become today's recipes."""

import subprocess
import sys
from pathlib import Path

import pytest

from mixco.compat_2020 import linear_options, pretrain_options
from mixco.runtime.errors import UserError
from mixco.settings.commands import LinearConfig
from mixco.settings.config import PretrainConfig
from mixco.settings.options import parse
from mixco.settings.parse import load_recipe

ROOT = Path(__file__).parents[1]
DEVICES = "--multiprocessing-distributed --dist-url tcp://localhost:10001 --gpu 0 1"

# What stood behind `python ./pretrain.py` in each of the six scripts.
LINES = {
    "exp_moco_res18_tinyimg": "-a resnet18 --algo moco --batch-size 128 --lr 0.015 --epochs 100 --cos "
    f"--dataset tiny-imagenet --data-path D --mlp --moco-t 0.2 --aug-plus --exp-name X {DEVICES}",
    "exp_mix_res18_tinyimg": "-a resnet18 --algo mixco --batch-size 128 --lr 0.015 --epochs 100 --cos "
    f"--dataset tiny-imagenet --data-path D --mlp --moco-t 0.2 --aug-plus --exp-name X {DEVICES}",
    "exp_moco_res50_imagenet": "-a resnet50 --algo moco --batch-size 256 --lr 0.03 --epochs 200 --cos "
    "--dataset imagenet --data-path D --mlp --moco-t 0.2 --aug-plus --exp-name X "
    f"{DEVICES} 2 3 4 5 6 7 --save-freq 10",
    "exp_mix_res50_imagenet": "-a resnet50 --algo mixco --batch-size 256 --lr 0.03 --epochs 200 --cos "
    "--dataset imagenet --data-path D --mlp --moco-t 0.2 --mixco-t 1 --aug-plus --exp-name X "
    f"{DEVICES} 2 3 4 5 6 7 --save-freq 10",
    "resnet18_batch128_gpu2": "-a resnet18 --batch-size 128 --lr 0.15 --epochs 100 "
    "--dataset tiny-imagenet --data-path D --temperature 0.5 --exp-name X --cos "
    f"{DEVICES} --out-dim 128",
    "resnet18_batch128_gpu2_mix": "-a resnet18 --batch-size 128 --lr 0.15 --epochs 100 "
    "--dataset tiny-imagenet --data-path D --temperature 0.5 --exp-name X --cos "
    f"{DEVICES} --out-dim 128 --mix --mix-temperature 0.5",
}


def parsed(options: list[str]) -> PretrainConfig:
    return parse(PretrainConfig, "pretrain", options)


@pytest.mark.parametrize("name", LINES)
def test_the_lines_of_2020_are_the_recipes(name: str) -> None:
    told: list[str] = []
    config = parsed(pretrain_options(LINES[name].split(), told.append))
    recipe = load_recipe(name)
    assert (config.data.data, str(config.data.data_path)) == (recipe.data.data, "D")
    assert config.data.size == recipe.data.size
    assert config.model == recipe.model
    assert config.optimisation == recipe.optimisation
    for field in ("method", "mix", "temperature", "mix_weight"):
        assert getattr(config.method, field) == getattr(recipe.method, field)
    if recipe.method.mix == "mixco":
        assert config.method.mix_temperature == recipe.method.mix_temperature
    if recipe.method.method == "moco":
        assert config.method.augmentation == recipe.method.augmentation
        assert (config.method.queue, config.method.momentum) == (65536, 0.999)
    assert config.run.out == Path("runs/X")
    assert [line.split(":")[0] for line in told][:3] == [
        *("--multiprocessing-distributed", "--dist-url", "--gpu"),
    ]


def test_the_defaults_of_2020_come_with_its_options() -> None:
    config = parsed(pretrain_options(["--algo", "mixco"], print))
    assert (config.data.data, config.data.size, config.model.stem) == (
        *("tiny-imagenet", 224, "standard"),
    )
    assert (config.model.head, config.method.augmentation) == ("linear", "moco-v1")
    assert (config.method.temperature, config.method.mix_temperature) == (0.07, 0.05)
    sgd = config.optimisation
    assert (sgd.optimizer, sgd.lr, sgd.weight_decay, sgd.epochs) == ("sgd", 0.015, 1e-4, 200)
    assert (sgd.schedule, sgd.milestones) == ("steps", (0.6, 0.8))
    assert (
        parsed(pretrain_options(["--algo", "mixco", "--mix-param", "0"], print)).method.mix
        == "none"
    )
    drops = pretrain_options(["--algo", "moco", "--epochs", "50", "--schedule", "20", "40"], print)
    assert parsed(drops).optimisation.milestones == (0.4, 0.8)


def test_a_line_of_today_stays_as_it_is() -> None:
    line = ["--method", "moco", "--mix", "mixco", "--momentum", "0.99", "--schedule", "steps"]
    assert pretrain_options(line, print) == line
    assert pretrain_options(["--help"], print) == ["--help"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--exp-name x --dataset cifar10", "say which base method"),
        ("--algo moco --out-dim 128", "say which base method"),
        ("--algo mocco", "did you mean moco"),
        ("--algo moco --momentum 0.8", "SGD's is 0.9"),
        ("resnet18 --algo moco", "resnet18: expected an option"),
        ("--algo moco -p 3 4", "one word too many"),
    ],
)
def test_what_cannot_be_translated_is_said(line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pretrain_options(line.split(), print)


def linear(line: str) -> LinearConfig:
    return parse(LinearConfig, "linear", linear_options(line.split(), lambda _: None))


def test_lincls_evaluates_the_run_of_the_name() -> None:
    config = linear(
        "-a resnet18 --lr 3.0 --batch-size 256 --epochs 100 --schedule 60 80 --dataset tiny-imagenet "
        f"--data-path D --exp-name X {DEVICES} --wd 0.0"
    )
    assert (config.protocol, config.evaluation.run) == ("paper", Path("runs/X"))
    assert (config.classifier.lr, config.classifier.weight_decay) == (3.0, 0.0)
    assert (config.epochs, config.milestones) == (100, (0.6, 0.8))
    assert config.evaluation.encoder.arch is None


def test_lincls_takes_a_checkpoint_of_2020() -> None:
    config = linear("-a resnet18 --pretrained a/b.pth.tar --exp-name X --dataset cifar10 -e")
    assert config.evaluation.checkpoint == Path("a/b.pth.tar")
    assert (config.evaluation.out, config.evaluation.encoder.arch) == (Path("runs/X"), "resnet18")
    assert (config.evaluation.data, config.evaluate) == ("cifar10", True)


@pytest.mark.parametrize(("script", "command"), [("pretrain", "pretrain"), ("lincls", "linear")])
def test_the_scripts_are_commands(script: str, command: str) -> None:
    python = [sys.executable, ROOT / f"{script}.py"]
    helped = subprocess.run([*python, "--help"], capture_output=True, text=True, check=False)
    assert helped.stdout.startswith(f"usage: mixco {command} "), helped.stderr
    wrong = subprocess.run([*python, "what"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert (
        "what" in wrong.stderr and "an option" in wrong.stderr and "Traceback" not in wrong.stderr
    )
