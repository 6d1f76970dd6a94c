"""What evaluation costs: the fast probe, nearest neighbours among very many, and features.

    python benchmarks/evaluation.py [--part knn features probe] [--run RUN] [--device cpu]
    python benchmarks/evaluation.py --part knn --queries 50000 --rounds 1

- knn: `neighbours` in a bank of --bank x --dim random features in the order of their classes, against
  the bare float32 matrix products of the same blocks, whose results are thrown away. --queries may be
  a part of those that are meant, --of: their time is then scaled, as the time grows with each of
  them. With it the peak of the process's memory up to then, the bank included. It goes first, so
  that the peak is its own. Some queries are checked against all similarities in float64.
- features: images/s of `features_of` over packed images of the built-in sample, against bare forward
  passes in evaluation mode over resident tensors: same encoder, batches, dtype and memory format.
- probe: seconds of `mixco linear`, from loading to results.json: the fast probe with its whole sweep,
  and the published protocol. Of the latter --linear-epochs are run, and the seconds of its training
  scaled to 100 epochs, with what comes before as it is.

Without --run an encoder is pretrained on the sample for one epoch: what it learnt has no part in how
long things take. All is measured in turn; ratios are within a round.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from measuring import in_turn, ratios, spread, write_figures
from torch import Tensor

from mixco.data.images import FEATURE_BATCH
from mixco.embeddings import knn
from mixco.embeddings.features import features_of
from mixco.evaluation.features import compute_features
from mixco.evaluation.protocols import evaluate_linear
from mixco.evaluation.task import load_task
from mixco.runtime.device import keep_freed_memory, pick_device
from mixco.settings.config import (
    DataConfig,
    EvaluationConfig,
    LinearConfig,
    ModelConfig,
    OptimisationConfig,
    PretrainConfig,
    RunConfig,
)
from mixco.training.pretrain import pretrain

CHUNK = 4096  # `neighbours` has it by default
CLASSES = 1000
GIB = 2**30


def synthetic(count: int, dim: int, seed: int) -> Tensor:
    """float32 [count, dim]: clusters, one after the other as in folders; made in its own memory."""
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


def peak_memory() -> int:
    """Of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def agree(bank: Tensor, queries: Tensor, found: Tensor, index: Tensor) -> bool:
    """Are these the nearest, by all similarities in float64?"""
    for query, similarities, where in zip(queries.double(), found, index, strict=True):
        everything = torch.cat(
            [F.cosine_similarity(rows.double(), query[None]) for rows in bank.split(CHUNK)]
        )
        expected = everything.topk(len(where)).values
        if not (
            torch.allclose(similarities.double(), expected, atol=1e-5)
            and torch.allclose(everything[where], expected, atol=1e-5)
        ):
            return False
    return True


