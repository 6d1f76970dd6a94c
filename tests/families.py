"""A model of timm through building, a step, saving and loading; or to a refusal whose remedy works."""

import re
import tempfile
from pathlib import Path

import torch

from mixco.encoders.checkpoint import EncoderDescription, save_encoder
from mixco.encoders.loading import load_encoder
from mixco.methods.simclr import SimCLR
from mixco.mixing import mixco
from mixco.models.encoder import Encoder, build_backbone, feature_dim
from mixco.models.heads import build_head
from mixco.runtime.errors import UserError

BATCH = 4


def through(arch: str, size: int) -> str:
    """A step, saving and loading; what is to be told of it. Raises UserError, or AssertionError."""
    backbone = build_backbone(arch, size)
    features = feature_dim(backbone, size)
    encoder = Encoder(backbone, build_head(features, 16, "mlp"))
    method = SimCLR(
        encoder, temperature=0.2, mix=mixco, mix_temperature=0.2, mix_weight=1.0, micro_batches=1
    )
    images = torch.rand(BATCH, 3, size, size)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method([images, images.flip(-1)], torch.Generator().manual_seed(0), BATCH)["loss"]
    loss.backward()
    assert loss.isfinite(), "the loss is not finite"
    still = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert len(still) * 10 <= len(list(encoder.parameters())), f"no gradient: {still[:3]} ..."
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder, "encoder.safetensors")
        half = (0.5,) * 3
        save_encoder(path, backbone, EncoderDescription(arch, "auto", size, half, half, "one step"))
        expected = backbone.eval()(images)
        assert torch.equal(load_encoder(path).backbone(images), expected), "other features"
        one = backbone(images[:1])
    assert expected.shape == (BATCH, features), f"features of shape {list(expected.shape)}"
    assert one.shape == (1, features), f"features of one image of shape {list(one.shape)}"
    return f"{features} features" + (f", no gradient: {', '.join(still)}" if still else "")


def tried(arch: str, size: int) -> tuple[bool, str]:
    """Did it end as it should, and how."""
    try:
        return True, through(arch, size)
    except UserError as refused:
        sentence = str(refused)
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"
    sizes = re.findall(r"--size (\d+)(?: or (\d+))?", sentence.partition(";")[2])
    for offered in (int(s) for pair in sizes for s in pair if s):
        try:
            through(arch, offered)
        except Exception as error:
            return False, f"{sentence}\n    but at {offered}: {type(error).__name__}: {error}"
    return bool(sizes) or "another --arch" in sentence, sentence
