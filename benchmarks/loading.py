"""What streaming costs against packed images: two views of each image, ready for the step.

    python benchmarks/loading.py [--size 64 128] [--side 256 512] [--workers 1 2] [--rounds 5]

The images are real JPEG files of --side pixels, mosaics of the built-in sample. Each round makes the
same batches of views packed and then streamed, by each number of workers; a ratio is of neighbours in
time. The first two batches are not timed: workers start, and the packed file's pages are read.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from measuring import ratios, spread, write_figures
from PIL import Image
from torch import Tensor

from mixco.data.datasets.sources import list_images
from mixco.data.decode import decode
from mixco.data.images import Images
from mixco.data.loading import open_images
from mixco.runtime.device import Compute, pick_device
from mixco.runtime.seeding import generator_for
from mixco.views.augment import Input, moco_v2

UNTIMED = 2  # batches


def make_photos(folder: Path, count: int, side: int) -> None:
    """Mosaics of the sample's images, about as detailed as photographs."""
    source = list_images("sample", None, "train")
    tiles = -(-side // 64)
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        chosen = generator.integers(len(source.files), size=(tiles, tiles))
        rows = [np.hstack([decode(source.read(int(i))) for i in row]) for row in chosen]
        buffer = BytesIO()
        Image.fromarray(np.vstack(rows)[:side, :side]).save(buffer, "JPEG", quality=90)
        (folder / f"{number:05}.jpg").write_bytes(buffer.getvalue())


def rate(images: Images, size: int, batch: int, batches: int, device: torch.device) -> float:
    """Images a second, two views each."""
    everything = torch.arange(len(images))

    def plan() -> Iterator[tuple[Tensor, torch.Generator]]:
        for step in range(UNTIMED + batches):
            chosen = torch.randint(
                len(images), (batch,), generator=generator_for(0, "benchmark", step=step)
            )
            yield chosen, generator_for(0, "views", step=step)

    views = images.view_batches(
        plan(),
        moco_v2(Input(size)),
        members=everything,
        batch_size=batch,
        compute=Compute(device, torch.float32),
        on_unreadable=print,
    )
    for _ in range(UNTIMED):
        next(views)
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in views:
        pass
    if device.type == "cuda":
        torch.cuda.synchronize()
    return batches * batch / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--side", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=128)
    # More than the workers prepare ahead, or it is what they made before that is timed.
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loading.json"))
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for side in arguments.side:
            photos = Path(folder) / str(side)
            make_photos(photos, arguments.images, side)
            source = list_images(str(photos), None, "pretrain")
            for size in arguments.size:

                def opened(loading: str, workers: int, size=size, source=source) -> Images:
                    return open_images(
                        source,
                        size=size,
                        cache=Path(folder) / "cache",
                        loading=loading,
                        workers=workers,
                        memory=2**40,
                    )

                packed = opened("packed", 2)
                pairs: dict[int, list[tuple[float, float]]] = {w: [] for w in arguments.workers}
                for _ in range(arguments.rounds):
                    for workers, rates in pairs.items():
                        settings = (size, arguments.batch_size, arguments.batches, device)
                        of_packed = rate(packed, *settings)
                        rates.append((of_packed, rate(opened("streamed", workers), *settings)))
                for workers, rates in pairs.items():
                    of_packed, streamed = (list(side_) for side_ in zip(*rates, strict=True))
                    rows.append(
                        {
                            "side": side,
                            "size": size,
                            "workers": workers,
                            "packed_images_per_second": spread(of_packed),
                            "streamed_images_per_second": spread(streamed),
                            "ratio": ratios(streamed, of_packed),
                        }
                    )
                    print(rows[-1], flush=True)
    write_figures(arguments.out, rows, device)


if __name__ == "__main__":
    main()
