"""`mixco compare` on tiny real runs: the table, the verdict, what is kept, and without labels."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from run_folders import ARCH
from sample_images import unpack_sample

import mixco
import mixco.cli
from mixco.comparison import labelled
from mixco.comparison.rows import _called
from mixco.encoders.checkpoint import save_encoder
from mixco.encoders.download import Origin
from mixco.encoders.loading import load_encoder
from mixco.models.encoder import build_backbone
from mixco.report.page import write_page
from mixco.runtime.run_folder import read_json, write_json
from mixco.settings.commands import ReportConfig

CLASSES, TEST = 3, 8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a run that began with weights, one that did not, and one without labels."""
    place = tmp_path_factory.mktemp("compare")
    unpack_sample(place / "photos", train=25, test=TEST, classes=CLASSES)
    (place / "flat").mkdir()
    for number, path in enumerate(sorted((place / "photos" / "test").rglob("*.jpg"))):
        shutil.copy(path, place / "flat" / f"{number}.jpg")
    for name, data, more in (
        ("s0", "photos", {}),
        ("s1", "photos", {"seed": 1}),
        ("other", "photos", {"mix": "none"}),
        ("flat-run", "flat", {}),
    ):
        mixco.pretrain(
            data=place / data,
            out=place / name,
            cache=place / "cache",
            arch=ARCH,
            size=32,
            epochs=2,
            batch_size=12,
            knn_every=0,
            device="cpu",
            precision="float32",
            **more,
        )
    description = load_encoder(place / "s0").description
    origin = Origin("some/weights", "https://weights.example", "mit", "0" * 64)
    start = dataclasses.replace(description, training=origin.training, origin=origin)
    for name in ("s0", "s1", "flat-run"):
        save_encoder(place / name / "init.safetensors", build_backbone(ARCH, 32, seed=7), start)
    return place


def compared(place: Path, out: Path, *runs: str, **settings: Any) -> dict[str, Any]:
    fixed = {"device": "cpu", "precision": "float32", "cache": place / "cache", "out": out}
    return mixco.compare([place / run for run in runs], **fixed, **settings)


