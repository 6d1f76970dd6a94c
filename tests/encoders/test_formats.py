"""Exports work elsewhere, by the lines of their cards and without mixco."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sample_images import sample_images

from mixco.data.datasets.sample import MEAN as SAMPLE_MEAN
from mixco.data.datasets.sample import STD as SAMPLE_STD
from mixco.encoders.checkpoint import EncoderDescription, save_encoder
from mixco.encoders.loading import LoadedEncoder, load_encoder
from mixco.export import formats
from mixco.export.export import compare, export
from mixco.models.encoder import build_backbone
from mixco.runtime.errors import UserError
from mixco.settings.commands import ExportConfig
from mixco.views.augment import evaluation_view
from mixco.views.augmentation import Input

pytestmark = pytest.mark.slow

# Architecture, size and stem; the formats, and for onnx what it takes.
ENCODERS = {
    "small": ("resnet18", 64, "auto", ("timm", "torchvision", "safetensors", "hub", "onnx bytes")),
    "linear": ("resnet18", 32, "conv3s1linear", ("timm", "torchvision")),
    "pooled": ("resnet18", 64, "conv3s1pool", ("timm", "torchvision")),
    "standard": ("resnet18", 128, "auto", ("timm", "torchvision", "hub")),
    "large": ("resnet50", 32, "auto", ("hub",)),
    "vit": ("test_vit", 64, "auto", ("timm", "hub", "onnx unit")),
    "convnext": ("convnext_atto", 64, "auto", ("safetensors", "hub")),
    "tiny": ("test_resnet", 64, "auto", ("onnx normalised",)),
}
EXPORTS = [(name, to) for name, (*_, formats_) in ENCODERS.items() for to in formats_]

# What somebody does who has only the folder and its card; mixco cannot be imported.
ELSEWHERE = """
import json, os, re, sys
sys.modules["mixco"] = None
import numpy as np, torch
torch.set_num_threads(1)
root = sys.argv[1]
found = {}
for name in json.loads(sys.argv[2]):
    os.chdir(os.path.join(root, name))
    lines = re.search("```python\\n(.*?)```", open("README.md", encoding="utf-8").read(), re.S)[1]
    lines = lines.replace('"hf-hub:OWNER/NAME"', '"local-dir:."')
    lines = re.sub(r"folder = huggingface_hub.*", 'folder = "."', lines)
    names = {}
    with torch.no_grad():
        exec(lines, names)
    found[name] = np.asarray(names["features"]).tolist()
