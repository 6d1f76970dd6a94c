"""Damaged and hostile input of every kind, and what must become of it: success, or one sentence.

A kind is a strategy that makes cases from real things, and an attempt that gives one to the product.
An attempt returns how it ended; whatever it raises is a defect. tests/test_fuzz.py tries some hundred
cases, tests/soak/fuzz.py thousands.
"""

import contextlib
import dataclasses
import io
import json
import os
import pickle
import struct
import subprocess
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from configs import pretrain_config, resolved, with_images
from hypothesis import strategies as st
from PIL import Image
from run_folders import ARCH
from safetensors.torch import save
from sample_images import sample_images

from mixco import cli
from mixco.data.datasets import list_images
from mixco.data.datasets.subsets import with_labels
from mixco.data.datasets.unpacking import unpack
from mixco.data.decode import Box, decode, decode_crops
from mixco.data.image_list import ImageList
from mixco.data.opening import UnreadableImage
from mixco.data.packing import pack, packed_path
from mixco.encoders.checkpoint import EncoderDescription
from mixco.encoders.loading import load_encoder
from mixco.evaluation.task import _of_run
from mixco.models.encoder import Encoder, build_backbone
from mixco.models.heads import build_head
from mixco.report.table import table
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import add_result, collect
from mixco.settings.config import PretrainConfig, Settings
from mixco.settings.parse import from_dict, load_recipe, recipe_names, to_dict
from mixco.settings.resolve import Facts, resolve
from mixco.training.checkpoints import is_finished, newest_state, open_run
from mixco.training.setup import as_it_began

SUCCESS, TOLD, LEFT_OUT = "success", "told in a sentence", "left out with a reason"


class Kind(NamedTuple):
    """What is tried, how its cases are made, and what each is given to."""

    cases: st.SearchStrategy[Any]
    attempt: Callable[[Any, Path], str]
    """A case and an empty folder -> how it ended."""


def told_or(action: Callable[[], object]) -> str:
    """Run it: a sentence must name a thing and be one line's worth of words."""
    try:
        action()
    except UserError as error:
        text = str(error)
        assert len(text) > 20 and any(mark in text for mark in ("; ", ". ", ": ", " must ")), text
        return TOLD
    return SUCCESS


# Bytes that were real once.

HTML = b"<!DOCTYPE html><html><title>404 Not Found</title></html>"


@st.composite
def mutated(draw: st.DrawFn, originals: tuple[bytes, ...]) -> bytes:
    """One of the originals, harmed in up to four ways; now and then left whole."""
    data = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(0, 4))):
        harm = draw(st.sampled_from(["cut", "bytes", "insert", "remove", "splice", "number"]))
        place = draw(st.integers(0, max(0, len(data) - 1)))
        if draw(st.booleans()):  # headers are where it hurts
            place = min(place, draw(st.integers(0, 200)))
        if harm == "cut":
            data = data[:place]
        elif harm == "bytes":
            new = draw(st.binary(min_size=1, max_size=8))
            data = data[:place] + new + data[place + len(new) :]
        elif harm == "number":
            number = draw(st.sampled_from([0, 1, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**32 - 1]))
            order = draw(st.sampled_from("<>"))
            data = data[:place] + struct.pack(f"{order}I", number) + data[place + 4 :]
        elif harm == "insert":
            data = data[:place] + draw(st.binary(min_size=1, max_size=64)) + data[place:]
        elif harm == "remove":
            data = data[:place] + data[place + draw(st.integers(1, 64)) :]
        else:
            other = draw(st.sampled_from(originals))
            data = data[:place] + other[draw(st.integers(0, len(other))) :]
    return data


