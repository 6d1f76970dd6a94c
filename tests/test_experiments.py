"""The scripts of experiments/, shortened, as processes on real files in the public layouts."""

import importlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from configs import pretrain_config
from forked import mixco_command
from run_folders import needed_by
from sample_images import unpack_sample

from mixco.data.datasets.imagenet import list_tiny_imagenet
from mixco.methods import METHODS, MIXERS
from mixco.runtime.run_folder import read_json
from mixco.settings.parse import load_recipe, recipe_names
from mixco.training.checkpoints import newest_state
from mixco.training.pretrain import pretrain

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
OF_2020 = [
    *("exp_moco_res18_tinyimg", "exp_mix_res18_tinyimg"),
    *("exp_moco_res50_imagenet", "exp_mix_res50_imagenet"),
    *("resnet18_batch128_gpu2", "resnet18_batch128_gpu2_mix"),
]
WNIDS = ("n01440764", "n01443537", "n01629819")
TRAIN, TEST = 8, 2  # images of each class

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """tiny-imagenet-200/ and imagenet/, and the cache that all scripts share."""
    place = tmp_path_factory.mktemp("experiments")
    photos = unpack_sample(place / "photos", train=TRAIN, test=TEST, classes=len(WNIDS))
    for split in ("train", "test"):
        for wnid, folder in zip(WNIDS, sorted((photos / split).iterdir()), strict=True):
            to = place / "imagenet" / ("val" if split == "test" else split) / wnid
            to.mkdir(parents=True)
            for k, path in enumerate(sorted(folder.iterdir())):
                shutil.copyfile(path, to / f"{wnid}_{k}.JPEG")
    whole = os.environ.get("MIXCO_TINY_IMAGENET")
    lay_out_tiny_imagenet(place, part_of(Path(whole)) if whole else as_imagenet(place))
    yield place
    shutil.rmtree(place)  # checkpoints of ResNet-50 are large


def as_imagenet(place: Path) -> dict[str, list[tuple[str, Path]]]:
    """Split -> (wnid, file) of the ImageNet made of the sample."""
    root = place / "imagenet"
    return {
        split: [(path.parent.name, path) for path in sorted((root / split).rglob("*.JPEG"))]
        for split in ("train", "val")
    }


def part_of(whole: Path) -> dict[str, list[tuple[str, Path]]]:
    """Split -> (wnid, file) of a few classes of the real Tiny-ImageNet."""
    chosen = {}
    for split, count, name in (("train", TRAIN, "train"), ("test", TEST, "val")):
        source = list_tiny_imagenet(whole, split)
        assert source.labels is not None
        pairs = list(zip(source.labels, source.files, strict=True))
        chosen[name] = [
            (source.classes[c], source.root / file)
            for c in range(len(WNIDS))
            for file in [f for label, f in pairs if label == c][:count]
        ]
    return chosen


