"""Draw the pictures of how-it-works.md, family.md and augmentations.md with mixco's own parts.

python docs/make_pictures.py            # first trains MoCo + MixCo on the sample, for minutes
python docs/make_pictures.py --run RUN  # uses a run of MoCo + MixCo on the sample
python docs/make_pictures.py --family   # family.md alone; it needs no run
python docs/make_pictures.py --augmentations DATA   # augmentations.md alone

DATA is the folder skimage/data in the wheel of scikit-image 0.26.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from mixco import MoCo, Pairs, pretrain
from mixco.data.datasets import list_images
from mixco.data.loading import open_images
from mixco.methods import mixer_of
from mixco.mixing import Mixed, blend, soft_targets
from mixco.plots.style import BASE, DPI, INK, MIXED
from mixco.runtime.distributed import split_batch
from mixco.runtime.run_folder import read_json
from mixco.runtime.seeding import generator_for
from mixco.settings.config import Settings
from mixco.settings.parse import from_dict
from mixco.training.build import build_method
from mixco.views import augment as views
from mixco.views.augmentation import AUGMENTATIONS, Augmentation, Input, moco_v2, weaken_jitter

IMAGES = Path(__file__).parent / "images"
SIZE = 64
AUGMENTATION = weaken_jitter(moco_v2(Input(SIZE)), 0.5)
PARTS = ListedColormap(["#0072B2", "#E69F00", "#009E73", "#CC79A7"])  # Okabe and Ito's


def photographs(count: int, size: int, of: int = 8) -> tuple[Tensor, Tensor]:
    """Photographs of the sample, spread over its classes: uint8 [count, 3, S, S], and their extents.

    Each is the one with the most contrast among `of` neighbours.
    """
    source = list_images("sample", None, "train", None)
    with tempfile.TemporaryDirectory() as cache:
        images = open_images(
            source, size=size, cache=Path(cache), loading="streamed", workers=0, memory=0
        )
        some = torch.linspace(0, len(images) - 1, of * count).long()
        pictures, extents = images.canvases(some, size)
        contrast = pictures.float().flatten(1).std(1).view(count, of)
        chosen = contrast.argmax(1) + of * torch.arange(count)
        return pictures[chosen], extents[chosen]


def visible(view: Tensor, augmentation: Augmentation = AUGMENTATION) -> Tensor:
    """Undo the normalisation of views [..., 3, S, S]: numbers in [0, 1]."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in augmentation.input[1:])
    return (view * std + mean).clamp(0, 1)


def show(axes: Axes, image: Tensor, title: str = "") -> None:
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9, color=INK)
    axes.spines[:].set_visible(False)


def save(figure: Figure, name: str) -> None:
    figure.savefig(IMAGES / name, dpi=DPI, facecolor="white")
    print(IMAGES / name)


