"""On one device MoCo is right only with split batch norm *and* a permutation of the keys.

What leaks is not in a number but in who shares statistics with whom. So the tests ask exactly that:
which images of the batch change the output for image i? For its query and for its key these must be
different sets, else the statistics tell the key from the negatives (He et al. 2020, section 3.3).
"""

import pytest
import torch
from torch import Tensor

from mixco.methods.moco import MoCo
from mixco.mixing import mixco
from mixco.models.encoder import Encoder, build_backbone, feature_dim
from mixco.models.heads import build_head
from mixco.runtime.distributed import split_batch

BATCH, SPLITS = 16, 4


def moco(splits: int = SPLITS, arch: str = "test_resnet") -> MoCo:
    backbone = build_backbone(arch, 32)
    generator = torch.Generator().manual_seed(0)
    return MoCo(
        Encoder(backbone, build_head(feature_dim(backbone, 32), 8, "mlp")),
        dim=8,
        queue=32,
        momentum=0.99,
        temperature=0.2,
        mix=mixco,
        mix_temperature=0.2,
        mix_weight=1.0,
        bn_splits=splits,
        generator=generator,
    )


def pictures(batch: int = BATCH) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def influences(encode: object, images: Tensor) -> Tensor:
    """bool [B, B]: does the output for image i change when image j does?"""
    assert callable(encode)
    with torch.no_grad():
        before = encode(images)
        rows = []
        for j in range(len(images)):
            changed = images.clone()
            changed[j] = changed[j].flip(-1) * 2
            rows.append((encode(changed) - before).abs().amax(1) > 1e-6)
    return torch.stack(rows, dim=1)


def keys_of(method: MoCo, images: Tensor, seed: int) -> Tensor:
    batch = len(images)
    order = method.draw(batch, torch.Generator().manual_seed(seed)).order
    return method.encode_keys(images, split_batch(batch, 1), order)


def overlap(method: MoCo, images: Tensor) -> float:
    """How much of the company of a query its key meets again, without itself; mean over images."""
    itself = torch.eye(len(images), dtype=torch.bool)
    queries = influences(lambda x: method.encode_queries([x]), images) & ~itself
    keys = influences(lambda x: keys_of(method, x, seed=3), images) & ~itself
    assert queries.any(1).all(), "batch norm must have an effect, or nothing is tested"
    assert keys.any(1).all()
    return ((queries & keys).sum(1) / queries.sum(1)).mean().item()


def test_a_key_meets_other_images_than_its_query() -> None:
    # By chance a key meets (BATCH / SPLITS - 1) / (BATCH - 1) = 0.2 of its query's company again.
    assert overlap(moco(), pictures()) < 0.5


def test_without_the_split_it_would_leak() -> None:
    assert overlap(moco(splits=1), pictures()) == 1.0


def test_without_the_permutation_it_would_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randperm", lambda n, generator: torch.arange(n))  # noqa: ARG005
    assert overlap(moco(), pictures()) == 1.0


def test_keys_come_back_in_the_order_of_their_images() -> None:
    method = moco().eval()  # statistics fixed: a key depends on its image alone
    images = pictures()
    keys = keys_of(method, images, seed=4)
    for i in range(0, BATCH, 5):
        alone = method.encode_keys(images[i : i + 1], split_batch(1, 1), torch.arange(1))
        torch.testing.assert_close(keys[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_each_part_holds_its_share_of_clean_and_mixed_images() -> None:
    method = moco()
    images = torch.cat([pictures(), mixco(pictures(), torch.Generator().manual_seed(0)).images])
    groups = influences(lambda x: method.encode_queries([x]), images)
    assert (groups[:, :BATCH].sum(1) == BATCH // SPLITS).all()
    assert (groups[:, BATCH:].sum(1) == BATCH // 2 // SPLITS).all()


@pytest.mark.parametrize("arch", ["resnet18", "mobilenetv3_small_050"])
def test_split_batch_norm_is_separate_batch_norms(arch: str) -> None:
    split, plain = moco(2, arch).encoder.backbone, moco(1, arch).encoder.backbone
    images = pictures(8)
    apart = torch.cat([plain(images[:4]), plain(images[4:])])
    torch.testing.assert_close(split(images), apart, rtol=1e-4, atol=1e-4)
    assert split.state_dict().keys() == plain.state_dict().keys()


def test_running_statistics_move_as_far_as_with_one_update() -> None:
    from mixco.models.split_batchnorm import split_batch_norms

    plain, split = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    split_batch_norms(split, 8)
    images = 5 + 2 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(30):
        plain(images)
        split(images)
    assert plain.running_mean is not None
    torch.testing.assert_close(split.running_mean, plain.running_mean, rtol=0.01, atol=0.01)
    torch.testing.assert_close(split.running_var, plain.running_var, rtol=0.03, atol=0.01)
