"""The demo: two short runs on the built-in sample, evaluated, compared and drawn."""

from pathlib import Path

import pytest
from PIL import Image

from mixco.demo import demo
from mixco.runtime.run_folder import read_json
from mixco.settings.commands import DemoConfig


@pytest.mark.slow
def test_the_demo_leaves_what_it_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    out.mkdir()
    (out / "of-an-earlier-demo.txt").write_text("mine")
    results = demo(DemoConfig(out=out, epochs=1, cache=tmp_path / "cache", device="cpu"))

    assert (tmp_path / "demo-before-1" / "of-an-earlier-demo.txt").exists()
    assert results == read_json(out / "results.json")
    random, base, mixed = results
    assert (random, mixed) == ("random", f"{base}+mixco")
    for name, result in results.items():
        assert (out / name / "encoder.safetensors").is_file()
        assert {"top1", "k"} <= result["knn"].keys()
        assert {"top1", "top5"} <= result["linear"].keys()
        for kind in ("knn", "linear"):
            assert (result[kind]["test_images"], result[kind]["train_images"]) == (400, 1600)
            assert 10 < result[kind]["top1"] < 100, "better than chance, and no leak"
            assert result[kind]["weights_matched"] == 120
    assert results[mixed]["pretrain"]["images"] == 1600
    assert results[random]["pretrain"]["epochs"] == 0
    for picture in ("views", "curves", "neighbours", "comparison"):
        with Image.open(out / f"{picture}.png") as file:
            assert file.format == "PNG"

    table = capsys.readouterr().out
    for result in results.values():
        assert f"{result['knn']['top1']:.1f} %" in table
        assert f"{result['linear']['top5']:.1f} %" in table