# Images.


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@lru_cache
def images() -> tuple[bytes, ...]:
    """One photograph of the sample in every format and mode that is read."""
    picture = Image.fromarray(sample_images(4)[2].permute(1, 2, 0).numpy()).crop((0, 0, 64, 40))
    palette, exif = picture.quantize(32), Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    return (
        _encoded(picture, "JPEG", exif=exif),
        _encoded(picture, "JPEG", progressive=True),
        _encoded(picture.convert("CMYK"), "JPEG"),
        _encoded(picture, "PNG", exif=exif),
        _encoded(palette, "PNG", transparency=0),
        _encoded(picture.convert("RGBA"), "PNG"),
        _encoded(deep, "PNG"),
        _encoded(palette, "GIF", save_all=True, append_images=[Image.new("P", picture.size)]),
        _encoded(picture, "TIFF", compression="tiff_lzw"),
        _encoded(picture, "TIFF", compression="jpeg"),
        _encoded(deep, "TIFF"),
        _encoded(picture.convert("L").convert("F"), "TIFF"),
        _encoded(picture.convert("LAB"), "TIFF"),
        _encoded(picture, "WEBP", exif=exif),
        _encoded(picture, "BMP"),
        _encoded(picture, "PPM"),
        _encoded(picture, "MPO", save_all=True, append_images=[picture]),
        _encoded(Image.new("RGB", (1, 1)), "PNG"),
        _encoded(Image.new("1", (10_000, 10_000)), "PNG"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        HTML,
        b"",
    )


def read_image(data: bytes, _folder: Path) -> str:
    outcomes = set()

    def whole_and_corner(height: int, width: int) -> list[Box]:
        return [(0, 0, height, width), (height // 2, width // 2, 1, 1)]

    readers = (
        lambda: decode(data),
        lambda: decode(data, 16),
        lambda: decode_crops(data, whole_and_corner, 8),
    )
    for reader in readers:
        try:
            pixels = reader()
        except UnreadableImage as error:
            assert str(error)
            outcomes.add(LEFT_OUT)
            continue
        assert pixels.dtype == np.uint8 and 3 in pixels.shape and 0 not in pixels.shape
        outcomes.add(SUCCESS)
    return min(outcomes)  # a scan may be whole at an eighth of its scale alone


# Recipes, and the command line.

NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([0, -1, 2**31, 2**63, 10**30, 10**400]),
    st.floats(),
    st.floats(0, 1),
)
TEXTS = st.one_of(
    st.sampled_from(["", "auto", "moco", "mixco", "resnet18", "cpu", "None", "../x", "~", "a b"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12),
)
PLAIN = st.recursive(
    st.one_of(NUMBERS, st.booleans(), TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
SECTIONS = {k: v for k, v in to_dict(PretrainConfig()).items() if isinstance(v, dict)}
OPTIONS = sorted(key for section in SECTIONS.values() for key in section)
IMAGES = st.sampled_from([0, 1, 3, 100, *[1600, 1_281_167] * 4])
WORDS = st.sampled_from(["moco", "mixco", "none", "auto", "sgd", "adamw", "steps", "cpu", "linear"])


def likely(option: str) -> st.SearchStrategy[Any]:
    """Values of an option's type, of which many can be: they come further than any others."""
    usual = next(section[option] for section in SECTIONS.values() if option in section)
    if isinstance(usual, bool):
        return st.booleans()
    if isinstance(usual, float):
        return st.floats(0, 1)
    return st.integers(1, 256) if isinstance(usual, int | None) else WORDS | TEXTS


def toml(value: Any) -> str:
    """A value in TOML; of strings and keys JSON's escapes are TOML's too."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


@st.composite
def recipes(draw: st.DrawFn) -> tuple[bytes, int]:
    if draw(st.integers(0, 2)) == 0:
        shipped = tuple((Path(cli.__file__).parent / "recipes").glob("*.toml"))
        return draw(mutated(tuple(path.read_bytes() for path in sorted(shipped)))), draw(IMAGES)
    lines = []
    for section in draw(st.lists(st.sampled_from(sorted(SECTIONS)), max_size=3, unique=True)):
        lines.append(f"[{section}]")
        known = st.sampled_from(sorted(SECTIONS[section]))
        for key in draw(st.lists(known | TEXTS, max_size=3, unique=True)):
            fits = key in SECTIONS[section] and draw(st.booleans())
            value = draw(likely(key) if fits else PLAIN)
            lines.append(f"{json.dumps(key, ensure_ascii=False)} = {toml(value)}")
    return "\n".join(lines).encode("utf-8", "surrogatepass"), draw(IMAGES)


def resolve_recipe(case: tuple[bytes, int], folder: Path) -> str:
    path = folder / "my.toml"
    path.write_bytes(case[0])

    def action() -> None:
        settings = resolve(with_images(load_recipe(str(path))), Facts(case[1]))
        again = json.loads(json.dumps(to_dict(settings), allow_nan=False))
        assert from_dict(Settings, again, "again") == settings

    return told_or(action)


@st.composite
def command_lines(draw: st.DrawFn) -> tuple[list[str], int]:
    arguments: list[str] = []
    for option in draw(st.lists(st.sampled_from([*OPTIONS, "recipe", "epoch"]), max_size=4)):
        arguments.append(f"--{option.replace('_', '-')}")
        values = st.one_of(NUMBERS.map(str), TEXTS, st.sampled_from(recipe_names()))
        if option == "recipe" and draw(st.booleans()):
            values = st.sampled_from(recipe_names())
        elif option in OPTIONS and draw(st.integers(0, 3)):
            values = likely(option).map(str)
        if option == "milestones":
            values = st.floats(-1, 2).map(str)
        takes_none = option in ("download", "exclude_holdout")
        arguments += draw(st.lists(values, min_size=0 if takes_none else 1, max_size=1))
    return arguments, draw(IMAGES)


def resolve_command_line(case: tuple[list[str], int], _folder: Path) -> str:
    """As `mixco pretrain` begins."""
    arguments, count = case

    def action() -> None:
        config = cli.read("pretrain", PretrainConfig, arguments)
        resolve(with_images(config), Facts(count))

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            return told_or(action)
        except SystemExit as left:
            assert left.code == 2 and "Traceback" not in said.getvalue()
            return TOLD


# The JSON of run folders.


def _results(seed: int) -> dict[str, Any]:
    about = {"data": "photos/test", "training": "moco+mixco on photos", "train_images": 36}
    return {
        "pretrain": {"method": "moco+mixco", "data": "photos/pretrain", "epochs": 3, "seed": seed},
        "knn": {"top1": 62.5, "top5": 99.0, "k": 20, **about},
        "linear_paper": {"top1": 70.0, "top5": 98.0, "head_lr": 3.0, **about},
    }


def _replaced(draw: st.DrawFn, value: Any) -> Any:
    """The same JSON with one of its values another, gone or renamed."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        if draw(st.integers(0, 5)) == 0:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _replaced(draw, value[key])}
    return draw(PLAIN | st.none())


@st.composite
def run_jsons(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(st.sampled_from(["config.json", "results.json", "versions.json", "all.json"]))
    content = {
        "config.json": to_dict(resolved()),
        "results.json": _results(0),
        "versions.json": {"python": "3.11.7", "torch": "2.14.1", "hardware": "cpu, 1 threads"},
        "all.json": {"a": _results(0), "b": _results(1)},
    }[name]
    if draw(st.booleans()):
        return name, draw(mutated((json.dumps(content, indent=2).encode(), HTML, b"[" * 9999)))
    return name, json.dumps(_replaced(draw, content)).encode("utf-8", "surrogatepass")


def use_run(case: tuple[str, bytes], folder: Path) -> str:
    """All that reads a run folder's JSON; on an error nothing of it may have changed."""
    name, data = case
    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    config = to_dict(resolved())
    (run / "config.json").write_text(json.dumps(config))
    (run / "results.json").write_text(json.dumps(_results(0)))
    (run / "encoder.safetensors").touch()
    (run / name).write_bytes(data)

    def go_on() -> None:
        as_it_began(pretrain_config(out=run))
        with open_run(run, config, lambda _: None):
            is_finished(run)

    actions: list[Callable[[], object]] = [
        go_on,
        lambda: _of_run(run),
        lambda: table((run,)),
        lambda: table((run / "all.json",)) if name == "all.json" else None,
        lambda: collect(run, run / "all.json", "x"),
        lambda: add_result(run, "knn", {"top1": 1.0}),
    ]
    outcomes = set()
    for action in actions:
        before = (run / name).read_bytes()
        outcomes.add(told_or(action))
        if outcomes == {TOLD}:
            assert (run / name).read_bytes() == before
    return max(outcomes)


# Checkpoints and encoders.

SIZE = 32


class _Call:
    """Pickled, it is a call of something: harmless here, whatever an attacker would have there."""

    def __init__(self, target: Callable[..., object], *arguments: object) -> None:
        self.target, self.arguments = target, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.target, self.arguments


MARKER = Path("mixco-fuzz-was-here")  # in the working directory, should anything be run


def _saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@lru_cache
def checkpoints() -> tuple[bytes, ...]:
    """Real ones of all kinds: ours, others', and pickles that would run something."""
    backbone = build_backbone(ARCH, SIZE, "standard")
    weights = {key: value.contiguous() for key, value in backbone.state_dict().items()}
    said = EncoderDescription(ARCH, "standard", SIZE, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "seed 0")
    method = torch.nn.Module()
    method.encoder = Encoder(backbone, build_head(weights["layer4.0.bn2.bias"].numel(), 4, "mlp"))
    optimizer = torch.optim.SGD(method.parameters(), 0.1)
    state = {
        "method": method.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": 3,
        "records": [],
        "sums": {},
        "time": (1.0, 0.1, 9),
        "data": {"name": "photos/pretrain", "images": 9},
        "encoder": said.__dict__,
        "config": to_dict(PretrainConfig()),
    }
    moco = {f"module.encoder_q.{key}": value for key, value in weights.items()}
    touch = str(MARKER)
    hostile = (
        _Call(os.system, f"touch {touch}"),
        _Call(Path.touch, MARKER),
        _Call(open, touch, "w"),
        _Call(eval, f"open({touch!r}, 'w')"),
        _Call(subprocess.call, ["touch", touch]),
    )
    return (
        save(weights, {"mixco": json.dumps(said.__dict__)}),
        _saved(state),
        _saved({"state_dict": moco, "epoch": 3}),
        _saved(weights, _use_new_zipfile_serialization=False),
        _saved(method),  # a whole module
        pickle.dumps({"state_dict": {"conv1.weight": [1.0]}}),
        *(_saved({"method": call, "encoder": {}}) for call in hostile),
        *(_saved([call], _use_new_zipfile_serialization=False) for call in hostile),
        *(pickle.dumps({"state_dict": call}) for call in hostile),
        HTML,
    )


@st.composite
def checkpoint_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """Harmed from outside; or within: an archive's members, a header, with all lengths right again."""
    files = checkpoints()
    data = draw(st.sampled_from(files[:4] * 5 + files))  # more of those that can be read
    ending = "safetensors" if data == files[0] else "pt"
    if draw(st.integers(0, 3)) == 0:
        ending = draw(st.sampled_from(["safetensors", "pt", "pth", "pth.tar"]))
    how = draw(st.sampled_from(["outside", "outside", "within", "whole"]))
    if how == "outside":
        return ending, draw(mutated((data,) * len(files) + files))
    if how == "within" and zipfile.is_zipfile(io.BytesIO(data)):
        return "pt", _repacked(draw, data)
    if how == "within" and data == checkpoints()[0]:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.dumps(_replaced(draw, json.loads(data[8 : 8 + length]))).encode()
        if draw(st.booleans()):  # only what it says of itself
            known = json.loads(data[8 : 8 + length])
            said = _replaced(draw, json.loads(known["__metadata__"]["mixco"]))
            header = json.dumps({**known, "__metadata__": {"mixco": json.dumps(said)}}).encode()
        return "safetensors", struct.pack("<Q", len(header)) + header + data[8 + length :]
    return ending, data


def _repacked(draw: st.DrawFn, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(buffer, "w") as new,
    ):
        names = old.namelist()
        chosen = draw(st.sampled_from([n for n in names if n.endswith("data.pkl")] * 9 + names))
        for name in names:
            content = old.read(name)
            new.writestr(name, draw(mutated((content,))) if name == chosen else content)
    return buffer.getvalue()


def load_checkpoint(case: tuple[str, bytes], folder: Path) -> str:
    """As an encoder, and as what a stopped run would go on from."""
    ending, data = case
    path = folder / f"encoder.{ending}"
    path.write_bytes(data)
    outcome = told_or(lambda: load_encoder(path))
    inside = folder / "checkpoints"
    inside.mkdir()
    (inside / "step-00000003.pt").write_bytes(data)
    told_or(lambda: newest_state(folder, lambda _: None))
    (kept,) = inside.iterdir()
    assert kept.read_bytes() == data == path.read_bytes(), "nothing is thrown away"
    assert not MARKER.exists(), "something in the file was run"
    return outcome


# Archives.

AWKWARD = st.one_of(
    st.sampled_from(["..", "../..", "/", "/etc", "set", "set/good", "C:\\x", "-rf", "~", "nul\0x"]),
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.just("x" * 300),
    st.just("/".join(["d"] * 3000)),
)


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """A few members with names and kinds of all sorts, in a tar or a zip file; harmed or not."""
    members = draw(st.lists(st.tuples(AWKWARD, st.binary(max_size=40)), max_size=3))
    inside = [("set/" if draw(st.booleans()) else "") + name for name, _ in members]
    members = [("set/good", b"good"), *zip(inside, (c for _, c in members), strict=True)]
    buffer = io.BytesIO()
    if draw(st.booleans()):
        mode = draw(st.sampled_from(["w", "w:gz", "w:bz2", "w:xz"]))
        with tarfile.open(fileobj=buffer, mode=mode) as tar:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.type = draw(
                    st.sampled_from([tarfile.REGTYPE] * 6 + [*b"123456SLKxg"]).map(_type)
                )
                info.linkname = draw(AWKWARD)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    else:
        method = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]))
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name, content in members:
                info = zipfile.ZipInfo(name)
                modes = st.sampled_from([0, 0o100644, 0o120777, 0o20666, 0o40755])
                info.external_attr = draw(modes) << 16
                with contextlib.suppress(Exception), _no_warnings():
                    archive.writestr(info, content, method)
    data = buffer.getvalue()
    return draw(mutated((data,))) if draw(st.booleans()) else data


def _type(kind: bytes | int) -> bytes:
    return kind if isinstance(kind, bytes) else bytes([kind])


@contextlib.contextmanager
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def unpack_archive(data: bytes, folder: Path) -> str:
    """What is unpacked lies in its folder; of what is refused nothing is left."""
    (folder / "victim").write_text("untouched")
    root = folder / "data"
    root.mkdir()
    path = root / "set.archive"
    path.write_bytes(data)
    outcome = told_or(lambda: unpack(path, "set", most_bytes=10_000, most_members=20))
    assert [p.name for p in folder.iterdir() if p.name != "data"] == ["victim"]
    assert (folder / "victim").read_text() == "untouched"
    assert path.read_bytes() == data
    expected = {"set.archive", *(["set"] if outcome == SUCCESS else [])}
    assert {p.name for p in root.iterdir()} == expected
    assert not any(p.is_symlink() for p in root.rglob("*"))
    return outcome


# Lists of labelled images, and packed images.


@lru_cache
def labelled() -> ImageList:
    return list_images("sample", None, "train")


@st.composite
def label_files(draw: st.DrawFn) -> bytes:
    names = draw(st.lists(st.sampled_from(labelled().files), max_size=30))
    whole = "\n".join(labelled().files[::40])
    some = "\n".join(names)
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    ends = draw(st.sampled_from(["\n", "\r\n", "\r", "\0"]))
    text = draw(st.sampled_from([whole, some])).replace("\n", ends).encode(encoding)
    return draw(mutated((text, HTML))) if draw(st.booleans()) else text


def use_labels(data: bytes, folder: Path) -> str:
    path = folder / "list.txt"
    path.write_bytes(data)
    return told_or(lambda: with_labels(labelled(), str(path)))


@lru_cache
def packed_bytes() -> bytes:
    """The packed file of four images of the sample."""
    with tempfile.TemporaryDirectory() as cache:
        return pack(four(), size=32, cache=Path(cache)).path.read_bytes()


def four() -> ImageList:
    source = list_images("sample", None, "train")
    return dataclasses.replace(source, files=source.files[:4], labels=None, classes=())


def use_packed(data: bytes, folder: Path) -> str:
    """A damaged file of the cache is made anew; what lies behind its header is not looked at."""
    packed_path(four(), 32, folder).write_bytes(data)
    images = pack(four(), size=32, cache=folder)
    assert images.images.shape == (4, 3, 64, 64) and images.extents.shape == (4, 2)
    return SUCCESS


KINDS = {
    "image files": Kind(st.deferred(lambda: mutated(images())), read_image),
    "recipes": Kind(recipes(), resolve_recipe),
    "command lines": Kind(command_lines(), resolve_command_line),
    "JSON of run folders": Kind(run_jsons(), use_run),
    "checkpoints and encoders": Kind(checkpoint_files(), load_checkpoint),
    "archives": Kind(archives(), unpack_archive),
    "lists of labelled images": Kind(label_files(), use_labels),
    "packed images in the cache": Kind(st.deferred(lambda: mutated((packed_bytes(),))), use_packed),
}
