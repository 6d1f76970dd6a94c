"""An encoder in the formats of other libraries: one function for each format.

Each writes its files into a folder and returns the Python lines that use them there, with that library
alone. The card shows these lines, and `load_back` runs them before the card is written, so a card with
lines that do not work cannot exist.
"""

import dataclasses
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from mixco.encoders.checkpoint import weights_of
from mixco.encoders.loading import LoadedEncoder
from mixco.models.encoder import Stem, resolve_stem
from mixco.runtime.errors import UserError
from mixco.views.augment import finish_evaluation_view

OnnxInput = Literal["unit", "bytes", "normalised"]

OPSET = 18
HERE = 'folder = "."  # of these files'
HUB_NAME = "OWNER/NAME"  # what the card calls its repository until it is pushed to one
JSON_FILE = ("import json", "from pathlib import Path")


@dataclass(frozen=True)
class Lines:
    """Python lines that use an export. They find a PIL image in RGB as `image`."""

    imports: str
    build: str
    """Makes the model, from `folder` or `source`."""
    prepare: str
    """Makes `images` from `image`."""
    library: str
    """The package that loads the export."""
    feed: Callable[[Tensor], Any]
    """Turns uint8 [B, C, S, S] into `images`, for comparing."""
    use: str = "features = model(images)"
    """Makes `features` [B, D] from `images`."""
    where: str = HERE
    """Defines `folder` or `source`; `load_back` has its own definition."""
    tolerance: float = 1e-5
    """The largest difference that is rounding, in parts of the largest feature."""
    note: str = ""
    """What else a person should know, in Markdown."""


def load_back(lines: Lines, folder: Path) -> Callable[[Tensor], Tensor]:
    """The exported model, built by its own lines: uint8 [B, C, S, S] -> float32 [B, D]."""
    names: dict[str, Any] = {"folder": str(folder), "source": f"local-dir:{folder}"}
    exec(f"{lines.imports}\n{lines.build}", names)

    @torch.no_grad()
    def features(pixels: Tensor) -> Tensor:
        names["images"] = lines.feed(pixels)
        exec(lines.use, names)
        return torch.as_tensor(names["features"])

    return features


def as_timm(encoder: LoadedEncoder, folder: Path) -> Lines:
    """Write model.safetensors and pretrained_cfg.json, for timm.create_model."""
    _save_weights(encoder, folder)
    _write_json(folder / "pretrained_cfg.json", pretrained_cfg(encoder))
    read = 'cfg = json.loads(Path(f"{folder}/pretrained_cfg.json").read_text())  # size, mean, std'
    arguments = {"pretrained_cfg": "cfg", **_timm_arguments(encoder)}
    if _stem_lines(encoder):
        return _timm_with_stem(encoder, read, arguments)
    arguments["checkpoint_path"] = 'f"{folder}/model.safetensors"'
    build = [read, _create_model(encoder, arguments), "model.eval()"]
    return _timm_lines(encoder, build, JSON_FILE)


def as_hub(encoder: LoadedEncoder, folder: Path) -> Lines:
    """Write model.safetensors and config.json as timm has them on the Hugging Face hub."""
    _save_weights(encoder, folder)
    arguments = _timm_arguments(encoder)
    config = {
        "architecture": encoder.description.arch,
        "num_classes": 0,
        "num_features": getattr(encoder.backbone, "num_features", None),
        "model_args": {k: v for k, v in arguments.items() if k != "num_classes"},
        "pretrained_cfg": pretrained_cfg(encoder),
    }
    _write_json(folder / "config.json", config)
    by_name = (
        f"mixco takes it by its name, `hf:{HUB_NAME}`, wherever it takes an encoder: "
        f"`mixco pretrain --init hf:{HUB_NAME} --data photos/` goes on training, and "
        f"`mixco embed hf:{HUB_NAME} photos/ --out vectors.npz` writes features of images."
    )
    if not _stem_lines(encoder):
        lines = _timm_lines(encoder, ["model = timm.create_model(source, pretrained=True).eval()"])
        where = f'source = "hf-hub:{HUB_NAME}"  # or "local-dir:" and the path of this folder'
        return dataclasses.replace(lines, where=where, note=by_name)
    return dataclasses.replace(
        _timm_with_stem(
            encoder,
            'config = json.loads(Path(f"{folder}/config.json").read_text())  # size, mean, std',
            {"pretrained_cfg": 'config["pretrained_cfg"]', **arguments},
            imports=("import huggingface_hub",),
        ),
        where=f'folder = huggingface_hub.snapshot_download("{HUB_NAME}")  '
        "# or the path of this folder",
        note="`timm.create_model` alone is not enough: this ResNet has a stem for small images, which "
        "timm has no name for. It ends in an error about the size of `conv1.weight`, never in a wrong "
        f"model. {by_name}",
    )


