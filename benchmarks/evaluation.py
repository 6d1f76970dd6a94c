"""What evaluation costs: nearest neighbours among very many, features, and the fast probe.

    python benchmarks/evaluation.py [--part knn features probe] [--run RUN] [--device cpu]
    python benchmarks/evaluation.py --part knn --queries 50000 --rounds 1

knn: `neighbours` in a bank of --bank x --dim random features in the order of their classes, against the
bare float32 matrix products of the same blocks, whose results are thrown away. Where --queries are
fewer than --of, the time is scaled to --of. The peak of memory is that of the process with the bank;
this part goes first, so the peak is its own. Some queries are checked in float64.

features: images/s of `features_of` over packed images of the sample, against bare forward passes in
evaluation mode: same encoder, batches, dtype and memory format.

probe: seconds of `mixco linear` from loading to results.json: the fast probe with its whole sweep, and
the published protocol, of which --linear-epochs are run and scaled to 100.

Without --run an encoder is pretrained on the sample for one epoch: speed does not depend on what it
learnt. All is measured in turn; ratios are taken within a round.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from harness import (
    RESULTS,
    Figures,
    arguments_of,
    config_of,
    in_turn,
    rate,
    ratios,
    spread,
    spreads,
    write_figures,
)
from torch import Tensor

from mixco.data.images import FEATURE_BATCH
from mixco.embeddings import knn
from mixco.embeddings.features import features_of
from mixco.evaluation.features import compute_features
from mixco.evaluation.protocols import evaluate_linear
from mixco.evaluation.task import load_task
from mixco.runtime.device import keep_freed_memory, peak_memory, pick_device
from mixco.settings.commands import EvaluationConfig, LinearConfig
from mixco.training.pretrain import pretrain

CHUNK = 4096  # the default of `neighbours`
CLASSES = 1000
GIB = 2**30
CPU = torch.device("cpu")


def synthetic(count: int, dim: int, seed: int) -> Tensor:
    """Clusters, one after the other as in folders: float32 [count, dim], made in its own memory."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.empty(count, dim).normal_(generator=generator)
    centres = torch.randn(CLASSES, dim, generator=torch.Generator().manual_seed(0))
    for start in range(0, count, CHUNK):
        rows = features[start : start + CHUNK]
        rows += 0.5 * centres[torch.arange(start, start + len(rows)) * CLASSES // count]
    return features


def bare_products(bank: Tensor, queries: Tensor) -> None:
    """All similarities, block by block, into the same memory."""
    memory = bank.new_empty(knn.QUERIES * CHUNK)
    for rows in bank.split(CHUNK):
        for query in queries.split(knn.QUERIES):
            block = memory[: len(query) * len(rows)].view(len(query), len(rows))
            torch.mm(query, rows.T, out=block)


def agree(bank: Tensor, queries: Tensor, found: Tensor, index: Tensor) -> bool:
    """Are these the nearest, by all similarities in float64?"""
    for query, similarities, where in zip(queries.double(), found, index, strict=True):
        everything = torch.cat(
            [F.cosine_similarity(rows.double(), query[None]) for rows in bank.split(CHUNK)]
        )
        expected = everything.topk(len(where)).values
        for values in (similarities.double(), everything[where]):
            if not torch.allclose(values, expected, atol=1e-5):
                return False
    return True


def of_knn(a: Any) -> Figures:
    keep_freed_memory(CPU)  # as every command does
    bank = synthetic(a.bank, a.dim, 1)
    queries = synthetic(a.queries, a.dim, 2)  # some of each class, in order
    before, result, peaks = peak_memory(CPU) or 0, [], []

    def ours() -> Figures:
        began = time.perf_counter()
        result[:] = knn.neighbours(bank, queries, a.k)
        seconds = time.perf_counter() - began
        peaks.append(peak_memory(CPU) or 0)
        return {"seconds": seconds}

    def bare() -> Figures:
        began = time.perf_counter()
        bare_products(bank, queries)
        return {"seconds": time.perf_counter() - began}

    found = in_turn({"neighbours": ours, "bare products": bare}, a.rounds)
    each = [figures["seconds"] / a.queries for figures in found["neighbours"]]
    some = slice(None, None, max(1, a.queries // 4))
    return {
        **{key: getattr(a, key) for key in ("bank", "dim", "queries", "k")},
        **spreads(found["neighbours"]),
        "bare_seconds": spreads(found["bare products"])["seconds"],
        "time_over_bare": ratios(*found.values(), "seconds"),
        "milliseconds_a_query": spread(1000 * s for s in each),
        f"seconds_of_{a.of}_queries": spread(s * a.of for s in each),
        "bank_gib": bank.nbytes / GIB,
        "peak_gib_before": before / GIB,
        "peak_gib": peaks[0] / GIB,
        "within_4_gib": peaks[0] <= 4 * GIB,
        "some_agree_with_float64": agree(bank, queries[some], *(r[some] for r in result)),
    }


def of_features(evaluation: EvaluationConfig, a: Any) -> Figures:
    task = load_task(evaluation)
    device, dtype, memory_format = task.compute
    size, images = task.input.size, task.train.images
    index = torch.arange(len(images)).repeat(a.passes)
    backbone = task.encoder.backbone.to(device, memory_format=memory_format)
    batch = torch.randn(min(FEATURE_BATCH, len(index)), 3, size, size, device=device)
    batch = batch.to(dtype, memory_format=memory_format)

    def ours() -> None:
        where = {"compute": task.compute, "on_unreadable": print}
        features_of(backbone, images, index, task.input, **where)

    @torch.inference_mode()
    def bare() -> None:
        backbone.eval()
        for part in index.split(FEATURE_BATCH):
            with task.compute.autocast():
                backbone(batch[: len(part)])

    bare()  # not timed: what only a first pass has to do
    subjects = {"features": ours, "bare": bare}
    found = in_turn(
        {n: lambda step=step: rate(step, len(index), 1, device) for n, step in subjects.items()},
        a.rounds,
    )
    return {
        "arch": task.encoder.description.arch,
        "size": size,
        "dtype": str(dtype),
        "images": len(index),
        **spreads(found["features"]),
        "bare_images_per_second": spreads(found["bare"])["images_per_second"],
        "ratio_to_bare": ratios(*found.values()),
    }


def of_probe(evaluation: EvaluationConfig, a: Any) -> Figures:
    features = compute_features(evaluation)  # not timed: packing, and the pages of the packed file
    epochs = a.linear_epochs

    def fast() -> Figures:
        began = time.perf_counter()
        top1 = evaluate_linear(LinearConfig(evaluation))["top1"]
        return {"seconds": time.perf_counter() - began, "top1": top1}

    def published() -> Figures:
        began = time.perf_counter()
        result = evaluate_linear(LinearConfig(evaluation, protocol="paper", epochs=epochs))
        seconds = time.perf_counter() - began + result["seconds"] * (100 / epochs - 1)
        return {"seconds": seconds, "top1": result["top1"]}

    found = in_turn({"fast": fast, f"published, {epochs} epochs": published}, a.rounds)
    of_fast, of_published = found.values()
    return {
        "arch": features.task.encoder.description.arch,
        "size": features.task.input.size,
        "train_images": len(features.train_labels),
        "fast_seconds": spreads(of_fast)["seconds"],
        "published_seconds": spreads(of_published)["seconds"],
        "published_epochs_run": epochs,
        "published_over_fast": ratios(of_published, of_fast, "seconds"),
        "top1": {name: rounds[-1]["top1"] for name, rounds in found.items()},
    }


def main() -> None:
    parts = ["knn", "features", "probe"]
    integer = {"type": int}
    a = arguments_of(
        __doc__,
        part={"nargs": "+", "choices": parts, "default": parts},
        bank={**integer, "default": 1_280_000, "help": "knn: features to search in"},
        dim={**integer, "default": 512, "help": "knn"},
        queries={**integer, "default": 4096, "help": "knn"},
        of={**integer, "default": 50_000, "help": "knn: queries that the time is scaled to"},
        k={**integer, "default": 20, "help": "knn"},
        run={"type": Path, "help": "features, probe: a run of pretraining on the sample"},
        size={**integer, "default": 64, "help": "without --run"},
        arch={"default": "resnet18", "help": "without --run"},
        passes={**integer, "default": 4, "help": "features: passes over the images"},
        linear_epochs={**integer, "default": 10, "help": "probe"},
    )
    rows: list[Figures] = [{"part": "knn", **of_knn(a)}] if "knn" in a.part else []
    if {*a.part} - {"knn"}:
        with tempfile.TemporaryDirectory() as folder:
            settings = {"size": a.size, "arch": a.arch, "epochs": 1, "device": a.device}
            run = a.run or pretrain(config_of("simclr", **settings, out=f"{folder}/run"))
            out = Path(folder) / "out"  # nothing is written into a run that was given
            evaluation = EvaluationConfig(run=run, out=out, device=a.device)
            if "features" in a.part:
                rows.append({"part": "features", **of_features(evaluation, a)})
            if "probe" in a.part:
                rows.append({"part": "probe", **of_probe(evaluation, a)})
    device = pick_device(a.device)
    write_figures(a.out or RESULTS / f"evaluation-{device.type}.json", rows, device)


if __name__ == "__main__":
    main()
