"""Can the weights of every family of timm be adapted to other images?

    python tests/soak/adapting.py [--size 64] [NAME ...]

Random weights of a small model of each module of timm, or of each model named, are adapted to its own
size and to another one, with 3, 1 and 5 channels, and loaded. At its own size the features must be those
of timm's model, bit for bit. A size that the model itself refuses is left out. The exit code is 1 where
anything but a refusal in a sentence happens.
"""

import argparse
import sys

import timm
import torch
from backbones import small_ones

from mixco.models.adapt import adapt
from mixco.models.encoder import build_backbone, feature_dim
from mixco.models.families import create, usual_size
from mixco.runtime.errors import UserError


def adapted(arch: str, size: int) -> dict[str, str]:
    """For each size and number of channels how it went. Raises whatever is not a refusal."""
    usual = usual_size(arch)
    model = timm.create_model(arch)
    ends = {}
    for side, channels in ((usual, 3), (usual, 1), (size, 3), (size, 1), (size, 5)):
        try:
            feature_dim(build_backbone(arch, side, channels=channels), side)
        except UserError:
            continue
        try:
            weights = adapt(model.state_dict(), arch, side, channels)
        except UserError as refused:
            ends[f"{side} px, {channels}"] = f"refused: {refused}"
            continue
        backbone = create(arch, side, channels)
        backbone.load_state_dict(weights)
        ends[f"{side} px, {channels}"] = "ok"
        if (side, channels) == (usual, 3):
            images = torch.rand(1, 3, side, side)
            with torch.no_grad():
                features = backbone.eval()(images)
                model.reset_classifier(0)
                assert torch.equal(model.eval()(images), features), "other features"
            model = timm.create_model(arch)
    return ends


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    failed = []
    for arch in given.names or small_ones():
        try:
            ends = adapted(arch, given.size)
        except Exception as error:
            ends = {"FAILED": f"{type(error).__name__}: {error}"}
            failed.append(arch)
        print(f"{arch:32} " + "; ".join(f"{how}: {end}" for how, end in ends.items()), flush=True)
    print(
        f"failed: {', '.join(failed)}" if failed else "all were adapted, or refused in a sentence"
    )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