def as_torchvision(encoder: LoadedEncoder, folder: Path) -> Lines:
    """Write model.pth, the state dict of torchvision's own ResNet without its classifier.

    Raises UserError for all other architectures.
    """
    arch = encoder.description.arch
    is_resnet = isinstance(encoder.backbone, timm.models.ResNet)
    if not (is_resnet and arch in torchvision.models.list_models(torchvision.models)):
        raise UserError(
            f"--to torchvision takes its own ResNets alone, and {arch} is none of them; --to timm, "
            "safetensors and hub take every architecture, and onnx most"
        )
    torch.save(weights_of(encoder.backbone), folder / "model.pth")
    build = [
        f"model = torchvision.models.{arch}()",
        *_stem_lines(encoder, "relu", standard_channels=3),
        "model.fc = torch.nn.Identity()",
        'model.load_state_dict(torch.load(f"{folder}/model.pth", weights_only=True))',
        "model.eval()",
    ]
    imports = ("import torch", "import torchvision", "from torchvision.transforms import v2")
    return Lines(
        imports=_imports(*imports),
        build="\n".join(build),
        prepare=_torchvision_transform(encoder),
        library="torchvision",
        feed=normalised(encoder),
    )


def as_safetensors(encoder: LoadedEncoder, folder: Path) -> Lines:
    """Write model.safetensors, with all that it takes to build and feed the model in its metadata."""
    _save_weights(encoder, folder)
    build = [
        'with safe_open(f"{folder}/model.safetensors", "pt") as file:',
        "    about = file.metadata()  # architecture, input_size, mean, std, ...",
        "    weights = {key: file.get_tensor(key) for key in file.keys()}",
        _create_model(encoder, _timm_arguments(encoder)),
        *_stem_lines(encoder),
        "model.load_state_dict(weights)",
        "model.eval()",
    ]
    imports = (
        *("import json", "import timm", "import torch", "from safetensors import safe_open"),
        "from torchvision.transforms import v2",
    )
    mean, std = 'json.loads(about["mean"])', 'json.loads(about["std"])'
    return Lines(
        imports=_imports(*imports),
        build="\n".join(build),
        prepare=_torchvision_transform(encoder, mean, std),
        library="safetensors",
        feed=normalised(encoder),
    )


