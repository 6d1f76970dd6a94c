"""`mixco report`: pages of real runs, opened in a real browser."""

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Page, browser
from PIL import Image
from sample_images import unpack_sample

import mixco.cli
from mixco.evaluation import EVALUATIONS
from mixco.report.figures import slug
from mixco.report.page import write_page
from mixco.runtime.run_folder import read_confusions, read_json, read_metrics, write_json
from mixco.settings.commands import ReportConfig

HOSTILE = "<b onclick='alert(1)'>&amp; \"$x_{ 90%"
NAMES = ("AnnualCrop", "Forest", "HerbaceousVegetation", HOSTILE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of timm's smallest ResNet on real images: with labels (two seeds), and without."""
    place = tmp_path_factory.mktemp("report")
    photos = unpack_sample(place / "photos", train=10, test=3, classes=4)
    for split in ("train", "test"):
        (photos / split / "Highway").rename(photos / split / HOSTILE)
    flat = place / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted((photos / "train").rglob("*.jpg"))):
        shutil.copy(path, flat / f"{number} <i>&.jpg")
    for name, data, more in (
        ("labelled", photos, ["--knn-every", "1"]),
        ("seed1", photos, ["--seed", "1", "--mix", "none"]),
        ("flat-run", flat, []),
    ):
        settings = ["--size", "32", "--arch", "test_resnet", "--epochs", "3", "--batch-size", "16"]
        paths = ["--data", data, "--cache", place / "cache", "--out", place / name]
        mixco.cli.main(["pretrain", *map(str, paths), *settings, "--holdout", "0.2", *more])
    for command in ("knn", "linear"):
        paths = ["--run", place / "labelled", "--cache", place / "cache"]
        mixco.cli.main([command, *map(str, paths)])
    return place


@pytest.fixture(scope="module")
def page(place: Path) -> Path:
    """The page of the run with labels."""
    return write_page(ReportConfig(runs=(place / "labelled",), out=place / "pages" / "a.html"))


def page_of(*runs: Path, out: Path, **settings: Any) -> str:
    written = write_page(ReportConfig(runs=runs, out=out, **settings))
    assert written == out
    return out.read_text("utf-8")


class Elements(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def sections(text: str) -> list[str]:
    return re.findall(r'<section id="([a-z]+)"', text)


def checked(text: str) -> str:
    """Check what is true of every page; returns its text."""
    elements = Elements(text).found
    for tag, attributes in elements:
        for key in ("src", "href", "xlink:href", "action", "srcset"):
            value = attributes.get(key) or ""
            assert value.startswith(("data:", "#")) or value == "", (tag, key, value[:80])
        assert not any(key.startswith("on") for key in attributes), (tag, attributes)
        if tag == "img":
            assert attributes["alt"]
    assert not re.search(r"url\((?!#)|@import|https?://", text)
    assert "default-src 'none'" in text
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))
    headings = [int(tag[1]) for tag, _ in elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(headings)), headings
    return text


@pytest.mark.slow
def test_the_page_of_a_run(place: Path, page: Path) -> None:
    run = place / "labelled"
    text = checked(page.read_text("utf-8"))
    assert sections(text) == [
        *("results", "curves", "saw", "neighbours", "map", "classes", "settings")
    ]
    assert (
        "trained without labels by SimCLR with MixCo on 40 images of photos at 32 × 32 pixels"
        in text
    )
    check = read_metrics(run)[-1]["knn"]
    results = read_json(run / "results.json")
    for value in (check, results["knn"]["top1"], results["linear"]["top1"]):
        assert f'<dd class="value">{value:.1f} %</dd>' in text
    assert "kNN, 8 held-out training images" in text
    for picture in ("loss", "knn", "lr", "images-per-second", "data-wait", "views", "map-pca"):
        with Image.open(page.with_suffix("") / f"{picture}.png") as file:
            assert min(file.size) > 300
    confusions = slug(f"confusions {EVALUATIONS['knn'].title}, test images")
    others = {"neighbours.png", f"{confusions}.png"}
    assert others < {p.name for p in page.with_suffix("").iterdir()}
    assert "<span>mixco pretrain</span> <span>--data " in text
    assert sorted(p.name for p in page.parent.iterdir()) == ["a", "a.html"]


def test_the_check_on_the_page_is_the_run_s_own(place: Path, page: Path) -> None:
    """The same images are held out and the last weights are used, so it is the last check again."""
    text = page.read_text("utf-8")
    table = text[text.index('<table class="classes">') :]
    cells = [row.split("<td>")[1] for row in table.split("</table>")[0].split("<tr>")[2:]]
    found = [re.search(r'</span>(\d+) <span class="quiet">of (\d+)', cell) for cell in cells]
    right = sum(round(int(m[1]) * int(m[2]) / 100) for m in found if m)
    asked = sum(int(m[2]) for m in found if m)
    assert asked == 8
    assert 100 * right / asked == read_metrics(place / "labelled")[-1]["knn"]


