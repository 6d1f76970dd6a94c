"""The page: one HTML file that loads nothing, and its figures as PNGs in a folder beside it."""

import base64
import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from mixco.data.decode import RGB
from mixco.data.holdout import split_holdout
from mixco.data.images import Images
from mixco.data.loading import open_images
from mixco.data.normalisation import measure
from mixco.data.run_images import cache_of, find_images, labels_of, where_in
from mixco.encoders.loading import load_encoder
from mixco.encoders.published import is_published
from mixco.evaluation.kinds import title_of
from mixco.methods import MIXERS, NO_MIXER, mixer_of
from mixco.report import curves, text
from mixco.report.classes import Counts, confused, counts_of, matrix, per_class
from mixco.report.compared import read_compared
from mixco.report.embedding import (
    Embedding,
    chosen_query,
    embed,
    guess_held_out,
    random_queries,
)
from mixco.report.pictures import maps, neighbours, saw
from mixco.report.run import Run, of_weights, read_run
from mixco.report.table import group, load
from mixco.runtime.device import memory_bytes, pick_device, processors
from mixco.runtime.errors import UserError
from mixco.runtime.files import replacing
from mixco.runtime.precision import Formats
from mixco.runtime.progress import counting, say
from mixco.runtime.run_folder import read_confusions, read_json
from mixco.settings.commands import ReportConfig
from mixco.settings.config import DataConfig
from mixco.settings.parse import command_of
from mixco.training.pictures import preview_of
from mixco.views.augmentation import AUGMENTATIONS, Input, augmentation_of
from mixco.views.preview import Preview

SEED = 0  # decides which images the page shows
QUERIES, NEIGHBOURS = 6, 8
THUMBNAILS = 700  # at most on a map; a kilobyte each