def as_onnx(encoder: LoadedEncoder, folder: Path, images: OnnxInput) -> Lines:
    """Write model.onnx: `images` [batch, C, S, S] -> `features` [batch, D], for any batch.

    images: "unit": float32 in [0, 1]; "bytes": uint8; both are normalised in the graph. "normalised":
        float32, normalised already.

    Raises UserError when the extra `onnx` is missing, or torch cannot export the architecture.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401  (the check needs it)
        import onnxscript  # noqa: F401  (torch's exporter does)
    except ImportError as error:
        raise UserError(
            f"--to onnx needs {error.name}; get it by pip install 'mixco[onnx]'"
        ) from None
    about = encoder.description
    graph = nn.Sequential(_Normalise(images, about.mean, about.std), encoder.backbone).eval()
    example = torch.zeros(2, about.channels, about.size, about.size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.11, of its own code
            program = torch.onnx.export(
                graph,
                (example.byte() if images == "bytes" else example,),
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes=({0: "batch"},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # of many kinds, depending on the architecture
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise UserError(
            f"--to onnx: torch cannot export {about.arch} ({reason}); --to timm takes it"
        ) from None
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {**metadata(encoder), "images": images})
    onnx.save(model, folder / "model.onnx")
    return _onnx_lines(encoder, images)


class _Normalise(nn.Module):
    """The first part of an ONNX graph: images of the given kind -> normalised ones."""

    def __init__(self, kind: OnnxInput, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        if self.kind == "normalised":
            return images
        unit = images.to(torch.float32) / 255 if self.kind == "bytes" else images
        return (unit - cast(Tensor, self.mean)) / cast(Tensor, self.std)


def _onnx_lines(encoder: LoadedEncoder, images: OnnxInput) -> Lines:
    about, size = encoder.description, encoder.description.size
    part = crop_pct(size)
    bleed = f", bleed={(1 - part) / 2:g}" if part < 1 else ""
    as_array = "asarray" if about.channels == 3 else "atleast_3d"
    prepare = [
        f"square = ImageOps.fit(image, ({size}, {size}), Image.Resampling.BILINEAR{bleed})",
        f"images = np.{as_array}(square).transpose(2, 0, 1)[None]  # uint8",
        *(["images = images.astype(np.float32) / 255"] if images != "bytes" else []),
    ]
    if images == "normalised":
        prepare += [
            f"mean, std = np.float32({list(about.mean)}), np.float32({list(about.std)})",
            "images = (images - mean[:, None, None]) / std[:, None, None]",
        ]
    kind, feed = {
        "unit": (
            "float32 from 0 to 1; they are normalised in the graph",
            lambda pixels: (pixels / 255).numpy(),
        ),
        "bytes": (
            "uint8 from 0 to 255; they are normalised in the graph",
            lambda pixels: pixels.numpy(),
        ),
        "normalised": (
            "float32, normalised by whoever uses it",
            lambda pixels: normalised(encoder)(pixels).numpy(),
        ),
    }[images]
    imports = ("import numpy as np", "import onnxruntime", "from PIL import Image, ImageOps")
    return Lines(
        imports=_imports(*imports),
        build='providers = ["CPUExecutionProvider"]  # or CUDAExecutionProvider, and others\n'
        'session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=providers)',
        prepare="\n".join(prepare),
        use='(features,) = session.run(None, {"images": images})',
        library="onnxruntime",
        feed=feed,
        tolerance=1e-4,
        note=f"Opset {OPSET}. `images` [batch, {about.channels}, {size}, {size}], for any batch, are "
        f"{kind}.",
    )


# What an export says of itself


def crop_pct(size: int) -> float:
    """How much of the shorter side evaluation sees (`views.evaluation_view`), by timm's name for it."""
    return 1.0 if size <= 112 else 0.875


def pretrained_cfg(encoder: LoadedEncoder) -> dict[str, Any]:
    """timm's description of the weights, which its transforms and its loading follow."""
    about = encoder.description
    own = cast(dict[str, Any], encoder.backbone.pretrained_cfg)
    return {
        "architecture": about.arch,
        "num_classes": 0,
        "input_size": [about.channels, about.size, about.size],
        "fixed_input_size": bool(own.get("fixed_input_size")),
        "crop_pct": crop_pct(about.size),
        "crop_mode": "center",
        "interpolation": "bilinear",
        "mean": list(about.mean),
        "std": list(about.std),
        "first_conv": own.get("first_conv"),
        "classifier": own.get("classifier"),
    }


def metadata(encoder: LoadedEncoder) -> dict[str, str]:
    """How to build and feed the model, as texts beside the weights; mixco itself reads the first."""
    about = encoder.description
    return {
        "mixco": json.dumps(dataclasses.asdict(about)),
        "architecture": about.arch,
        "stem": "small" if _stem_lines(encoder) else "standard",
        "input_size": json.dumps([about.channels, about.size, about.size]),
        "mean": json.dumps(about.mean),
        "std": json.dumps(about.std),
        "pixels": f"{'RGB' if about.channels == 3 else 'as given'}, 0 to 1 before mean and std",
        "crop_pct": str(crop_pct(about.size)),
        "interpolation": "bilinear",
        "training": about.training,
    }


def _save_weights(encoder: LoadedEncoder, folder: Path) -> None:
    about = {"format": "pt", **metadata(encoder)}
    save_file(weights_of(encoder.backbone), folder / "model.safetensors", about)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


# Lines that several formats share