json.dump(found, sys.stdout)
"""


def encoder_file(folder: Path, arch: str, size: int, stem: str) -> Path:
    """An encoder whose batch norms have seen images, as a trained one's have."""
    backbone = build_backbone(arch, size, stem)  # type: ignore[arg-type]
    images = sample_images(8)
    extents = torch.full((8, 2), 64)
    with torch.no_grad():
        backbone.train()(evaluation_view(images, extents, Input(size, SAMPLE_MEAN, SAMPLE_STD)))
    path = folder / "encoder.safetensors"
    about = EncoderDescription(arch, stem, size, SAMPLE_MEAN, SAMPLE_STD, "random weights, seed 0")
    save_encoder(path, backbone.eval(), about)
    return path


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `<encoder> <format>` for each of EXPORTS, with an image.jpg in it."""
    root = tmp_path_factory.mktemp("exports")
    image = Image.fromarray(sample_images(3)[1].permute(1, 2, 0).numpy())
    for name, (arch, size, stem, _) in ENCODERS.items():
        (root / name).mkdir()
        encoder_file(root / name, arch, size, stem)
    for name, to in EXPORTS:
        to_, _, onnx_input = to.partition(" ")
        config = ExportConfig(root / name, to=to_, out=root / f"{name} {to}")  # type: ignore[arg-type]
        if onnx_input:
            config = dataclasses.replace(config, onnx_input=onnx_input)  # type: ignore[arg-type]
        out = export(config)
        image.save(out / "image.jpg", format="PNG")  # lossless, whatever its name
    return root


@pytest.fixture(scope="module")
def elsewhere(exports: Path) -> dict[str, torch.Tensor]:
    """The features of image.jpg by the lines of each card, in a process that cannot import mixco."""
    names = json.dumps([f"{name} {to}" for name, to in EXPORTS])
    command = [sys.executable, "-c", ELSEWHERE, str(exports), names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: torch.tensor(found) for name, found in json.loads(done.stdout).items()}


@pytest.mark.parametrize(("name", "to"), EXPORTS)
def test_the_cards_lines_give_our_features_without_us(
    exports: Path, elsewhere: dict[str, torch.Tensor], name: str, to: str
) -> None:
    encoder = load_encoder(exports / name)
    pixels, size = sample_images(3)[1:2], encoder.description.size
    view = evaluation_view(pixels, torch.tensor([[64, 64]]), encoder.description.input)
    with torch.no_grad():
        ours = encoder.backbone(view)
    theirs = elsewhere[f"{name} {to}"]
    assert theirs.shape == ours.shape
    # Where the image is resized, they round to bytes after it and we do not.
    allowed = 1e-4 if size == 64 else 0.05
    assert (theirs - ours).abs().max() < allowed * ours.abs().max()


def test_mixco_takes_its_exports_back(exports: Path) -> None:
    for to in ("timm", "safetensors", "hub"):
        folder = exports / f"small {to}"
        for back in (load_encoder(folder), load_encoder(folder / "model.safetensors")):
            assert back.description == load_encoder(exports / "small").description


def test_what_a_file_says_of_itself(exports: Path) -> None:
    from safetensors import safe_open

    with safe_open(exports / "small safetensors" / "model.safetensors", "pt") as file:
        about = file.metadata()
    assert json.loads(about["mean"]) == list(SAMPLE_MEAN)
    assert json.loads(about["input_size"]) == [3, 64, 64]
    assert about["stem"] == "small"

    import onnx

    model = onnx.load(exports / "small onnx bytes" / "model.onnx")
    assert [entry.version for entry in model.opset_import if not entry.domain] == [formats.OPSET]
    (taken,) = model.graph.input
    assert taken.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert taken.type.tensor_type.shape.dim[0].dim_param == "batch"
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(properties["std"]) == list(SAMPLE_STD)


def test_timm_does_not_take_a_small_stem_for_a_usual_one(exports: Path) -> None:
    with pytest.raises(RuntimeError, match=r"size mismatch for conv1\.weight"):
        timm.create_model(f"local-dir:{exports / 'small hub'}", pretrained=True)


def test_an_export_that_gives_other_features_is_refused(exports: Path, tmp_path: Path) -> None:
    encoder = load_encoder(exports / "small")
    lines = formats.as_timm(encoder, tmp_path)
    pixels = sample_images(16)
    assert "the largest difference was" in compare(encoder, lines, tmp_path, pixels, "the sample")
    without = lines.build.replace("model.maxpool = torch.nn.Identity()\n", "")
    assert without != lines.build
    lines = dataclasses.replace(lines, build=without)
    with pytest.raises(UserError, match=r"features differ by .* nothing was written"):
        compare(encoder, lines, tmp_path, pixels, "the sample")
    encoder.backbone.bn1.running_mean.fill_(np.nan)
    with pytest.raises(UserError, match="features differ by nan"):
        compare(encoder, formats.as_timm(encoder, tmp_path), tmp_path, pixels, "the sample")


def test_an_export_that_does_not_load_is_refused(exports: Path, tmp_path: Path) -> None:
    encoder = load_encoder(exports / "small")
    lines = formats.as_timm(encoder, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"timm .* cannot load what was written \(SafetensorError"):
        compare(encoder, lines, tmp_path, sample_images(2), "the sample")


@pytest.mark.parametrize("to", [formats.as_timm, formats.as_torchvision, formats.as_hub])
def test_other_channels_than_three(
    tmp_path: Path, to: Callable[[LoadedEncoder, Path], formats.Lines]
) -> None:
    backbone = timm.create_model("resnet18", num_classes=0, in_chans=4).eval()
    about = EncoderDescription("resnet18", "standard", 32, (0.4,) * 4, (0.2,) * 4, "random weights")
    encoder = LoadedEncoder(backbone, about, tmp_path, 120)
    pixels = sample_images(2)[:, [0, 1, 2, 0], ::2, ::2]
    assert "2 images" in compare(encoder, to(encoder, tmp_path), tmp_path, pixels, "the sample")


def test_what_cannot_be_exported_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    encoder_file(tmp_path, "test_vit", 32, "auto")
    for config, message in (
        (ExportConfig(tmp_path, to="torchvision"), "--to torchvision .*test_vit.* --to timm"),
        (ExportConfig(tmp_path, onnx_input="bytes"), "--onnx-input bytes: only --to onnx"),
        (ExportConfig(tmp_path, out=tmp_path), "it is there already; remove it, or give another"),
        (ExportConfig(tmp_path / "nothing"), "there is no such file"),
    ):
        with pytest.raises(UserError, match=message):
            export(config)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["encoder.safetensors"]
