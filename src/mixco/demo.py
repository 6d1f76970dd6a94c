"""The main job on the built-in sample: pretrain with and without mixing, evaluate, compare, draw."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from mixco.data.datasets import list_images
from mixco.encoders.checkpoint import EncoderDescription, save_encoder
from mixco.encoders.loading import load_encoder
from mixco.evaluation.protocols import both
from mixco.methods import NO_MIXER, run_name
from mixco.models.encoder import build_backbone
from mixco.plots.charts import draw_comparison, draw_curves
from mixco.runtime.errors import UserError
from mixco.runtime.progress import say
from mixco.runtime.run_folder import add_result, new_run_folder, read_json, read_metrics, write_json
from mixco.settings.commands import DemoConfig, EvaluationConfig
from mixco.settings.config import PretrainConfig
from mixco.settings.parse import load_recipe, to_dict, with_settings
from mixco.settings.resolve import arch_of
from mixco.training.pretrain import pretrain
from mixco.training.setup import size_of

PUBLISHED = "efficientnet-lite0"


def demo(config: DemoConfig) -> dict[str, Any]:
    """Returns what it writes to results.json: {name: {"pretrain": ..., "knn": ..., "linear": ...}}."""
    started = time.perf_counter()
    out = config.out
    make_room(out)
    say(
        "The demo trains for a few minutes, to show the way: what it reaches is far from a long run's. "
        "The warnings about few steps below are meant for runs of your own."
    )
    plain, mixed = (of_demo(config, "demo", mix) for mix in (NO_MIXER, "mixco"))
    runs = [random_encoder(plain, out / "random"), pretrain(plain), pretrain(mixed)]
    runs += from_weights(config)

    results: dict[str, Any] = {}
    for folder in runs:
        both(
            EvaluationConfig(
                run=folder,
                device=config.device,
                precision=config.precision,
                cache=config.cache,
                seed=config.seed,
            )
        )
        results[folder.name] = read_json(folder / "results.json")
    write_json(out / "results.json", results)
    trained = [folder for folder in runs if results[folder.name]["pretrain"]["epochs"]]
    curves = {folder.name: read_metrics(folder) for folder in trained}
    draw_curves(out / "curves.png", curves)
    draw_comparison(out / "comparison.png", {title_of(n): found for n, found in results.items()})
    for picture in ("views.png", "neighbours.png"):
        if (runs[-1] / picture).exists():
            (out / picture).write_bytes((runs[-1] / picture).read_bytes())
    print_table(results)
    say(f"{time.perf_counter() - started:.0f} s; pictures, runs and results.json are in {out}/")
    return results


def of_demo(config: DemoConfig, recipe: str, mix: str) -> PretrainConfig:
    """A recipe of the demo, with or without mixing."""
    found = load_recipe(recipe)
    name = run_name(found.method.method, mix)
    settings = {
        "mix": mix,
        "out": config.out / (f"{PUBLISHED}+{name}" if found.model.init else name),
        "epochs": config.epochs or found.optimisation.epochs,
        **{name: getattr(config, name) for name in ("cache", "seed", "device", "precision")},
    }
    return with_settings(found, settings, "demo")


def random_encoder(recipe: PretrainConfig, folder: Path) -> Path:
    """The run folder of an encoder that was never trained: what pretraining has to beat."""
    model, arch, size, seed = recipe.model, arch_of(recipe), size_of(recipe), recipe.run.seed
    source = list_images(recipe.data.data, recipe.data.data_path, "pretrain")
    about = EncoderDescription(
        arch=arch,
        stem=model.stem,
        size=size,
        mean=source.mean,
        std=source.std,
        training=f"random weights, seed {seed}",
    )
    return untrained(recipe, folder, build_backbone(arch, size, model.stem, seed), about, "random")


def from_weights(config: DemoConfig) -> list[Path]:
    """The run folders of ImageNet weights as they are, and of a run that goes on from them.

    None where the weights are not installed, which is said.
    """
    goes_on = of_demo(config, "demo_from_weights", "mixco")
    try:
        encoder = load_encoder(PUBLISHED, size=size_of(goes_on))
    except UserError as error:
        say(f"without the rows that start from ImageNet weights: {error}")
        return []
    as_they_are = config.out / PUBLISHED
    untrained(goes_on, as_they_are, encoder.backbone, encoder.description, "published")
    return [as_they_are, pretrain(goes_on)]


def untrained(
    recipe: PretrainConfig,
    folder: Path,
    backbone: nn.Module,
    about: EncoderDescription,
    method: str,
) -> Path:
    """A run folder with an encoder that is evaluated as it is. method: what results call it."""
    new_run_folder(folder)
    write_json(folder / "config.json", to_dict(recipe))
    save_encoder(folder / "encoder.safetensors", backbone, about)
    source = list_images(recipe.data.data, recipe.data.data_path, "pretrain")
    shown = {"method": method, "data": source.name, "arch": about.arch, "size": about.size}
    add_result(folder, "pretrain", {**shown, "epochs": 0, "seed": recipe.run.seed})
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


def title_of(name: str) -> str:
    """ "ImageNet + simclr+mixco" of "efficientnet-lite0+simclr+mixco"."""
    own = name.replace(f"{PUBLISHED}+", "ImageNet + ")
    return "ImageNet weights" if own == PUBLISHED else own


def print_table(results: dict[str, Any]) -> None:
    table = Table(title="Test split of the sample: 400 images, 10 classes (chance: 10 %)")
    table.add_column("encoder", no_wrap=True)
    for column in ("kNN", "linear", "its top-5", "trained", "images/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, result in results.items():
        seconds = result["pretrain"].get("seconds")
        rate = result["pretrain"].get("images_per_second")
        table.add_row(
            title_of(name),
            f"{result['knn']['top1']:.1f} %",
            f"{result['linear']['top1']:.1f} %",
            f"{result['linear']['top5']:.1f} %" if "top5" in result["linear"] else "",
            f"{seconds:.0f} s" if seconds else "none",
            f"{rate:,.0f}" if rate else "",
        )
    Console().print(table)
