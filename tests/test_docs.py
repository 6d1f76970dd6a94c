"""The documents are true: their code runs, their commands and options exist, their links lead somewhere.

Every fenced ```python block of README.md and docs/*.md is run. The blocks of a page share a namespace,
in which `images` is a batch of photographs. They run in a folder with `photos/` (class folders of real
images), `labels.csv` (a table of them), `runs/photos` (a short run on them), `vectors.parquet` (their
vectors) and `encoder.safetensors` (a ResNet-18 with the standard stem). Every `mixco ...` line in a code
block goes through the parser of the command line. Commands that only read that run are run.

A block that cannot run follows a comment with the reason:  <!-- not run: it needs ... -->
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import pytest
import torch
from sample_images import sample_images, unpack_sample

import mixco
from mixco import cli
from mixco.encoders.checkpoint import EncoderDescription, save_encoder
from mixco.models.encoder import build_backbone
from mixco.settings.config import PretrainConfig
from mixco.settings.options import rows, table
from mixco.views.augmentation import IMAGENET_MEAN, IMAGENET_STD

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- not run: *(?P<reason>.*?) *-->\s*)?^(?P<indent> *)```(?P<language>\w*)[^\n]*\n"
    r"(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
INDENTED = re.compile(r"(?:^    +\S.*\n?)+", re.MULTILINE)
READS_ONLY = {"knn", "linear"}  # commands that are quick on a small run


class Block(NamedTuple):
    language: str
    code: str
    reason: str | None
    """Why the block is not run."""


def blocks(page: Path) -> Iterator[Block]:
    """Fenced blocks, and indented ones, which have no language."""
    text = page.read_text("utf-8")
    for found in FENCE.finditer(text):
        code = re.sub(rf"^{found['indent']}", "", found["code"], flags=re.MULTILINE)
        yield Block(found["language"], code, found["reason"])
    for block in INDENTED.finditer(FENCE.sub("", text)):
        yield Block("", block[0], None)


def commands(code: str) -> Iterator[list[str]]:
    """The arguments of each `mixco ...` in shell code; shell variables become 0."""
    code = code.replace("\\\n", " ")
    for line in code.splitlines():
        for part in re.split(r";|&&|\bdo\b", line.partition(" #")[0]):
            part = part.strip().removeprefix("$ ")
            if part.startswith("mixco "):
                yield [re.sub(r"\$\w+", "0", word) for word in shlex.split(part)[1:]]


COMMANDS = [
    (arguments, block.reason is None)
    for page in PAGES
    for block in blocks(page)
    if block.language in ("", "sh", "bash", "console")
    for arguments in commands(block.code)
]
IN_PYTHON = [page for page in PAGES if any(b.language == "python" for b in blocks(page))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the documents use: photographs, and a short run on them."""
    folder = tmp_path_factory.mktemp("docs")
    unpack_sample(folder / "photos", train=12, test=3)
    paths = [path.relative_to(folder / "photos") for path in (folder / "photos").glob("*/*/*")]
    lines = [f"{path.as_posix()},{path.parts[1]},{path.parts[0]}\n" for path in paths]
    (folder / "labels.csv").write_text("".join(["path,label,split\n", *lines]))
    options = (
        f"--data {folder}/photos --cache {folder}/cache --device cpu --batch-size 40 --epochs 1"
    )
    cli.main(
        ["pretrain", *shlex.split(options), "--knn-every", "0", "--out", f"{folder}/runs/photos"]
    )
    vectors = ("--out", f"{folder}/vectors.parquet", "--device", "cpu")
    cli.main(["embed", f"{folder}/runs/photos", f"{folder}/photos", *vectors])
    large = EncoderDescription(
        "resnet18", "standard", 224, IMAGENET_MEAN, IMAGENET_STD, "random weights, seed 0"
    )
    save_encoder(folder / "encoder.safetensors", build_backbone("resnet18", 224), large)
    torch.save({"state_dict": torch.nn.Linear(2, 2).state_dict()}, folder / "theirs.ckpt")
    return folder


