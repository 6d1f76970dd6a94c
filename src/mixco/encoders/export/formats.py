"""An encoder in the formats of other libraries: one function a format.

Each writes its files into a folder and returns the lines of Python that use them there, with that
library alone. The lines are what people read in the card, and what `load_back` runs: a card
whose lines do not work cannot be written.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from mixco.encoders.checkpoint import LoadedEncoder
from mixco.runtime.errors import UserError
from mixco.views.augment import finish_evaluation_view

OnnxInput = Literal["unit", "bytes", "normalised"]

OPSET = 18
HUB_NAME = "OWNER/NAME"  # what the card calls its repository until it is pushed to one


@dataclass(frozen=True)
class Lines:
    """Python that uses an export. `image` is a PIL image in RGB there, `features` is [B, D]."""

    imports: str
    where: str
    """Defines `folder` or `source`, which `load_back` gives itself."""
    build: str
    prepare: str
    """Makes `images` of `image`."""
    use: str
    """Makes `features` of `images`."""
    library: str
    """The distribution that loads it."""
    feed: Callable[[Tensor], Any]
    """uint8 [B, C, S, S] as `images` expects it."""
    tolerance: float
    """The largest difference that may be, as a share of the largest feature."""
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
    """model.safetensors and pretrained_cfg.json, for timm.create_model."""
    _save_weights(encoder, folder / "model.safetensors")
    _write_json(folder / "pretrained_cfg.json", pretrained_cfg(encoder))
    stem = _stem_lines(encoder, "act1")
    arguments = {"pretrained_cfg": "cfg", **_timm_arguments(encoder)}
    if not stem:
        arguments["checkpoint_path"] = 'f"{folder}/model.safetensors"'
    build = [
        'cfg = json.loads(Path(f"{folder}/pretrained_cfg.json").read_text())  # size, mean, std',
        _create_model(encoder, arguments),
        *stem,
        *(['model.load_state_dict(load_file(f"{folder}/model.safetensors"))'] if stem else []),
        "model.eval()",
    ]
    return _timm_lines(
        encoder,
        imports=("import json", "from pathlib import Path", *_needed_for(stem)),
        where=HERE,
        build=build,
    )


def as_hub(encoder: LoadedEncoder, folder: Path) -> Lines:
    """model.safetensors and config.json as timm has them on the Hugging Face hub."""
    _save_weights(encoder, folder / "model.safetensors")
    config = {
        "architecture": encoder.description.arch,
        "num_classes": 0,
        "num_features": getattr(encoder.backbone, "num_features", None),
        "model_args": {k: v for k, v in _timm_arguments(encoder).items() if k != "num_classes"},
        "pretrained_cfg": pretrained_cfg(encoder),
    }
    _write_json(folder / "config.json", config)
    stem = _stem_lines(encoder, "act1")
    if not stem:
        return _timm_lines(
            encoder,
            imports=(),
            where=f'source = "hf-hub:{HUB_NAME}"  # or "local-dir:" and the path of this folder',
            build=["model = timm.create_model(source, pretrained=True).eval()"],
        )
    build = [
        'config = json.loads(Path(f"{folder}/config.json").read_text())  # size, mean, std',
        _create_model(
            encoder, {"pretrained_cfg": 'config["pretrained_cfg"]', **_timm_arguments(encoder)}
        ),
        *stem,
        'model.load_state_dict(load_file(f"{folder}/model.safetensors"))',
        "model.eval()",
    ]
    here = ("import json", "from pathlib import Path", "import huggingface_hub")
    lines = _timm_lines(
        encoder,
        imports=(*here, *_needed_for(stem)),
        where=f'folder = huggingface_hub.snapshot_download("{HUB_NAME}")  # or the path of this folder',
        build=build,
    )
    note = (
        "`timm.create_model` alone does not suffice: this ResNet has a stem for small images, which "
        "timm cannot be asked for by name. It ends in an error about the size of `conv1.weight`, "
        "never in a wrong model."
    )
    return dataclasses.replace(lines, note=note)


def as_torchvision(encoder: LoadedEncoder, folder: Path) -> Lines:
    """model.pth, the state dict of torchvision's own ResNet without its classifier.

    Raises UserError for all other architectures.
    """
    arch, backbone = encoder.description.arch, encoder.backbone
    is_resnet = isinstance(backbone, timm.models.ResNet)
    if not (is_resnet and arch in torchvision.models.list_models(torchvision.models)):
        raise UserError(
            f"--to torchvision: {arch} is no ResNet of torchvision's, its weights have no place there; "
            "--to timm, safetensors and hub take every architecture, onnx most"
        )
    torch.save(_weights(encoder), folder / "model.pth")
    build = [
        f"model = torchvision.models.{arch}()",
        *_stem_lines(encoder, "relu", standard_channels=3),
        "model.fc = torch.nn.Identity()",
        'model.load_state_dict(torch.load(f"{folder}/model.pth", weights_only=True))',
        "model.eval()",
    ]
    return Lines(
        imports=_imports(
            "import torch", "import torchvision", "from torchvision.transforms import v2"
        ),
        where=HERE,
        build="\n".join(build),
        prepare=_torchvision_transform(encoder),
        use="features = model(images)",
        library="torchvision",
        feed=normalised(encoder),
        tolerance=1e-5,
    )


def as_safetensors(encoder: LoadedEncoder, folder: Path) -> Lines:
    """model.safetensors, the way to build it and to feed it in its metadata."""
    _save_weights(encoder, folder / "model.safetensors")
    stem = _stem_lines(encoder, "act1")
    build = [
        'with safe_open(f"{folder}/model.safetensors", "pt") as file:',
        "    about = file.metadata()  # architecture, input_size, mean, std, ...",
        "    weights = {key: file.get_tensor(key) for key in file.keys()}",
        _create_model(encoder, _timm_arguments(encoder)),
        *stem,
        "model.load_state_dict(weights)",
        "model.eval()",
    ]
    imports = (
        *("import json", "import timm", "import torch", "from safetensors import safe_open"),
        "from torchvision.transforms import v2",
    )
    return Lines(
        imports=_imports(*imports),
        where=HERE,
        build="\n".join(build),
        prepare=_torchvision_transform(
            encoder, 'json.loads(about["mean"])', 'json.loads(about["std"])'
        ),
        use="features = model(images)",
        library="safetensors",
        feed=normalised(encoder),
        tolerance=1e-5,
    )


def as_onnx(encoder: LoadedEncoder, folder: Path, images: OnnxInput) -> Lines:
    """model.onnx: `images` [batch, C, S, S] -> `features` [batch, D], for any batch.

    images: "unit": float32 from 0 to 1, and "bytes": uint8, are normalised in the graph;
        "normalised": float32 that whoever uses it has normalised.

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
    about, size = encoder.description, encoder.description.size
    graph = nn.Sequential(_FromPixels(images, about.mean, about.std), encoder.backbone).eval()
    example = torch.zeros(2, channels(encoder), size, size)
    try:
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
    except Exception as error:  # of many kinds, by what the architecture does
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise UserError(
            f"--to onnx: torch cannot export {about.arch} ({reason}); --to timm takes it"
        ) from None
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {**metadata(encoder), "images": images})
    onnx.save(model, folder / "model.onnx")

    square = f"ImageOps.fit(image, ({size}, {size}), Image.Resampling.BILINEAR"
    square += f", bleed={(1 - crop_share(size)) / 2:g})" if crop_share(size) < 1 else ")"
    as_array = "asarray" if channels(encoder) == 3 else "atleast_3d"
    prepare = [
        f"square = {square}",
        f"images = np.{as_array}(square).transpose(2, 0, 1)[None]  # uint8",
        *(["images = images.astype(np.float32) / 255"] if images != "bytes" else []),
    ]
    if images == "normalised":
        prepare += [
            f"mean, std = np.float32({list(about.mean)}), np.float32({list(about.std)})",
            "images = (images - mean[:, None, None]) / std[:, None, None]",
        ]
    told = {
        "unit": "float32 from 0 to 1; they are normalised in the graph",
        "bytes": "uint8 from 0 to 255; they are normalised in the graph",
        "normalised": "float32, normalised by whoever uses it",
    }[images]

    def feed(pixels: Tensor) -> Any:
        if images == "bytes":
            return pixels.numpy()
        return (normalised(encoder)(pixels) if images == "normalised" else pixels / 255).numpy()

    return Lines(
        imports=_imports(
            "import numpy as np", "import onnxruntime", "from PIL import Image, ImageOps"
        ),
        where=HERE,
        build='providers = ["CPUExecutionProvider"]  # or CUDAExecutionProvider, and others\n'
        'session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=providers)',
        prepare="\n".join(prepare),
        use='(features,) = session.run(None, {"images": images})',
        library="onnxruntime",
        feed=feed,
        tolerance=1e-4,
        note=f"Opset {OPSET}. `images` [batch, {channels(encoder)}, {size}, {size}], for any batch, "
        f"are {told}.",
    )