def test_evaluations_write_confusions(place: Path) -> None:
    run = place / "labelled"
    for kind in ("knn", "linear"):
        counts = read_confusions(run / f"confusions-{kind}.csv")
        right = sum(n for (truth, guess), n in counts.items() if truth == guess)
        assert sum(counts.values()) == 12
        top1 = read_json(run / "results.json")[kind]["top1"]
        assert top1 == pytest.approx(100 * right / 12, abs=0.01)
        assert {truth for truth, _ in counts} == set(NAMES)


def test_hostile_names_are_text(place: Path, tmp_path: Path) -> None:
    run = shutil.copytree(place / "labelled", tmp_path / "</title><script>alert(1)<")
    config = read_json(run / "config.json")
    config["model"]["head"] = "<script>alert(2)</script>"
    write_json(run / "config.json", config)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"epoch": 4, "<u>$_{ up": 1.0, "clean": 3.0}) + "\n")
    (run / "unreadable.txt").write_bytes(b"<b>\xff.jpg\t<reason>\n")
    text = checked(page_of(run, out=tmp_path / "a.html"))
    assert text.count("<script>") == 1
    assert HOSTILE not in text
    assert "&lt;b onclick=&#39;alert(1)&#39;&gt;&amp;amp;" in text
    assert "<b>" not in text
    assert "<u>" not in text


def test_without_labels(place: Path, tmp_path: Path) -> None:
    text = checked(page_of(place / "flat-run", out=tmp_path / "a.html"))
    assert sections(text) == ["results", "curves", "saw", "neighbours", "map", "settings"]
    assert "The images have no labels" in text
    assert "✗" not in text


def test_chosen_images(place: Path, tmp_path: Path) -> None:
    """A file of the user, a file of the run, and a name below the run's folder."""
    own = tmp_path / "mine.png"
    Image.new("L", (50, 20), 200).save(own)
    inside = next((place / "photos" / "train" / "Forest").iterdir())
    name = next((place / "photos" / "train" / HOSTILE).iterdir())
    chosen = (own, inside, name.relative_to(place / "photos" / "train"))
    text = checked(page_of(place / "labelled", out=tmp_path / "a.html", images=chosen))
    part = text[text.index("Chosen images") : text.index("Random images")]
    queries = re.findall(r'<figure class="query">.*?alt="([^"]*)"', part, re.DOTALL)
    assert queries[0] == str(own)
    assert queries[1].startswith(f"Forest/{inside.name}, Forest")
    assert queries[2].startswith("&lt;b onclick")
    assert part.count("<figure>") == 3 * 8
    assert part.count(inside.name) == 2, "alt and title: no image is its own neighbour"


def test_images_that_are_gone(place: Path, tmp_path: Path) -> None:
    run = shutil.copytree(place / "labelled", tmp_path / "run")
    config = read_json(run / "config.json")
    config["data"]["data"] = str(tmp_path / "nowhere")
    write_json(run / "config.json", config)
    known = read_json(run / "images.json")
    gone = {"place": str(tmp_path / "nowhere"), "from_run": "../nowhere"}
    write_json(run / "images.json", known | gone)
    text = checked(page_of(run, out=tmp_path / "a.html"))
    assert sections(text) == ["results", "curves", "classes", "settings"]
    assert f"{tmp_path}/nowhere" in text
    title = EVALUATIONS["linear"].title
    assert f"{title}, test images" in text, "what the evaluations left is still shown"
    moved = {"data": str(place / "photos"), "most_images": 20}
    again = checked(page_of(run, out=tmp_path / "b.html", **moved))
    assert "neighbours" in sections(again)
    assert "A random part, 20 of 40 images" in again
    assert "with a random part of the images" in again


def test_a_run_that_is_not_finished(place: Path, tmp_path: Path) -> None:
    """Stopped in its third epoch, with half a line of metrics; then without any checkpoint."""
    run = shutil.copytree(place / "labelled", tmp_path / "run")
    for name in ("results.json", "encoder.safetensors", "confusions-knn.csv"):
        (run / name).unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
    text = checked(page_of(run, out=tmp_path / "a.html"))
    assert "The run is not finished" in text
    assert "2 of 3 epochs so far" in text
    assert "map" in sections(text)
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    text = checked(page_of(run, out=tmp_path / "a.html"))
    assert "There is no encoder yet" in text
    assert sections(text) == ["results", "saw", "settings"]


def test_unknown_columns_are_drawn(place: Path, tmp_path: Path) -> None:
    run = shutil.copytree(place / "labelled", tmp_path / "run")
    records = [
        {
            **r,
            "effective_rank": 10 * r["epoch"],
            "flat": 0,
            "word": "x",
            "truth": True,
            "lost": None,
        }
        for r in read_metrics(run)
    ]
    records[1]["effective_rank"] = float("nan")
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    text = checked(page_of(run, out=tmp_path / "a.html"))
    assert "Effective rank: SimCLR with MixCo goes from 10 in epoch 1 to 30 in epoch 3." in text
    assert (tmp_path / "a" / "effective-rank.png").exists()
    assert (tmp_path / "a" / "flat.png").exists()
    assert not {"word", "truth", "lost"} & {p.stem for p in (tmp_path / "a").iterdir()}