@pytest.mark.parametrize("page", IN_PYTHON, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {"images": sample_images(8).float() / 255}
    for block in blocks(page):
        if block.language == "python" and block.reason is None:
            exec(compile(block.code, str(page), "exec"), namespace)


@pytest.mark.parametrize("arguments", [run for run, _ in COMMANDS], ids=" ".join)
def test_a_command_is_understood(arguments: list[str]) -> None:
    if not any(word in ("--help", "-h", "--version") for word in arguments):
        name, *rest = arguments
        cli.read(name, resolve_name(cli.commands()[name].config), rest)


def only_reads(arguments: list[str]) -> bool:
    return (
        arguments[0] in READS_ONLY and "runs/photos" in arguments and "--protocol" not in arguments
    )


@pytest.mark.parametrize(
    "arguments", [run for run, may in COMMANDS if may and only_reads(run)], ids=" ".join
)
def test_a_command_that_only_reads_the_run_works(
    arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    cli.main([*arguments, "--cache", "cache"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_not_run_has_a_reason(page: Path) -> None:
    for comment in re.findall(r"<!-- not run:?(.*?)-->", page.read_text("utf-8")):
        assert len(comment.split()) >= 3, f"{page.name}: say why, in words: {comment!r}"
    for block in blocks(page):
        assert block.reason is None or block.language, f"{page.name}: no language"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    for path, _, name in re.findall(r"(tests/[\w/]+\.py)(::(\w+))?", page.read_text("utf-8")):
        code = (ROOT / path).read_text("utf-8")
        assert not name or f"def {name}(" in code, f"{page.name}: {path}::{name}"


def slug(heading: str) -> str:
    """The anchor that GitHub makes for a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", ""))
    return kept.replace(" ", "-")


@pytest.mark.parametrize(
    "page",
    [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "experiments/RESULTS.md"],
    ids=lambda page: page.name,
)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text("utf-8")))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        wanted = (page.parent / path) if path else page
        assert wanted.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", wanted.read_text("utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name}: {target}"


@pytest.mark.parametrize("name", ["coming-from.md", "settings.md"])
def test_the_options_in_our_column_exist(name: str) -> None:
    configs = [resolve_name(command.config) for command in cli.commands().values()]
    known = {row.option for config in configs for row in rows(config)} | {"--help"}
    lines = re.findall(r"^\|.*\|$", (ROOT / "docs" / name).read_text("utf-8"), re.MULTILINE)
    ours = " ".join(line.split("|")[-2] for line in lines)
    assert set(re.findall(r"--[a-z][\w-]*", ours)) <= known


def test_the_page_of_options_follows_from_the_declarations() -> None:
    """python docs/make_options.py writes it."""
    page = (ROOT / "docs/settings.md").read_text("utf-8")
    region = page.partition("<!-- options: pretrain -->\n")[2]
    assert region.partition("<!-- end of options -->")[0] == table(PretrainConfig)


def test_the_reference_has_every_public_name() -> None:
    text = (ROOT / "docs/reference.md").read_text("utf-8")
    assert sorted(re.findall(r"^::: mixco\.(\w+)$", text, re.MULTILINE)) == sorted(mixco.__all__)


def test_the_site_has_every_page_in_its_navigation() -> None:
    navigation = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.M)
    missing = {page.name for page in PAGES} - set(navigation) - {"README.md"}
    assert not missing, "mkdocs.yml: these pages are not in nav"


@pytest.mark.skipif(os.name == "nt", reason="the file system of Windows knows no case")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason="pip install 'mixco[docs]'")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert built.returncode == 0, built.stderr
    pages = list((tmp_path / "site").glob("*.html"))
    for page in pages:
        loaded = re.findall(
            r"<(?:script|link|img)[^>]*(?:src|href)=\"(https?:[^\"]*)", page.read_text()
        )
        assert not loaded, f"{page.name} loads from elsewhere: {loaded}"
    assert len(pages) > 15