@pytest.fixture(scope="module")
def found(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a comparison of all labelled runs, and what it found."""
    out = tmp_path_factory.mktemp("found")
    return out, compared(place, out, "s0", "s1", "other", supervised_epochs=1)


def test_the_rows(found: tuple[Path, dict[str, Any]]) -> None:
    rows = found[1]["rows"]
    assert [(row["kind"], row["name"], row["seeds"]) for row in rows] == [
        ("random", "random weights", 1),
        ("start", "published weights", 1),
        ("run", "s0, s1", 2),
        ("run", "other", 1),
        ("supervised", "from scratch with labels", 1),
    ]
    for row in rows:
        measures = ["supervised"] if row["kind"] == "supervised" else ["knn", "linear"]
        assert list(row["results"]) == measures
        for cells in row["results"].values():
            assert list(cells) == ["100%", "10%"], "1 % is an image of a class"
            for cell in cells.values():
                assert 0 <= cell["top1"] <= 100
                assert ("spread" in cell) == (row["seeds"] > 1)
        assert (row["training_seconds"] is None) == (row["kind"] in ("random", "start"))
    assert "The published weights are some/weights." in found[1]["notes"]
    assert any(note.startswith("1% of the labels: left out") for note in found[1]["notes"])


def test_the_numbers_are_those_of_knn_and_linear(
    place: Path, found: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    fixed = {"device": "cpu", "precision": "float32", "cache": place / "cache", "out": tmp_path}
    row = next(row for row in found[1]["rows"] if row["name"] == "other")
    for share, labels in (("100%", None), ("10%", "10%")):
        for kind in ("knn", "linear"):
            result = mixco.evaluate(kind, run=place / "other", labels=labels, **fixed)
            assert row["results"][kind][share]["top1"] == result["top1"]


def test_what_is_written(place: Path, found: tuple[Path, dict[str, Any]]) -> None:
    """compare.json and nothing else, also where the run's own results lie."""
    out, content = found
    written = read_json(out / "compare.json")
    assert written.pop("finished")
    assert written == content
    assert [p.name for p in out.iterdir() if not p.name.startswith(".")] == ["compare.json"]
    assert list(read_json(place / "s0" / "results.json")) == ["pretrain"]
    assert {"data", "test_images", "classes", "shares", "rows", "verdicts", "notes"} < set(content)
    assert content["test_images"] == CLASSES * TEST


def test_the_verdicts(found: tuple[Path, dict[str, Any]]) -> None:
    pairs = [(verdict["row"], verdict["against"]) for verdict in found[1]["verdicts"]]
    assert pairs == [
        ("s0, s1", "published weights"),
        ("other", "random weights"),
        ("s0, s1", "from scratch with labels"),
        ("other", "from scratch with labels"),
        ("other", "s0, s1"),
    ]
    rows = {row["name"]: row["results"] for row in found[1]["rows"]}
    for verdict in found[1]["verdicts"]:
        assert verdict["outcome"] in ("gained", "lost", "unclear", "disagree")
        for key, difference in verdict["differences"].items():
            kind, share = (key, "100%") if key in ("knn", "linear") else ("linear", key)
            other = "supervised" if verdict["against"].startswith("from scratch") else kind
            ours, theirs = rows[verdict["row"]][kind], rows[verdict["against"]][other]
            points = ours[share]["top1"] - theirs[share]["top1"]
            assert difference["points"] == pytest.approx(points, abs=0.02)
            assert difference["low"] < difference["high"]


def test_a_stopped_comparison_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the training from scratch: what is done is not computed again."""
    measured: list[str] = []

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    measure = labelled.measure
    monkeypatch.setattr(
        labelled, "measure", lambda *a, **k: measured.append("") or measure(*a, **k)
    )
    with monkeypatch.context() as stopping:
        stopping.setattr(labelled, "from_scratch", stop)
        with pytest.raises(KeyboardInterrupt):
            compared(place, tmp_path, "s0")
    assert len(measured) == 3
    before = read_json(tmp_path / "compare.json")
    assert [row["kind"] for row in before["rows"]] == ["random", "start", "run"]
    content = compared(place, tmp_path, "s0", supervised_epochs=1)
    assert len(measured) == 3
    assert [row["kind"] for row in content["rows"]] == ["random", "start", "run", "supervised"]
    assert content["rows"][:3] == before["rows"]
    assert any("epochs: 1 with 100%" in note for note in content["notes"])
    monkeypatch.setattr(labelled, "from_scratch", stop)
    assert compared(place, tmp_path, "s0", supervised_epochs=1) == content
    assert compared(place, tmp_path, "s0", k=3, supervised=False)["k"] == 3
    assert len(measured) == 6, "another k is another evaluation"


@pytest.mark.parametrize("content", ["[]", '{"finished": 3}', "{"])
def test_a_damaged_file_is_told(place: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "compare.json").write_text(content)
    with pytest.raises(mixco.UserError, match=r"compare\.json"):
        compared(place, tmp_path, "s0", supervised=False)
    assert (tmp_path / "compare.json").read_text() in (content, '{\n  "finished": 3\n}\n')


def test_without_labels_there_is_no_verdict(place: Path, tmp_path: Path) -> None:
    content = compared(place, tmp_path, "flat-run", k=3)
    assert content["verdicts"] == []
    assert not content["labelled"]
    assert [row["kind"] for row in content["rows"]] == ["random", "start", "run"]
    assert content["rows"][-1]["same_neighbours"] == 1
    assert 0 < content["rows"][1]["same_neighbours"] < 1
    for row in content["rows"]:
        assert 1 <= row["geometry"]["effective_rank"] <= CLASSES * TEST
        assert 0 < row["geometry"]["alignment"] < 4
        assert row["geometry"]["uniformity"] < 0
    with Image.open(tmp_path / content["picture"]) as picture:
        assert min(picture.size) > 300
    assert (
        compared(place, tmp_path, "flat-run", k=3)["rows"][2]["geometry"]
        == (content["rows"][2]["geometry"])
    )


def test_the_page_shows_it(place: Path, found: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run = shutil.copytree(place / "s0", tmp_path / "s0")
    page = tmp_path / "page.html"
    config = ReportConfig((run,), out=page, most_images=20, data=str(place / "photos"))
    assert 'id="worth"' not in write_page(config).read_text("utf-8")
    shutil.copy(found[0] / "compare.json", run)
    text = write_page(config).read_text("utf-8")
    assert text.count('<section id="worth"') == 1
    assert 'href="#worth"' in text
    for verdict in found[1]["verdicts"]:
        assert verdict["sentence"] in text
    top1 = found[1]["rows"][0]["results"]["knn"]["100%"]["top1"]
    assert f"<td>{top1:.1f} ± " in text
    write_json(run / "compare.json", {**found[1], "rows": [{}]})
    with pytest.raises(mixco.UserError, match=r"compare.json is damaged; remove it"):
        write_page(config)


def test_the_page_of_a_run_without_labels(place: Path, tmp_path: Path) -> None:
    run = shutil.copytree(place / "flat-run", tmp_path / "run")
    compared(place, run, "flat-run", k=3)
    page = write_page(ReportConfig((run,), out=tmp_path / "a.html", data=str(place / "flat")))
    section = page.read_text("utf-8").split('<section id="worth"')[1].split("</section>")[0]
    assert "effective rank" in section
    assert section.count('<img src="data:image/webp') == 1


@pytest.mark.parametrize("more", [[], ["--markdown"]])
def test_the_command_fits_eighty_columns(
    place: Path,
    found: tuple[Path, dict[str, Any]],
    more: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    runs = [str(place / run) for run in ("s0", "s1", "other")]
    options = ["--device", "cpu", "--precision", "float32", "--cache", str(place / "cache")]
    options += ["--out", str(found[0]), "--supervised-epochs", "1", *more]
    mixco.cli.main(["compare", *runs, *options])
    text = capsys.readouterr().out
    if more:
        assert "| encoder | measure | all labels | 10% | seconds |" in text
    else:
        assert max(map(len, text.splitlines())) <= 80
    whole = " ".join(text.split())
    assert all(verdict["sentence"] in whole for verdict in found[1]["verdicts"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: not a run folder"),
        (["s0", "flat-run"], "flat-run: trained on other images than"),
        (["unfinished"], "unfinished: the run is not finished"),
        (["s0", "--k", "0"], "--k must be at least 1, got 0"),
        (["s0", "--data", "nowhere"], "nowhere: neither a folder nor a known data set"),
    ],
)
def test_mistakes_name_a_remedy(
    place: Path,
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    unfinished = place / "unfinished"
    unfinished.mkdir(exist_ok=True)
    shutil.copy(place / "s0" / "config.json", unfinished)
    with pytest.raises(SystemExit) as stopped:
        mixco.cli.main(["compare", *arguments, "--out", str(tmp_path), "--cache", "cache"])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_rows_of_several_seeds_have_short_names() -> None:
    rows = [["cars-s0", "cars-s1", "cars-s2"], ["cats_seed1", "cats_seed2"], ["cars"], ["s0", "s1"]]
    expected = ["cars (3 seeds)", "cats (2 seeds)", "cars", "s0, s1"]
    assert _called(rows) == expected
    alike = [["cars-s0", "cars-s1"], ["cars-s2", "cars-s3"]]
    assert _called(alike) == ["cars-s0, cars-s1", "cars-s2, cars-s3"]


def test_labels_from_a_table_and_images_in_two_folders(place: Path, tmp_path: Path) -> None:
    """The labels of a run without labels; two halves of the photographs are measured on as one."""
    rows = [
        f"{i}.jpg,class {i // TEST},{'train' if i % TEST < 5 else 'test'}"
        for i in range(CLASSES * TEST)
    ]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["image_id,species,split", *rows]))
    by_table = {"labels_from": table, "label_column": "species", "supervised": False}
    found = compared(place, tmp_path / "one", "flat-run", **by_table)
    assert found["test_images"] == CLASSES * 3
    for half in (0, 1):
        (tmp_path / str(half)).mkdir()
        for path in (place / "flat").glob("*.jpg"):
            if int(path.stem) % 2 == half:
                shutil.copy(path, tmp_path / str(half))
    data = [tmp_path / "0", tmp_path / "1"]
    halves = compared(place, tmp_path / "two", "flat-run", data=data, **by_table)
    for one, two in zip(found["rows"], halves["rows"], strict=True):
        assert one["name"] == two["name"]
        assert one["results"]["knn"] == two["results"]["knn"]
    assert halves["test_images"] == found["test_images"] and halves["classes"] == found["classes"]