def test_several_runs_beside_each_other(place: Path, tmp_path: Path) -> None:
    """Seeds of a setting are one line of the table, with their mean and spread."""
    twin = shutil.copytree(place / "labelled", tmp_path / "twin")
    config, results = read_json(twin / "config.json"), read_json(twin / "results.json")
    config["run"]["seed"] = results["pretrain"]["seed"] = 7
    results["linear"]["top1"] = read_json(place / "labelled" / "results.json")["linear"]["top1"] + 2
    write_json(twin / "config.json", config)
    write_json(twin / "results.json", results)
    first = shutil.copytree(place / "labelled", tmp_path / "first")
    written = write_page(ReportConfig(runs=(first, twin, place / "seed1")))
    assert written == tmp_path / "report.html"
    text = checked(written.read_text("utf-8"))
    assert "comparison" in sections(text)
    mean = results["linear"]["top1"] - 1
    assert f"<td>{mean:.1f} ± 1.4 (2)</td>" in text
    assert "SimCLR with MixCo <span" in text
    assert "(mean of 2 runs" in text
    assert (tmp_path / "report" / "comparison-linear.png").exists()


def test_an_encoder_that_was_not_trained(place: Path, tmp_path: Path) -> None:
    """The demo writes one, with a config and without metrics."""
    run = shutil.copytree(place / "labelled", tmp_path / "run")
    for name in ("metrics.jsonl", "versions.json"):
        (run / name).unlink()
    results = read_json(run / "results.json")
    write_json(run / "results.json", {**results, "pretrain": {"method": "random", "epochs": 0}})
    text = checked(page_of(run, out=tmp_path / "a.html"))
    assert "with random weights, not trained" in text
    assert sections(text) == ["results", "neighbours", "map", "classes", "settings"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "is this a run folder?"),
        (["all.json"], "--table"),
        (["RUN", "--images", "missing.jpg"], "--images missing.jpg: cannot be read"),
        (["RUN", "--out", "."], ".html"),
        (["RUN", "--out", "RUN/config.json/x.html"], "cannot be written"),
        (["RUN", "--most-images", "3"], "--most-images must be at least 10"),
        (["BROKEN"], "metrics.jsonl is damaged"),
    ],
)
def test_mistakes_name_a_remedy(
    arguments: list[str],
    message: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "labelled", tmp_path / "RUN")
    shutil.copytree(place / "labelled", tmp_path / "BROKEN")
    (tmp_path / "BROKEN" / "metrics.jsonl").write_text("{\n{}\n")
    write_json(tmp_path / "all.json", {"a": {"knn": {"top1": 1.0}}})
    with pytest.raises(SystemExit) as stopped:
        mixco.cli.main(["report", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.html"))


def test_names_of_pictures_are_safe() -> None:
    assert slug("../<x> Y.z") == "x-y-z"
    assert slug("..") == "figure"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


WIDTHS = (360, 768, 1280)


def test_in_a_browser(place: Path, page: Path, tmp_path: Path, chromium: Page) -> None:
    """Nothing overflows, is loaded, or raises an error; dark mode is dark; the map zooms."""
    page_of(place / "flat-run", place / "seed1", out=tmp_path / "b.html")
    lightness = {}
    for path in (page, tmp_path / "b.html"):
        for width in WIDTHS:
            for dark in (False, True):
                chromium.open(path, width, dark=dark)
                assert chromium.evaluate("document.documentElement.scrollWidth") <= width
                body = "getComputedStyle(document.body)"
                for what in ("backgroundColor", "color"):
                    colour = chromium.evaluate(f"{body}.{what}")
                    lightness[what, dark] = sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
        headings = chromium.evaluate("[...document.querySelectorAll('h2')].map(h => h.innerText)")
        assert headings[0] == "Results"
        assert "Map of the embedding" in headings
        broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
        assert chromium.evaluate(broken) == 0
    assert lightness["backgroundColor", False] > 240 > 60 > lightness["color", False]
    assert lightness["backgroundColor", True] < 60 < 200 < lightness["color", True]
    # A figure's words have the page's colour.
    text = "getComputedStyle(document.querySelector('.drawing text[style*=currentColor]')).fill"
    assert sum(map(int, re.findall(r"\d+", chromium.evaluate(text))[:3])) / 3 > 200

    chromium.open(page, 1280)
    box = "document.querySelector('.map svg').getAttribute('viewBox').split(' ').map(Number)"
    whole = chromium.evaluate(box)
    chromium.evaluate("document.querySelector('[data-zoom=\"2\"]').click()")
    assert chromium.evaluate(box)[2] == whole[2] / 2
    chromium.evaluate("document.querySelector('[data-zoom=\"0\"]').click()")
    assert chromium.evaluate(box) == whole
    chromium.evaluate("document.querySelector('.map .legend button').click()")
    assert chromium.evaluate("document.querySelectorAll('.map .off').length") > 0

    assert chromium.errors == []
    assert {url.partition(":")[0] for url in chromium.requests} <= {"file", "data"}
    assert {url.rpartition("/")[2] for url in chromium.requests if url[:5] == "file:"} == {
        *("a.html", "b.html")
    }