def normalised(encoder: LoadedEncoder) -> Callable[[Tensor], Tensor]:
    """uint8 [B, C, S, S] -> float32, as the encoder expects it."""
    input = encoder.description.input
    return lambda pixels: finish_evaluation_view(pixels, input).contiguous()


def _timm_arguments(encoder: LoadedEncoder) -> dict[str, Any]:
    """What timm.create_model needs beside the name to build the backbone."""
    about = encoder.description
    arguments: dict[str, Any] = {"num_classes": 0}
    if about.channels != 3:
        arguments["in_chans"] = about.channels
    try:  # transformers have positions for one size; other families do not know the argument
        with torch.device("meta"):
            timm.create_model(about.arch, **arguments, img_size=about.size)
    except TypeError:
        return arguments
    return {**arguments, "img_size": about.size}


def _create_model(encoder: LoadedEncoder, arguments: dict[str, Any]) -> str:
    given = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return f'model = timm.create_model("{encoder.description.arch}", {given})'


def _timm_with_stem(
    encoder: LoadedEncoder, read: str, arguments: dict[str, Any], imports: tuple[str, ...] = ()
) -> Lines:
    """Lines for a ResNet whose stem is changed before its weights are loaded."""
    build = [
        read,
        _create_model(encoder, arguments),
        *_stem_lines(encoder),
        'model.load_state_dict(load_file(f"{folder}/model.safetensors"))',
        "model.eval()",
    ]
    stem = ("import torch", "from safetensors.torch import load_file")
    return _timm_lines(encoder, build, (*JSON_FILE, *stem, *imports))


def _timm_lines(encoder: LoadedEncoder, build: list[str], imports: tuple[str, ...] = ()) -> Lines:
    return Lines(
        imports=_imports("import timm", *imports),
        build="\n".join(build),
        prepare="transform = timm.data.create_transform("
        "**timm.data.resolve_model_data_config(model))\nimages = transform(image)[None]",
        library="timm",
        feed=normalised(encoder),
    )


def _stem_lines(
    encoder: LoadedEncoder, activation: str = "act1", standard_channels: int = 0
) -> list[str]:
    """The lines that give a ResNet its stem for small images; none where it has the usual one.

    activation: what the library calls the first one. standard_channels: the only number that the
    library builds a stem for; 0 where it builds any.
    """
    backbone = cast(Any, encoder.backbone)
    about = encoder.description
    small = resolve_stem(cast(Stem, about.stem), about.size, encoder.backbone) != "standard"
    if not small and standard_channels in (0, about.channels):
        return []
    conv: nn.Conv2d = backbone.conv1
    side, stride, padding = conv.kernel_size[0], conv.stride[0], conv.padding[0]
    lines = [
        f"model.conv1 = torch.nn.Conv2d({conv.in_channels}, {conv.out_channels}, {side}, "
        f"stride={stride}, padding={padding}, bias=False)"
    ]
    if isinstance(backbone.maxpool, nn.Identity):
        lines.append("model.maxpool = torch.nn.Identity()")
    if isinstance(backbone.act1, nn.Identity):
        lines.append(f"model.{activation} = torch.nn.Identity()")
    return lines


def _imports(*lines: str) -> str:
    """The import lines in the usual order, among them PIL's Image, which every card needs."""
    pillow = [] if any("from PIL" in line for line in lines) else ["from PIL import Image"]
    ordered = sorted([*lines, *pillow], key=lambda line: (line.startswith("from"), line))
    standard = [line for line in ordered if line in JSON_FILE]
    others = [line for line in ordered if line not in standard]
    return "\n".join([*standard, *([""] if standard else []), *others])


def _torchvision_transform(encoder: LoadedEncoder, mean: str = "", std: str = "") -> str:
    about = encoder.description
    steps = [
        f"v2.Resize({round(about.size / crop_pct(about.size))})",
        f"v2.CenterCrop({about.size})",
        "v2.PILToTensor()",
        "v2.ToDtype(torch.float32, scale=True)",
        f"v2.Normalize({mean or list(about.mean)}, {std or list(about.std)})",
    ]
    listed = "".join(f"    {step},\n" for step in steps)
    return f"transform = v2.Compose([\n{listed}])\nimages = transform(image)[None]"
