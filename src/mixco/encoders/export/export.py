"""`mixco export`: write a format, load it back with its library, compare, write the card."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixco.data.datasets.sources import list_images
from mixco.data.pixel_format import infer_pixel_format
from mixco.data.streaming import stream
from mixco.encoders.checkpoint import LoadedEncoder, load_encoder
from mixco.encoders.export import formats
from mixco.encoders.export.card import card, hub_header
from mixco.encoders.export.formats import Lines, channels, crop_share, load_back
from mixco.runtime.device import Compute
from mixco.runtime.errors import UserError
from mixco.runtime.files import new_folder
from mixco.runtime.progress import say
from mixco.runtime.run_folder import read_json
from mixco.settings.config import ExportConfig
from mixco.views.augment import Input

FORMATS: dict[str, Callable[[LoadedEncoder, Path], Lines]] = {
    "timm": formats.as_timm,
    "torchvision": formats.as_torchvision,
    "safetensors": formats.as_safetensors,
    "hub": formats.as_hub,
}
IMAGES = 16
FEWER = (1, 5)  # batches that the loaded model is asked with, beside all images at once


def export(config: ExportConfig) -> Path:
    """Export an encoder, once what was written gives the same features when it is loaded back.

    Returns the new folder: the format's files, and README.md, the model card.
    Raises UserError for what `load_encoder` refuses, for an architecture that the format has no place
    for, for a folder that holds something, and when the features differ. Then nothing is left.
    """
    if config.onnx_input != "unit" and config.to != "onnx":
        raise UserError(f"--onnx-input {config.onnx_input}: only --to onnx has it; leave it out")
    encoder = load_encoder(config.run, arch=config.arch, stem=config.stem, size=config.size)
    for line in encoder.report:
        say(line)
    run = _run_of(encoder.path)
    settings = read_json(run / "config.json") if run else None
    beside = config.run if config.run.is_dir() else config.run.parent
    out = config.out or beside / "exports" / config.to
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: it is there already; remove it, or give another --out")
    try:
        with new_folder(out) as folder:
            if config.to == "onnx":
                lines = formats.as_onnx(encoder, folder, config.onnx_input)
            else:
                lines = FORMATS[config.to](encoder, folder)
            pixels, seen = _real_images(encoder, settings)
            checked = compare(encoder, lines, folder, pixels, seen)
            header = ""
            if config.to == "hub":
                training = encoder.description.training
                header = hub_header(training=training, config=settings, licence=config.license)
            text = header + _card(encoder, lines, checked, run, settings, config.license)
            (folder / "README.md").write_text(text, "utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
    say(checked)
    return out


@torch.no_grad()
def compare(encoder: LoadedEncoder, lines: Lines, folder: Path, pixels: Tensor, seen: str) -> str:
    """The export, loaded back by its own lines, against the encoder; what was found, in a sentence.

    pixels: uint8 [B, C, S, S]. Raises UserError when the features differ by more than rounding.
    """
    about = encoder.description
    expected = encoder.backbone(formats.normalised(encoder)(pixels))
    batches = sorted({*(count for count in FEWER if count < len(pixels)), len(pixels)})
    library = f"{lines.library} {import_module(lines.library).__version__}"
    try:
        features = load_back(lines, folder)
        found = [(features(pixels[:count]) - expected[:count]).abs().max() for count in batches]
    except Exception as error:  # of the library's own kinds
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{about.arch}: {library} cannot load what was written ({type(error).__name__}: {reason}); "
            "nothing was left, use another --to"
        ) from error
    largest = (torch.stack(found).max() / expected.abs().max()).item()
    if not largest <= lines.tolerance:  # NaN is not
        raise UserError(
            f"{about.arch}: loaded back with {library}, features differ by {largest:.2g} of the largest "
            f"one where {lines.tolerance:g} is rounding; nothing was written, use another --to"
        )
    *few, most = map(str, batches)
    sizes = [", ".join(few), most] if few else [most]
    return (
        f"Loaded back with {library}, it gave the features of mixco's encoder for {len(pixels)} images "
        f"of {seen}, in batches of {' and '.join(sizes)}: the largest "
        f"difference was {largest:.1g} of the largest feature, where {lines.tolerance:g} is allowed."
    )


def _run_of(path: Path) -> Path | None:
    """The run folder that an encoder or a checkpoint lies in."""
    for folder in (path.parent, path.parent.parent):
        config = folder / "config.json"
        if config.is_file() and {"data", "method", "run"} <= read_json(config).keys():
            return folder
    return None


def _real_images(encoder: LoadedEncoder, config: dict[str, Any] | None) -> tuple[Tensor, str]:
    """What evaluation sees of the run's images, else the sample's: uint8 [B, C, S, S], and which."""
    if config is not None:
        try:
            data = config["data"]
            place = Path(data["data_path"]) if data["data_path"] else None
            cache = Path(data["cache"]).expanduser()
            size = encoder.description.size
            return _some_of(data["data"], place, cache, size, channels(encoder))
        except UserError as error:
            say(f"the run's own images cannot be had ({error}); compared on the sample's")
    pixels, name = _some_of("sample", None, None, encoder.description.size, 3)
    return pixels[:, torch.arange(channels(encoder)) % 3], name


def _some_of(
    data: str, place: Path | None, cache: Path | None, size: int, channels: int
) -> tuple[Tensor, str]:
    source = list_images(data, place, "pretrain", cache)
    count = len(source.files)
    batches = stream(infer_pixel_format(source, channels, None), workers=0).evaluation_batches(
        torch.linspace(0, count - 1, min(IMAGES, count)).long(),
        Input(size, (0.0,) * channels, (1.0,) * channels),  # pixels stay as they are
        compute=Compute(torch.device("cpu"), torch.float32),
        on_unreadable=lambda *_: None,
    )
    unit = torch.cat([batch for _, batch in batches])
    return (unit * 255).round().to(torch.uint8).contiguous(), source.name


def _card(
    encoder: LoadedEncoder,
    lines: Lines,
    checked: str,
    run: Path | None,
    config: dict[str, Any] | None,
    licence: str | None,
) -> str:
    about = encoder.description

    def written(name: str) -> dict[str, Any]:
        path = (run or encoder.path.parent) / name
        return dict(read_json(path)) if run and path.exists() else {}

    with torch.no_grad():
        blank = torch.zeros(1, channels(encoder), about.size, about.size)
        features = encoder.backbone(blank).shape[1]
    return card(
        arch=about.arch,
        training=about.training,
        features=features,
        weights=sum(p.numel() for p in encoder.backbone.parameters()),
        input_size=(channels(encoder), about.size),
        mean=about.mean,
        std=about.std,
        whole=crop_share(about.size) == 1,
        source=encoder.path.name,
        lines=lines,
        checked=checked,
        config=config,
        results=written("results.json"),
        versions=written("versions.json"),
        licence=licence,
    )
