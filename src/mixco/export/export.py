"""`mixco export`: write a format, load it back with its library, compare, write the card."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixco.data.datasets import Where
from mixco.data.pixel_format import infer_pixel_format
from mixco.data.run_images import cache_of, find_images, where_in
from mixco.data.streaming import stream
from mixco.encoders.loading import LoadedEncoder, load_encoder
from mixco.encoders.published import is_published
from mixco.export import formats
from mixco.export.card import card, hub_header
from mixco.export.formats import Lines, load_back
from mixco.models.families import first_line
from mixco.runtime.device import Compute
from mixco.runtime.errors import UserError
from mixco.runtime.files import new_folder
from mixco.runtime.progress import say
from mixco.runtime.run_folder import read_json
from mixco.settings.commands import ExportConfig
from mixco.settings.config import DataConfig
from mixco.views.augmentation import Input

FORMATS: dict[str, Callable[[LoadedEncoder, Path], Lines]] = {
    "timm": formats.as_timm,
    "torchvision": formats.as_torchvision,
    "safetensors": formats.as_safetensors,
    "hub": formats.as_hub,
}
IMAGES = 16
FEWER = (1, 5)  # smaller batches that the loaded model is tried with, beside all images at once


def export(config: ExportConfig) -> Path:
    """Export an encoder, after checking that what was written gives the same features when loaded back.

    Returns the new folder: the format's files, and README.md, the model card.
    Raises UserError for what `load_encoder` refuses, for an architecture that the format cannot hold,
    for a folder that is not empty, and when the features differ. Then nothing is left behind.
    """
    if config.onnx_input != "unit" and config.to != "onnx":
        raise UserError(f"--onnx-input {config.onnx_input}: only --to onnx has it; leave it out")
    encoder = load_encoder(config.run, **vars(config.encoder))
    for line in encoder.report:
        say(line)
    run = _run_of(encoder.path)
    settings = read_json(run / "config.json") if run else None
    by_name = is_published(str(config.run))
    beside = Path() if by_name else encoder.path.parent
    out = config.out or beside / "exports" / config.to
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: it is there already; remove it, or give another --out")
    try:
        with new_folder(out) as folder:
            if config.to == "onnx":
                lines = formats.as_onnx(encoder, folder, config.onnx_input)
            else:
                lines = FORMATS[config.to](encoder, folder)
            pixels, name = _real_images(encoder, run, settings)
            checked = compare(encoder, lines, folder, pixels, name)
            header = ""
            if config.to == "hub":
                header = hub_header(encoder.description.training, settings, config.license)
            text = card(
                encoder.description,
                lines,
                features=_features(encoder, pixels[:1]).shape[1],
                weights=sum(p.numel() for p in encoder.backbone.parameters()),
                source=str(config.run) if by_name else encoder.path.name,
                checked=checked,
                config=settings,
                results=_written(run, "results.json"),
                versions=_written(run, "versions.json"),
                licence=config.license,
            )
            (folder / "README.md").write_text(header + text, "utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
    say(checked)
    return out


def rehearse(encoder: LoadedEncoder, folder: Path) -> None:
    """Try the format that needs no other library, into an empty folder, and compare on two images.

    Raises UserError when the encoder cannot be exported.
    """
    about = encoder.description
    draws = torch.Generator().manual_seed(0)
    shape = (2, about.channels, about.size, about.size)
    pixels = torch.randint(256, shape, generator=draws, dtype=torch.uint8)
    try:
        compare(encoder, formats.as_timm(encoder, folder), folder, pixels, "noise")
    except Exception as error:  # of the library's own kinds, too
        reason = first_line(error).partition("; nothing was")[0]
        raise UserError(
            f"--arch {about.arch}: the encoder could not be exported ({reason}); nothing was trained, "
            "give another --arch"
        ) from error


def compare(encoder: LoadedEncoder, lines: Lines, folder: Path, pixels: Tensor, name: str) -> str:
    """Compare an export, loaded back by its own lines, with the encoder; a sentence about it.

    pixels: uint8 [B, C, S, S], of the images called `name`. Raises UserError when the features differ by
    more than rounding.
    """
    arch = encoder.description.arch
    expected = _features(encoder, pixels)
    batches = sorted({*(count for count in FEWER if count < len(pixels)), len(pixels)})
    library = f"{lines.library} {import_module(lines.library).__version__}"
    try:
        features = load_back(lines, folder)
        found = [(features(pixels[:count]) - expected[:count]).abs().max() for count in batches]
    except Exception as error:  # of the library's own kinds
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{arch}: {library} cannot load what was written ({type(error).__name__}: {reason}); "
            "nothing was left, use another --to"
        ) from error
    largest = (torch.stack(found).max() / expected.abs().max()).item()
    if not largest <= lines.tolerance:  # NaN is not
        raise UserError(
            f"{arch}: loaded back with {library}, features differ by {largest:.2g} of the largest "
            f"feature, more than rounding ({lines.tolerance:g}); nothing was written, use another --to"
        )
    *few, most = map(str, batches)
    sizes = " and ".join(filter(None, (", ".join(few), most)))
    return (
        f"Loaded back with {library}, it gave the features of mixco's encoder for {len(pixels)} images "
        f"of {name}, in batches of {sizes}: the largest difference was {largest:.1g} of the largest "
        f"feature, where {lines.tolerance:g} is allowed."
    )


@torch.no_grad()
def _features(encoder: LoadedEncoder, pixels: Tensor) -> Tensor:
    """float32 [B, D] of uint8 [B, C, S, S], by mixco's own encoder."""
    features: Tensor = encoder.backbone(formats.normalised(encoder)(pixels))
    return features


def _run_of(path: Path) -> Path | None:
    """The run folder that an encoder or a checkpoint lies in."""
    for folder in (path.parent, path.parent.parent):
        config = folder / "config.json"
        if config.is_file() and {"data", "method", "run"} <= read_json(config).keys():
            return folder
    return None


def _written(run: Path | None, name: str) -> dict[str, Any]:
    """What a file of the run holds; {} without a run or the file."""
    return dict(read_json(run / name)) if run and (run / name).exists() else {}


def _real_images(
    encoder: LoadedEncoder, run: Path | None, config: dict[str, Any] | None
) -> tuple[Tensor, str]:
    """Some of the run's images, else of the sample, as evaluation sees them, and their name.

    uint8 [B, C, S, S], not normalised.
    """
    channels, size = encoder.description.channels, encoder.description.size
    if run is not None and config is not None:
        try:
            usual = DataConfig().cache
            cache = cache_of(run, Path(str(config["data"].get("cache", usual))), usual)
            where = find_images(run, where_in(config["data"]), cache)
            return _some_of(where, cache, size, channels)
        except UserError as error:
            say(f"the run's own images cannot be opened ({error}); comparing on the sample's")
    pixels, name = _some_of(Where("sample", None), None, size, 3)
    return pixels[:, torch.arange(channels) % 3], name


def _some_of(where: Where, cache: Path | None, size: int, channels: int) -> tuple[Tensor, str]:
    source = where.images("pretrain", cache)
    count = len(source.files)
    batches = stream(infer_pixel_format(source, channels, None), workers=0).evaluation_batches(
        torch.linspace(0, count - 1, min(IMAGES, count)).long(),
        Input(size, (0.0,) * channels, (1.0,) * channels),  # not normalised
        compute=Compute(torch.device("cpu"), torch.float32),
        on_unreadable=lambda *_: None,
    )
    unit = torch.cat([batch for _, batch in batches])
    return (unit * 255).round().to(torch.uint8).contiguous(), source.name