def of_knn(arguments: argparse.Namespace) -> dict[str, object]:
    keep_freed_memory(torch.device("cpu"))  # as every command does
    bank = synthetic(arguments.bank, arguments.dim, 1)
    # Of each class some, in order, also where they are a part.
    queries = synthetic(arguments.queries, arguments.dim, 2)
    before, peaks = peak_memory(), []

    def ours() -> float:
        began = time.perf_counter()
        result[:] = knn.neighbours(bank, queries, arguments.k)
        seconds = time.perf_counter() - began
        peaks.append(peak_memory())
        return seconds

    def bare() -> float:
        began = time.perf_counter()
        bare_products(bank, queries)
        return time.perf_counter() - began

    result: list[Tensor] = []
    seconds = in_turn({"neighbours, s": ours, "bare products, s": bare}, arguments.rounds)
    of_ours, of_bare = seconds.values()
    some = slice(None, None, max(1, arguments.queries // 4))
    each = [s / arguments.queries for s in of_ours]
    return {
        "part": "knn",
        "bank": arguments.bank,
        "dim": arguments.dim,
        "queries": arguments.queries,
        "k": arguments.k,
        "seconds": spread(of_ours),
        "bare_seconds": spread(of_bare),
        "time_over_bare": ratios(of_ours, of_bare),
        "milliseconds_a_query": spread(1000 * s for s in each),
        f"seconds_of_{arguments.of}_queries": spread(s * arguments.of for s in each),
        "bank_gib": bank.nbytes / GIB,
        "peak_gib_before": before / GIB,
        "peak_gib": peaks[0] / GIB,
        "within_4_gib": peaks[0] <= 4 * GIB,
        "some_agree_with_float64": agree(bank, queries[some], *(r[some] for r in result)),
    }


def of_features(evaluation: EvaluationConfig, arguments: argparse.Namespace) -> dict[str, object]:
    task = load_task(evaluation)
    device, dtype = task.compute
    encoder = task.encoder.description
    index = torch.arange(len(task.train.images)).repeat(arguments.passes)
    backbone = task.encoder.backbone.to(device, memory_format=torch.channels_last)
    shape = (min(FEATURE_BATCH, len(index)), 3, task.input.size, task.input.size)
    batch = torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last)

    def ours() -> float:
        began = time.perf_counter()
        features_of(
            backbone,
            task.train.images,
            index,
            task.input,
            compute=task.compute,
            on_unreadable=print,
        )
        return len(index) / (time.perf_counter() - began)

    @torch.inference_mode()
    def bare() -> float:
        backbone.eval()
        began = time.perf_counter()
        for part in index.split(FEATURE_BATCH):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                backbone(batch[: len(part)])
        if device.type == "cuda":
            torch.cuda.synchronize()
        return len(index) / (time.perf_counter() - began)

    bare()  # not timed: what only a first pass has to do
    rates = in_turn({"features": ours, "bare": bare}, arguments.rounds)
    return {
        "part": "features",
        "arch": encoder.arch,
        "size": task.input.size,
        "dtype": str(dtype),
        "images": len(index),
        "images_per_second": spread(rates["features"]),
        "bare_images_per_second": spread(rates["bare"]),
        "ratio_to_bare": ratios(rates["features"], rates["bare"]),
    }


def of_probe(evaluation: EvaluationConfig, arguments: argparse.Namespace) -> dict[str, object]:
    features = compute_features(evaluation)  # not timed: packing, and the pages of the packed file
    epochs, top1 = arguments.linear_epochs, {}

    def fast() -> float:
        began = time.perf_counter()
        top1["fast"] = evaluate_linear(LinearConfig(evaluation))["top1"]
        return time.perf_counter() - began

    def published() -> float:
        began = time.perf_counter()
        result = evaluate_linear(LinearConfig(evaluation, protocol="paper", epochs=epochs))
        seconds = time.perf_counter() - began
        top1[f"published, {epochs} epochs"] = result["top1"]
        return seconds + result["seconds"] * (100 / epochs - 1)

    seconds = in_turn({"fast, s": fast, "published, s of 100 epochs": published}, arguments.rounds)
    of_fast, of_published = seconds.values()
    return {
        "part": "probe",
        "arch": features.task.encoder.description.arch,
        "size": features.task.input.size,
        "train_images": len(features.train_labels),
        "fast_seconds": spread(of_fast),
        "published_seconds": spread(of_published),
        "published_epochs_run": epochs,
        "published_over_fast": ratios(of_published, of_fast),
        "top1": top1,
    }


def quickly_pretrained(arguments: argparse.Namespace, folder: Path) -> Path:
    return pretrain(
        PretrainConfig(
            data=DataConfig(size=arguments.size),
            model=ModelConfig(arch=arguments.arch),
            optimisation=OptimisationConfig(epochs=1),
            run=RunConfig(out=folder, knn_every=0, device=arguments.device),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["knn", "features", "probe"]
    parser.add_argument("--part", nargs="+", choices=parts, default=parts)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto", help="of the encoder")
    parser.add_argument("--out", type=Path)
    of_bank = parser.add_argument_group("knn")
    of_bank.add_argument("--bank", type=int, default=1_280_000)
    of_bank.add_argument("--dim", type=int, default=512)
    of_bank.add_argument("--queries", type=int, default=4096)
    of_bank.add_argument("--of", type=int, default=50_000)
    of_bank.add_argument("--k", type=int, default=20)
    of_encoder = parser.add_argument_group("features, probe")
    of_encoder.add_argument("--run", type=Path, help="of pretraining on the sample")
    of_encoder.add_argument("--size", type=int, default=64, help="without --run")
    of_encoder.add_argument("--arch", default="resnet18", help="without --run")
    of_encoder.add_argument("--passes", type=int, default=4, help="over the images, for features")
    of_encoder.add_argument("--linear-epochs", type=int, default=10)
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    rows = [of_knn(arguments)] if "knn" in arguments.part else []
    if set(arguments.part) - {"knn"}:
        with tempfile.TemporaryDirectory() as folder:
            run = arguments.run or quickly_pretrained(arguments, Path(folder) / "run")
            out = Path(folder) / "out"  # nothing is written into a run that was given
            evaluation = EvaluationConfig(run=run, out=out, device=arguments.device)
            if "features" in arguments.part:
                rows.append(of_features(evaluation, arguments))
            if "probe" in arguments.part:
                rows.append(of_probe(evaluation, arguments))
    out = arguments.out or Path(f"benchmarks/results/evaluation-{device.type}.json")
    write_figures(out, rows, device)


if __name__ == "__main__":
    main()