HERE = 'folder = "."  # of these files'


def channels(encoder: LoadedEncoder) -> int:
    """Of the images, by the first convolution."""
    return next(p.shape[1] for p in encoder.backbone.parameters() if p.ndim == 4)


def crop_share(size: int) -> float:
    """How much of the shorter side the square has that evaluation sees (`views.evaluation_view`)."""
    return 1.0 if size <= 112 else 0.875


def pretrained_cfg(encoder: LoadedEncoder) -> dict[str, Any]:
    """timm's description of the weights: what its transforms and its loading go by."""
    about = encoder.description
    own = cast(dict[str, Any], encoder.backbone.pretrained_cfg)
    return {
        "architecture": about.arch,
        "num_classes": 0,
        "input_size": [channels(encoder), about.size, about.size],
        "fixed_input_size": bool(own.get("fixed_input_size")),
        "crop_pct": crop_share(about.size),
        "crop_mode": "center",
        "interpolation": "bilinear",
        "mean": list(about.mean),
        "std": list(about.std),
        "first_conv": own.get("first_conv"),
        "classifier": own.get("classifier"),
    }


def metadata(encoder: LoadedEncoder) -> dict[str, str]:
    """How to build it and how to feed it, as texts beside the weights; mixco reads its own of them."""
    about = encoder.description
    return {
        "mixco": json.dumps(dataclasses.asdict(about)),
        "architecture": about.arch,
        "stem": "small" if _stem_lines(encoder, "act1") else "standard",
        "input_size": json.dumps([channels(encoder), about.size, about.size]),
        "mean": json.dumps(about.mean),
        "std": json.dumps(about.std),
        "pixels": f"{'RGB' if channels(encoder) == 3 else 'as given'}, 0 to 1 before mean and std",
        "crop_pct": str(crop_share(about.size)),
        "interpolation": "bilinear",
        "training": about.training,
    }