def draw_augmentations(data: Path) -> None:
    """For each kind of images two of them, and seven views of each."""
    kinds = {
        "photos": ("chelsea.png", "coffee.png"),
        "aerial": (),
        "microscopy": ("ihc.png", "ihc.png"),
        "documents": ("page.png", "text.png"),
    }
    views_of_each = 7
    for name, files in kinds.items():
        size = 64 if name == "aerial" else 96
        augmentation = AUGMENTATIONS[name](Input(size))
        if files:
            pictures = [Image.open(data / file).convert("RGB") for file in files]
        else:
            pictures = [
                Image.fromarray(x.permute(1, 2, 0).numpy()) for x in photographs(3, 64)[0][::2]
            ]
        if name == "microscopy":  # two parts of one slide
            pictures = [pictures[0].crop(box) for box in ((0, 0, 256, 256), (256, 256, 512, 512))]
        if name == "documents":  # the left parts, which are not so wide
            pictures = [each.crop((0, 0, each.height * 5 // 4, each.height)) for each in pictures]
        figure = Figure(figsize=(8.2, 2.2), layout="constrained")
        grid = figure.subplots(2, 1 + views_of_each)
        draws = generator_for(0, name)
        for row, picture in zip(grid, pictures, strict=True):
            image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
            batch = image.expand(views_of_each, *image.shape)
            extents = torch.tensor([image.shape[1:]]).expand(views_of_each, 2)
            p = views.sample_view(extents, augmentation, draws)
            show(row[0], image.float() / 255)
            for axes, view in zip(row[1:], views.apply_view(batch, p, augmentation), strict=True):
                show(axes, visible(view, augmentation))
        grid[0, 0].set_title("image", fontsize=9, color=INK)
        grid[0, 1].set_title("views", fontsize=9, color=INK)
        save(figure, f"augmentation-{name}.png")


def draw_views() -> None:
    """Three photographs, and eight views of each."""
    count = 8
    images, extents = photographs(3, SIZE)
    generator = generator_for(0, "pictures")
    drawn = [
        views.apply_view(
            images, views.sample_view(extents, AUGMENTATION, generator), AUGMENTATION, torch.float32
        )
        for _ in range(count)
    ]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    grid = figure.add_gridspec(3, count + 2, width_ratios=[1, 0.12] + [1] * count)
    for row in range(3):
        show(figure.add_subplot(grid[row, 0]), images[row], "" if row else "image")
        for column in range(count):
            axes = figure.add_subplot(grid[row, column + 2])
            show(axes, visible(drawn[column][row]), "" if row else f"view {column + 1}")
    save(figure, "how-views.png")


def mix(images: Tensor, lam: Tensor) -> Mixed:
    """The first half of the images mixed with the second, as MixCo does, with given lambdas."""
    first = torch.arange(len(lam))
    pairs = Pairs(first, first + len(lam), lam)
    mixed, lam = blend(images[pairs.first], images[pairs.second], pairs)
    return Mixed(mixed, soft_targets(pairs, lam, len(images)))


def draw_mixing() -> None:
    """Pairs, their mixed images for several lambdas, and lambda as the target."""
    lambdas = torch.tensor([0.5, 0.8, 0.3, 0.65])
    images, _ = photographs(8, SIZE)
    mixed = mix(images.float() / 255, lambdas)
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    grid = figure.add_gridspec(3, 8, height_ratios=[1, 2, 0.35])
    for pair, lam in enumerate(lambdas.tolist()):
        for side, source in enumerate((pair, pair + 4)):
            show(
                figure.add_subplot(grid[0, 2 * pair + side]), images[source], f"image {source + 1}"
            )
        middle = figure.add_subplot(grid[1, 2 * pair : 2 * pair + 2])
        show(middle, mixed.images[pair], f"mixed image {pair + 1}")
        axes = figure.add_subplot(grid[2, 2 * pair : 2 * pair + 2])
        left, right = mixed.targets[pair, [pair, pair + 4]].tolist()
        axes.barh([0], [left], color=MIXED)
        axes.barh([0], [right], left=[left], color=BASE)
        axes.set(xlim=(0, 1), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.text(
            left / 2, 0, f"λ = {lam:.2f}", ha="center", va="center", color="white", fontsize=9
        )
        axes.text(left + right / 2, 0, f"{right:.2f}", ha="center", va="center", fontsize=9)
    save(figure, "how-mixing.png")


def draw_family() -> None:
    """A batch of six photographs, and what each mixer makes of it."""
    images, _ = photographs(6, SIZE)
    batch = images.float() / 255
    other = batch.flip(3).roll(2, dims=1)  # so that one sees which view is mixed in
    rows = ("mixco", "imix", "icutmix", "unmix-blend", "unmix-box", "cutmix", "myol", "mixbt")
    figure = Figure(figsize=(7.4, 12.2), layout="constrained")
    grid = figure.add_gridspec(len(rows) + 2, 6)
    for row, (name, view) in enumerate((("a view", batch), ("the other view", other))):
        for column, image in enumerate(view):
            axes = figure.add_subplot(grid[row, column])
            show(axes, image, f"image {column + 1}")
            axes.set_ylabel("" if column else name, fontsize=9)
    for row, name in enumerate(rows, 2):
        mixer = mixer_of(name)
        assert mixer is not None
        pairs = mixer.draw(len(batch), generator_for(57, "family"))
        mixed = mixer(batch, generator_for(57, "family"), other)
        for column, (image, target) in enumerate(zip(mixed.images, mixed.targets, strict=True)):
            axes = figure.add_subplot(grid[row, column])
            first, second = int(pairs.first[column]), int(pairs.second[column])
            place = second + len(batch) * mixer.across
            parts = f"{target[first]:.2f} of {first + 1}, {target[place]:.2f} of {second + 1}"
            show(axes, image, parts if first != place else f"image {first + 1}, with itself")
            axes.title.set_fontsize(7)
            axes.set_ylabel("" if column else name, fontsize=9)
    save(figure, "family.png")


def draw_targets(method: MoCo, config: Settings) -> None:
    """Targets of mixed images, and their similarities in a trained encoder."""
    batch, queue = 16, 16
    plain = moco_v2(Input(config.data.size))
    augmentation = weaken_jitter(plain, config.method.jitter)
    images, extents = photographs(batch, config.data.size, of=1)
    generator = generator_for(1, "pictures")
    view_q, view_k = views.two_views(images, extents, augmentation, generator, torch.float32)
    mixed = mix(view_q, torch.linspace(0.9, 0.2, batch // 2))
    with torch.no_grad():
        queries = method.eval().encode_queries([mixed.images])
        keys = method.encode_keys(view_k, split_batch(batch, 1), torch.arange(batch))
    candidates = torch.cat([keys, method.queue.keys[:queue]])
    likeness = queries @ candidates.T
    targets = torch.cat([mixed.targets, torch.zeros(len(queries), queue)], dim=1)

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    grid = figure.add_gridspec(
        4, 3, height_ratios=[0.35, 3, 0.35, 3], width_ratios=[0.9, 11, 0.25], hspace=0.02
    )
    for row, (title, values, most) in enumerate(
        (
            ("target: lambda and 1 - lambda; zero for the queue", targets, 1.0),
            ("cosine similarity, after a short training", likeness, float(likeness.max())),
        )
    ):
        above = figure.add_subplot(grid[2 * row, 1])
        strip(above, visible(view_k, augmentation), queue)
        left = figure.add_subplot(grid[2 * row + 1, 0])
        left.imshow(column(visible(mixed.images, augmentation)), interpolation="nearest")
        left.set(xticks=[], yticks=[])
        left.spines[:].set_visible(False)
        left.set_ylabel("mixed images", color=INK)
        axes = figure.add_subplot(grid[2 * row + 1, 1])
        shown = axes.imshow(values.numpy(), aspect="auto", cmap="viridis", vmin=0, vmax=most)
        axes.axvline(batch - 0.5, color="white", linewidth=3)
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(title, color=INK, fontsize=10)
        figure.colorbar(shown, cax=figure.add_subplot(grid[2 * row + 1, 2]))
    save(figure, "how-targets.png")


def strip(axes: Axes, images: Tensor, queue: int) -> None:
    """The images of the batch's keys, side by side. The queue keeps no images."""
    side = images.shape[-1]
    row = torch.cat(list(images), dim=2)
    blank = torch.ones(3, side, side * queue)
    axes.imshow(torch.cat([row, blank], dim=2).permute(1, 2, 0).numpy(), aspect="auto")
    axes.text(
        side * (len(images) + queue / 2),
        side / 2,
        f"{queue} keys of the queue",
        ha="center",
        va="center",
        color=INK,
    )
    axes.set(xticks=[], yticks=[])
    axes.set_title("keys of the batch: second views", loc="left", fontsize=10, color=INK)
    axes.spines[:].set_visible(False)


def column(images: Tensor) -> Tensor:
    return torch.cat(list(images), dim=1).permute(1, 2, 0)


def draw_parts() -> None:
    """Which images share statistics: as queries, and as keys without and with permutation."""
    batch, parts = 32, 4
    dealt = torch.arange(batch) % parts
    order = torch.randperm(batch, generator=generator_for(3, "pictures"))
    permuted = torch.empty_like(dealt).index_copy(0, order, dealt)
    rows = {
        "queries": dealt,
        "keys, no permutation": dealt,
        "keys, permuted": permuted,
    }
    figure = Figure(figsize=(9, 1.9), layout="constrained")
    axes = figure.subplots()
    axes.imshow(torch.stack(list(rows.values())).numpy(), cmap=PARTS, aspect="auto")
    for edge in range(batch):
        axes.axvline(edge - 0.5, color="white", linewidth=2)
    for edge in range(len(rows)):
        axes.axhline(edge - 0.5, color="white", linewidth=8)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_xticks(range(batch), [str(i + 1) for i in range(batch)], fontsize=7)
    axes.set_xlabel("image of the batch; a colour is a part with its own batch-norm statistics")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    save(figure, "how-parts.png")


def short_run(out: Path) -> Path:
    settings = {"method": "moco", "mix": "mixco", "size": 32, "stem": "standard", "jitter": 0.25}
    settings |= {"epochs": 20, "batch_size": 128, "device": "cpu", "knn_every": 0}
    return pretrain(out=out, **settings).folder


def trained_method(run: Path) -> tuple[MoCo, Settings]:
    """The method of a run, from its last checkpoint."""
    config = from_dict(Settings, read_json(run / "config.json"), str(run))
    method = build_method(config)
    assert isinstance(method, MoCo), f"{run} is no run of MoCo"
    last = max((run / "checkpoints").glob("step-*.pt"))
    method.load_state_dict(torch.load(last, weights_only=True)["method"])
    return method, config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--family", action="store_true")
    parser.add_argument("--augmentations", type=Path)
    arguments = parser.parse_args()
    run = arguments.run
    if arguments.augmentations:
        draw_augmentations(arguments.augmentations)
        return
    draw_family()
    if arguments.family:
        return
    draw_views()
    draw_mixing()
    draw_parts()
    with tempfile.TemporaryDirectory() as folder:
        draw_targets(*trained_method(run or short_run(Path(folder, "run"))))


if __name__ == "__main__":
    main()
