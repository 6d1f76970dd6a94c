"""Published weights take the place of a run in every command that takes an encoder."""

import json
from pathlib import Path

import pytest
from sample_images import unpack_sample

import mixco
from mixco.cli import main
from mixco.runtime.run_folder import read_json

LITE = "efficientnet-lite0"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_sample(tmp_path_factory.mktemp("photos"), train=8, test=4, classes=3)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(photos: Path, here: Path, command: str) -> None:
    """The command line, at 32 pixels, in float32."""
    words = command.replace("PHOTOS", str(photos)).split()
    rest = ["--size", "32", "--cache", str(here / "cache"), "--device", "cpu"]
    main([*words, *rest, "--precision", "float32"])


@pytest.mark.parametrize("option", ["--checkpoint", "--run"])
def test_evaluations(option: str, photos: Path, here: Path) -> None:
    run(photos, here, f"knn {option} {LITE} --data PHOTOS --out results")
    run(photos, here, f"linear {option} {LITE} --data PHOTOS --out results")
    results = read_json(here / "results" / "results.json")
    for kind in ("knn", "linear"):
        found = results[next(key for key in results if key.startswith(kind))]
        assert found["top1"] > 100 / 3
        assert "published weights" in found["training"]
        assert found["weights_matched"] == 294


def test_fine_tuning(photos: Path, here: Path) -> None:
    run(photos, here, f"finetune --init {LITE} --data PHOTOS --out tuned --epochs 1")
    assert list((here / "tuned").glob("finetune*.safetensors"))
    with pytest.raises(SystemExit) as ended:
        run(photos, here, f"finetune --init {LITE} --checkpoint {LITE} --data PHOTOS --out tuned")
    assert ended.value.code == 2


def test_embedding_and_searching(
    photos: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(photos, here, f"embed {LITE} PHOTOS --out vectors.npz")
    assert (here / "vectors.npz").is_file()
    image = next((photos / "test").rglob("*.jpg"))
    capsys.readouterr()
    run(photos, here, f"neighbours {LITE} {image} --among PHOTOS --k 3")
    assert len(capsys.readouterr().out.splitlines()) == 4
    run(photos, here, f"duplicates {LITE} --among PHOTOS")
    assert list((here / "cache" / "embeddings").iterdir()), "vectors are kept in the cache"
    assert not (here / "embeddings").exists()


def test_exports_say_whose_weights_they_are(here: Path) -> None:
    main(["export", LITE, "--to", "timm", "--size", "32", "--out", "exported"])
    card = (here / "exported" / "README.md").read_text("utf-8")
    assert "The weights: apache-2.0." in card
    assert "57934424" in card


def test_the_page_shows_weights_without_a_run(photos: Path, here: Path) -> None:
    page = ["report", LITE, "--data", str(photos), "--size", "32", "--device", "cpu"]
    main([*page, "--out", "page.html"])
    text = (here / "page.html").read_text("utf-8")
    assert "licence apache-2.0" in text
    assert "random weights" not in text
    with pytest.raises(SystemExit) as ended:
        main(["report", LITE])
    assert ended.value.code == 2


def test_a_run_starts_from_them_and_says_so(
    photos: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(photos, here, f"pretrain --data PHOTOS --init {LITE} --epochs 1 --batch-size 8 --out run")
    assert "57934424" in capsys.readouterr().err
    assert "apache-2.0" in json.dumps(read_json(here / "run" / "results.json"))
    description = mixco.load_encoder(here / "run").description
    assert description.origin is not None
    assert description.origin.licence == "apache-2.0"
    main(["export", "run", "--to", "safetensors"])
    card = (here / "run" / "exports" / "safetensors" / "README.md").read_text("utf-8")
    assert "Their training began with the published weights" in card
    assert "The licence of the weights is unknown" in card