class _FromPixels(nn.Module):
    """What stands before the backbone in a graph: images of whatever kind -> normalised."""

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


def _weights(encoder: LoadedEncoder) -> dict[str, Tensor]:
    return {k: v.detach().contiguous() for k, v in encoder.backbone.state_dict().items()}


def _save_weights(encoder: LoadedEncoder, path: Path) -> None:
    save_file(_weights(encoder), path, {"format": "pt", **metadata(encoder)})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def normalised(encoder: LoadedEncoder) -> Callable[[Tensor], Tensor]:
    input = encoder.description.input
    return lambda pixels: finish_evaluation_view(pixels, input).contiguous()


def _timm_arguments(encoder: LoadedEncoder) -> dict[str, Any]:
    """What timm.create_model needs beside the name to build the backbone."""
    arguments: dict[str, Any] = {"num_classes": 0}
    if channels(encoder) != 3:
        arguments["in_chans"] = channels(encoder)
    arch, size = encoder.description.arch, encoder.description.size
    try:  # transformers have positions for one size, other families do not know the argument
        timm.create_model(arch, **arguments, img_size=size)
    except TypeError:
        return arguments
    return {**arguments, "img_size": size}


def _create_model(encoder: LoadedEncoder, arguments: dict[str, Any]) -> str:
    given = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return f'model = timm.create_model("{encoder.description.arch}", {given})'


def _stem_lines(encoder: LoadedEncoder, activation: str, standard_channels: int = 0) -> list[str]:
    """The lines that give a ResNet its stem for small images; none where it has the usual one.

    standard_channels: for a library that builds it for so many channels alone.
    """
    backbone = cast(Any, encoder.backbone)
    small = isinstance(getattr(backbone, "maxpool", None), nn.Identity)
    other = standard_channels and channels(encoder) != standard_channels
    if not (small or other):
        return []
    conv: nn.Conv2d = backbone.conv1
    side, stride, padding = conv.kernel_size[0], conv.stride[0], conv.padding[0]
    lines = [
        f"model.conv1 = torch.nn.Conv2d({conv.in_channels}, {conv.out_channels}, {side}, "
        f"stride={stride}, padding={padding}, bias=False)"
    ]
    if small:
        lines.append("model.maxpool = torch.nn.Identity()")
        if isinstance(backbone.act1, nn.Identity):
            lines.append(f"model.{activation} = torch.nn.Identity()")
    return lines


def _needed_for(stem: list[str]) -> tuple[str, ...]:
    return ("import torch", "from safetensors.torch import load_file") if stem else ()


def _imports(*lines: str) -> str:
    """In the usual order, with PIL's Image, by which every card opens an image."""
    pillow = [] if any("from PIL" in line for line in lines) else ["from PIL import Image"]
    ordered = sorted([*lines, *pillow], key=lambda line: (line.startswith("from"), line))
    standard = [line for line in ordered if line in ("import json", "from pathlib import Path")]
    others = [line for line in ordered if line not in standard]
    return "\n".join([*standard, *([""] if standard else []), *others])


def _timm_lines(
    encoder: LoadedEncoder, *, imports: tuple[str, ...], where: str, build: list[str]
) -> Lines:
    return Lines(
        imports=_imports("import timm", *imports),
        where=where,
        build="\n".join(build),
        prepare="transform = timm.data.create_transform("
        "**timm.data.resolve_model_data_config(model))\nimages = transform(image)[None]",
        use="features = model(images)",
        library="timm",
        feed=normalised(encoder),
        tolerance=1e-5,
    )


def _torchvision_transform(encoder: LoadedEncoder, mean: str = "", std: str = "") -> str:
    about = encoder.description
    steps = [
        f"v2.Resize({round(about.size / crop_share(about.size))})",
        f"v2.CenterCrop({about.size})",
        "v2.PILToTensor()",
        "v2.ToDtype(torch.float32, scale=True)",
        f"v2.Normalize({mean or list(about.mean)}, {std or list(about.std)})",
    ]
    listed = "".join(f"    {step},\n" for step in steps)
    return f"transform = v2.Compose([\n{listed}])\nimages = transform(image)[None]"
