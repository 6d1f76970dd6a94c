"""The main job on the built-in sample: pretrain with and without mixing, evaluate, compare, draw."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mixco.data.datasets import list_images
from mixco.encoders.checkpoint import EncoderDescription, save_encoder
from mixco.evaluation.protocols import both
from mixco.methods import NO_MIXER, run_name
from mixco.models.encoder import build_backbone
from mixco.plots import draw_comparison, draw_curves
from mixco.runtime.progress import say
from mixco.runtime.run_folder import add_result, new_run_folder, read_json, read_metrics, write_json
from mixco.settings.commands import DemoConfig, EvaluationConfig
from mixco.settings.config import PretrainConfig
from mixco.settings.resolve import load_recipe, to_dict, with_settings
from mixco.training.pretrain import pretrain
from mixco.training.setup import arch_of, size_of


def demo(config: DemoConfig) -> dict[str, Any]:
    """Returns what it writes to results.json: {name: {"pretrain": ..., "knn": ..., "linear": ...}}."""
    started = time.perf_counter()
    out = config.out
    make_room(out)
    runs = {"random": random_encoder(config, out / "random")}
    say(
        "The demo trains for two minutes, to show the way: what it reaches is far from a long run's. "
        "The warnings about few steps below are meant for runs of your own."
    )
    for mix in (NO_MIXER, "mixco"):
        folder = pretrain(of_demo(config, mix, out))
        runs[folder.name] = folder

    results: dict[str, Any] = {}
    for name, folder in runs.items():
        both(
            EvaluationConfig(
                run=folder,
                device=config.device,
                precision=config.precision,
                cache=config.cache,
                seed=config.seed,
            )
        )
        results[name] = read_json(folder / "results.json")
    write_json(out / "results.json", results)
    curves = {name: read_metrics(folder) for name, folder in runs.items() if name != "random"}
    draw_curves(out / "curves.png", curves)
    draw_comparison(out / "comparison.png", results)
    mixed = list(runs.values())[-1]
    for picture in ("views.png", "neighbours.png"):
        if (mixed / picture).exists():
            (out / picture).write_bytes((mixed / picture).read_bytes())
    print_table(results)
    say(f"{time.perf_counter() - started:.0f} s; pictures, runs and results.json are in {out}/")
    return results


def of_demo(config: DemoConfig, mix: str, out: Path) -> PretrainConfig:
    """The demo's recipe, with or without mixing."""
    recipe = load_recipe("demo")
    settings = {
        "mix": mix,
        "out": out / run_name(recipe.method.method, mix),
        "epochs": config.epochs or recipe.optimisation.epochs,
        **{name: getattr(config, name) for name in ("cache", "seed", "device", "precision")},
    }
    return with_settings(recipe, settings, "demo")


def random_encoder(config: DemoConfig, folder: Path) -> Path:
    """The run folder of an encoder that was never trained: what pretraining has to beat."""
    recipe = of_demo(config, "none", folder.parent)
    source = list_images(recipe.data.data, recipe.data.data_path, "pretrain")
    new_run_folder(folder)
    write_json(folder / "config.json", to_dict(recipe))
    model, arch, size = recipe.model, arch_of(recipe), size_of(recipe)
    save_encoder(
        folder / "encoder.safetensors",
        build_backbone(arch, size, model.stem, config.seed),
        EncoderDescription(
            arch=arch,
            stem=model.stem,
            size=size,
            mean=source.mean,
            std=source.std,
            training=f"random weights, seed {config.seed}",
        ),
    )
    untrained = {"method": "random", "data": source.name, "arch": arch, "size": size}
    add_result(folder, "pretrain", {**untrained, "epochs": 0, "seed": config.seed})
    return folder


def make_room(out: Path) -> None:
    """An earlier demo is moved aside, never overwritten."""
    if not out.exists() or not any(out.iterdir()):
        return
    number = 1
    while (aside := out.with_name(f"{out.name}-before-{number}")).exists():
        number += 1
    out.rename(aside)
    say(f"{out} held an earlier demo; it is now {aside}")


def print_table(results: dict[str, Any]) -> None:
    table = Table(title="Test split of the sample: 400 images, 10 classes (chance: 10 %)")
    table.add_column("encoder", no_wrap=True)
    for column in ("kNN top-1", "linear top-1", "top-5", "pretraining", "images/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, result in results.items():
        seconds = result["pretrain"].get("seconds")
        rate = result["pretrain"].get("images_per_second")
        table.add_row(
            name,
            f"{result['knn']['top1']:.1f} %",
            f"{result['linear']['top1']:.1f} %",
            f"{result['linear']['top5']:.1f} %" if "top5" in result["linear"] else "",
            f"{seconds:.0f} s" if seconds else "none",
            f"{rate:,.0f}" if rate else "",
        )
    Console().print(table)