def write_page(config: ReportConfig) -> Path:
    """Write the page of a run, or of several, and return its path.

    Pictures are of the first run. Sections whose images or encoder are missing are left out, and the
    page says so.

    Raises UserError when there is no run folder, when a file in it is damaged, and when one of the
    other options (--images, --device, --out) cannot be followed.
    """
    folders = [path for path in config.runs if not _is_collection(path)]
    if not folders:
        raise UserError("report: a page needs a run folder; for collections alone give --table")
    if config.most_images < 10:
        raise UserError(f"--most-images must be at least 10, got {config.most_images}")
    runs = [_read(folder, config) for folder in folders]
    run = runs[0]
    several = len(config.runs) > 1
    beside = run.folder.absolute().parent if several or run.weights else run.folder
    out = config.out or beside / "report.html"
    if out.is_dir() or not out.suffix:
        raise UserError(f"--out must be a file that ends in .html, got {out}")
    pictures = out.with_suffix("")
    try:
        pictures.mkdir(parents=True, exist_ok=True)
        page = render(_content(config, runs, pictures))
        with replacing(out) as temporary:
            temporary.write_bytes(page.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
    return out


def _is_collection(path: Path) -> bool:
    if path.is_dir():
        return not (path / "config.json").exists() and (path / "results.json").exists()
    return path.is_file() and path.suffix == ".json"


def _read(path: Path, config: ReportConfig) -> Run:
    """A run folder, or else weights without a run."""
    if path.is_dir() or not (path.is_file() or is_published(str(path))):
        return read_run(path)
    if config.data is None:
        raise UserError(f"report {path}: weights without a run need images; give --data")
    return of_weights(load_encoder(path, **vars(config.encoder)), config.data, config.data_path)


def _content(config: ReportConfig, runs: list[Run], pictures: Path) -> dict[str, Any]:
    """All that page.html shows."""
    run = runs[0]
    looked = look(run, config)
    images, embedding = looked.images, looked.embedding
    labelled = None if images is None else images.labels is not None
    guesses = None if embedding is None else guess_held_out(embedding)
    evaluations: dict[str, Counts] = {}
    if guesses is not None and embedding is not None:
        name = f"kNN, {len(guesses.rows):,} held-out training images"
        evaluations[name] = counts_of(guesses, embedding.images.classes)
    for kind in text.evaluations_of(run):
        path = run.folder / f"confusions-{kind}.csv"
        if path.exists() and "@" not in kind:  # other data has other classes
            evaluations[f"{title_of(kind)}, test images"] = read_confusions(path)
    groups = curves.settings(runs)
    results = [load(path) for path in config.runs if _has_results(path)]
    asked_for = [chosen_query(embedding, p, NEIGHBOURS) for p in config.images] if embedding else []
    queries = random_queries(embedding, QUERIES, NEIGHBOURS, SEED) if embedding else []
    classes = len(images.classes) if images is not None and labelled else None
    return {
        "run": run,
        "runs": runs,
        "trained": text.what_was_trained(run),
        "summary": text.summary(run, classes),
        "numbers": list(text.numbers(run, looked.held_out, classes)),
        "caveats": text.caveats(run, labelled),
        "warnings": text.warnings(run, None if images is None else len(images)),
        "missing": looked.missing,
        "labelled": labelled,
        "worth": read_compared(run.folder),
        "settings": groups,
        "curves": curves.curves(groups, pictures),
        "saw": saw(looked.seen, pictures) if looked.seen else None,
        "embedding": embedding,
        "total": 0 if images is None else len(images),
        "chosen": neighbours(embedding, asked_for, pictures, "neighbours-of-chosen")
        if embedding
        else [],
        "neighbours": neighbours(embedding, queries, pictures, "neighbours") if embedding else [],
        "maps": maps(embedding, pictures, SEED, THUMBNAILS) if embedding else [],
        "guesses": guesses,
        "classes": per_class(evaluations),
        "matrices": [
            drawing
            for name, counts in evaluations.items()
            if (drawing := matrix(name, counts, pictures))
        ],
        "confused": confused(embedding, guesses) if embedding and guesses else [],
        "comparison": curves.comparison(
            group([with_check(result, runs) for found in results for result in found]), pictures
        ),
        "command": "" if run.weights else command_of(read_json(run.folder / "config.json")),
        "pictures": pictures.name,
        "made": datetime.now().strftime("%Y-%m-%d %H:%M"),
    }


def _has_results(path: Path) -> bool:
    return _is_collection(path) or (path / "results.json").exists()


def with_check(result: dict[str, Any], runs: list[Run]) -> dict[str, Any]:
    """A run's results and the last check on held-out images, which results.json does not have."""
    for run in runs:
        check = run.last("knn")
        if check is not None and run.results and result.items() >= run.results.items():
            return {**result, "kNN, held-out": {"top1": check}}
    return result


@dataclass(frozen=True)
class Looked:
    """What there is to look at."""

    images: Images | None = None
    held_out: int | None = None
    """How many images the kNN check asks about."""
    seen: Preview | None = None
    embedding: Embedding | None = None
    missing: tuple[str, ...] = ()
    """Why there is not more; sentences."""


def look(run: Run, config: ReportConfig) -> Looked:
    """Open the run's images, draw its views, and embed them."""
    device = pick_device(config.device)
    try:
        images = open_run_images(run, config)
    except UserError as error:
        return Looked(missing=(f"The run's images cannot be opened: {error}.",))
    settings = run.config
    seed = settings.get("run.seed", 0)
    bank, held_out = split_holdout(images, settings.get("run.holdout", 0.1), seed)
    asked = len(held_out) or None
    seen = sees(run, images) if run.trained else None
    unreadable: list[str] = []
    wanted = (settings.get(f"run.{name}", "auto") for name in Formats._fields)
    compute = Formats(*wanted).compute(device)  # the run's; an older one had the usual
    try:
        encoder = run.encoder
        if encoder is None:
            missing = "There is no encoder yet: the run has not written a checkpoint."
            return Looked(images, asked, seen, missing=(missing,))
        with counting("features") as on_progress:
            embedding = embed(
                images,
                encoder,
                bank,
                held_out,
                most=config.most_images,
                seed=SEED,
                compute=compute,
                on_unreadable=lambda file, _: unreadable.append(file),
                on_progress=on_progress,
            )
    except UserError as error:
        return Looked(images, asked, seen, missing=(f"The images could not be embedded: {error}.",))
    if unreadable:
        say(f"{len(unreadable)} images cannot be read; left out")
    return Looked(images, asked, seen, embedding)


def open_run_images(run: Run, config: ReportConfig) -> Images:
    """Open the images as the run did. Raises UserError when they are gone or damaged."""
    settings = run.config
    if config.data is None and "data.data" not in settings:
        raise UserError(
            f"{run.folder}/config.json does not say which images the run had; give --data"
        )
    usual = DataConfig().cache
    cache = cache_of(run.folder, Path(str(settings.get("data.cache", usual))), usual)
    own = {key.removeprefix("data."): value for key, value in settings.items()}
    where = where_in(own)
    if config.data is not None or config.data_path is not None:
        where = where._replace(
            data=config.data or where.data,
            data_path=config.data_path or where.data_path,
            labels=labels_of(run.folder, where),
        )
    else:
        where = find_images(run.folder, where, cache, "--data")
    source = where.images("pretrain", cache)
    with counting(f"packing {source.name}") as on_progress:
        return open_images(
            source,
            size=settings["data.size"],
            cache=cache,
            loading=settings.get("data.loading", "auto"),
            workers=processors(),
            memory=memory_bytes(),
            channels=settings.get("data.channels", 3),
            bits=settings.get("data.bits"),
            on_progress=on_progress,
        )


def sees(run: Run, images: Images) -> Preview | None:
    """What the network saw; None for an augmentation or a mixer of another version."""
    settings = run.config
    method = {
        name.removeprefix("method."): value
        for name, value in settings.items()
        if name.startswith("method.")
    }
    mix = method.get("mix", "none")
    if method.get("augmentation") not in AUGMENTATIONS or mix not in (NO_MIXER, *MIXERS):
        return None
    source = images.source
    mean, std = settings.get("data.mean"), settings.get("data.std")
    if not mean or not std:  # an early config.json does not have them
        mean, std = (source.mean, source.std) if source.pixel == RGB else measure(images)
    side = settings.get("data.view_size") or settings["data.size"]
    augmentation = augmentation_of(method, Input(side, tuple(mean), tuple(std)))
    mixer = mixer_of(mix, method.get("mix_alpha"))
    return preview_of(images, augmentation, mixer, settings.get("run.seed", 0))


def render(content: dict[str, Any]) -> str:
    """Fill in page.html, with its style and script, and a policy that lets it load nothing."""
    files = resources.files("mixco.report")
    style, script = (files.joinpath(n).read_text("utf-8") for n in ("style.css", "map.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return page_template().render(
        **content, style=Markup(style), script=Markup(script), policy=Markup(policy)
    )


def page_template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = breakable
    page = resources.files("mixco.report").joinpath("page.html")
    return environment.from_string(page.read_text("utf-8"))


def breakable(name: str) -> Markup:
    """A name that may break across lines where a word begins: HerbaceousVegetation, method.mix."""
    return Markup("<wbr>").join(re.split(r"(?<=[a-z])(?=[A-Z])|(?<=[._/-])", name))