def lay_out_tiny_imagenet(place: Path, files: dict[str, list[tuple[str, Path]]]) -> None:
    root = place / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    for wnid, path in files["train"]:
        to = root / "train" / wnid / "images"
        to.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to / path.name)
    lines = []
    for k, (wnid, path) in enumerate(files["val"]):
        shutil.copyfile(path, root / "val" / "images" / f"val_{k}.JPEG")
        lines.append(f"val_{k}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    wnids = sorted({wnid for wnid, _ in files["train"]})
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")


def start(
    name: str, place: Path, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    data = "imagenet" if name.endswith("imagenet") else "tiny-imagenet-200"
    shortened = {
        "DATA_PATH": str(place / data),
        "CACHE": str(place / "cache"),
        "DEVICE": "cpu",
        "EPOCHS": "1",
        # A ResNet-50's last stage would be one pixel at 32: too little for batch norm of two images.
        "SIZE": "64" if data == "imagenet" else "32",
        "BATCH_SIZE": "16",
        "LINEAR_EPOCHS": "1",
        "LINEAR_BATCH_SIZE": "16",
    }
    return subprocess.run(
        ["bash", EXPERIMENTS / f"{name}.sh"],
        env={**os.environ, **shortened, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def recording(folder: Path, end: str = "true") -> Path:
    """A script that stands in for mixco: it appends its arguments to a file and then runs `end`."""
    command = folder / "command"
    record = f"""printf '%q ' "$@" >> "{folder}/recorded"; echo >> "{folder}/recorded\""""
    command.write_text(f"#!/usr/bin/env bash\n{record}\n{end}\n")
    command.chmod(0o755)
    return command


def recorded(folder: Path) -> list[str]:
    """A line for each call, quoted for a shell."""
    return [line.rstrip() for line in (folder / "recorded").read_text().splitlines()]


@needs_bash
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", OF_2020)
def test_a_script_of_2020_runs_from_the_images_to_the_results(
    name: str, place: Path, tmp_path: Path
) -> None:
    command = recording(tmp_path)
    # Two words, as in "python -m mixco".
    assert start(name, place, tmp_path, MIXCO=f"bash {command}").returncode == 0
    ended = [mixco_command(*shlex.split(line), cwd=tmp_path) for line in recorded(tmp_path)]
    assert [done.returncode for done in ended] == [0] * 4, [done.stderr for done in ended]
    results = read_json(tmp_path / "results" / "results.json")
    assert list(results) == [name]
    entry = results[name]
    assert set(entry) == {"config", "pretrain", "knn", "linear_paper"}
    assert read_json(tmp_path / "runs" / name / "results.json") == {
        kind: values for kind, values in entry.items() if kind != "config"
    }
    recipe = load_recipe(name)
    assert entry["config"]["recipe"] == name
    assert entry["pretrain"]["images"] == entry["knn"]["train_images"] == len(WNIDS) * TRAIN
    assert entry["pretrain"]["arch"] == recipe.model.arch
    assert (entry["linear_paper"]["head_lr"], entry["linear_paper"]["head_lr_from"]) == (
        recipe.run.linear_lr,
        "the run's recipe",
    )
    assert entry["knn"]["test_images"] == entry["linear_paper"]["test_images"] == len(WNIDS) * TEST
    assert ended[-1].stdout.count(f"| {entry['pretrain']['method']} |") == 1


@needs_bash
@pytest.mark.parametrize("broken", ["pretrain", "knn", "linear"])
def test_a_script_stops_where_a_command_fails(broken: str, place: Path, tmp_path: Path) -> None:
    """In 2020 a pretraining that crashed was followed by the evaluation of a random encoder."""
    command = recording(tmp_path, f'[ "$1" != {broken} ]')
    done = start("exp_mix_res18_tinyimg", place, tmp_path, MIXCO=str(command))
    assert done.returncode != 0
    verbs = ["pretrain", "knn", "linear", "report"]
    called = [line.split()[0] for line in recorded(tmp_path)]
    assert called == verbs[: verbs.index(broken) + 1]


@needs_bash
def test_a_script_asks_for_the_data(tmp_path: Path) -> None:
    done = start("exp_mix_res18_tinyimg", tmp_path, tmp_path, DATA_PATH="")
    assert done.returncode == 2
    assert "write the folder of the data into data_path, or give it as DATA_PATH" in done.stderr


@needs_bash
def test_every_recipe_has_its_script_and_what_is_set_reaches_the_commands(tmp_path: Path) -> None:
    scripts = {path.stem for path in EXPERIMENTS.glob("*.sh")} - {"common"}
    assert scripts == set(recipe_names()) - {"demo", "demo_from_weights"}
    command = recording(tmp_path)
    for name in scripts:
        text = (EXPERIMENTS / f"{name}.sh").read_text()
        assert "set -euo pipefail" in text
        assert 'data_path="[your_data_path]"' in text
        assert f'exp_name="{name}"' in text
        done = subprocess.run(
            ["bash", EXPERIMENTS / f"{name}.sh", "--queue", "8"],
            env={
                **os.environ,
                "DATA_PATH": "my data",
                "MIXCO": str(command),
                "EXP_NAME": "e",
                "SEED": "3",
                "LINEAR_LR": "0.5",
            },
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0
        knn = " --k 200 --temperature 0.1" if name.startswith("cifar") else ""
        knn = " --k 200 --temperature 0.5" if name.endswith("mixbt") else knn  # its authors'
        knn = " --k 10 --votes equal" if name.startswith("cifar10_simclr") else knn
        assert recorded(tmp_path) == [
            f"pretrain --seed 3 --recipe {name} --data-path my\\ data --out runs/e --queue 8",
            f"knn --seed 3 --run runs/e{knn}",
            "linear --seed 3 --lr 0.5 --run runs/e --protocol paper",
            "report runs/e --name e --collect results/results.json --table",
        ]
        (tmp_path / "recorded").unlink()


@pytest.mark.parametrize("method", METHODS)
def test_cheaper_mixers_train_on_every_base(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    savings = importlib.import_module("mixco_savings")
    assert len(savings.half_pairs.draw(10, torch.Generator()).lam) == 3
    for name, entry in savings.OURS.items():
        monkeypatch.setitem(MIXERS, name, entry)
        tiny = {"size": 32, "arch": "test_resnet", "batch_size": 64, "epochs": 1}
        where = {"out": tmp_path / name, "cache": tmp_path / "cache"} | needed_by(method, tmp_path)
        pretrain(pretrain_config(method=method, mix=name, **tiny, **where), stop_after=1)
        assert newest_state(tmp_path / name, print)["step"] == 1
