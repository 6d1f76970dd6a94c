import dataclasses

import pytest
import torch
from configs import resolved
from sample_images import sample_images

from mixco.runtime.seeding import generator_for
from mixco.training.build import build_method


@pytest.mark.parametrize("method", ["moco", "simclr"])
def test_the_loss_is_the_clean_one_and_the_weighted_mixed_one(method: str) -> None:
    """In 2020 SimCLR had no weight, and what it logged as the mixed loss held the clean one too."""
    view = torch.nn.functional.interpolate(sample_images(8).float() / 255, size=32)
    own = {"queue": 16, "momentum": 0.9, "bn_splits": 2} if method == "moco" else {}
    settings = resolved(
        images=100, size=32, method=method, arch="test_resnet", stem="standard", batch_size=8, **own
    )
    losses = {}
    for weight in (1.0, 0.25):
        weighted = dataclasses.replace(settings.method, mix_weight=weight)
        network = build_method(dataclasses.replace(settings, method=weighted)).train()
        losses[weight] = network([view, view.flip(3)], generator_for(0, "method"))
    whole, quarter = losses[1.0], losses[0.25]
    assert whole["clean"] == quarter["clean"]
    assert whole["mixed"] == quarter["mixed"]
    assert whole["mixed"] > 0
    torch.testing.assert_close(whole["loss"], whole["clean"] + whole["mixed"])
    torch.testing.assert_close(quarter["loss"], quarter["clean"] + quarter["mixed"] / 4)
