"""A mixer, a base, a data set, an evaluation and a logger: one function or file, and one line, each."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixco.runtime.run_folder import read_json, read_metrics

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real files: 48 training and 16 test images of two classes."""
    root = tmp_path_factory.mktemp("data")
    draws = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for name, level in (("bright", 180), ("dark", 60)):
            folder = root / "squares" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = draws.integers(level - 40, level + 40, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


Mixco = Callable[..., str]


@pytest.fixture(scope="module")
def mixco() -> Iterator[Mixco]:
    """Run a command of the extended mixco. Returns its standard output and error.

    One process runs all of them: parts are added before mixco is imported, which takes seconds.
    """
    paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
    with subprocess.Popen(
        [sys.executable, str(HERE / "extended_mixco.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "300"},
    ) as process:
        assert process.stdin and process.stdout

        def run(*arguments: str | Path) -> str:
            print(json.dumps(list(map(str, arguments))), file=process.stdin, flush=True)
            said = []
            for line in process.stdout:
                if line == "done\n":
                    return "".join(said)
                said.append(line)
            raise AssertionError("".join(said))

        yield run
        process.stdin.close()


def test_help_knows_the_new_parts(mixco: Mixco) -> None:
    assert "centroid" in mixco("--help")
    text = mixco("pretrain", "--help")
    assert all(part in text for part in ("pull", "patches", "lines"))
    assert "--target-decay" not in text
    text = mixco("pretrain", "--method", "pull", "--help")
    assert all(part in text for part in ("--target-decay", "at least 0 and below 1"))


@pytest.mark.slow
def test_a_run_of_new_parts_from_the_command_line_to_its_export(
    mixco: Mixco, squares: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [
        *("pretrain", "--data", "squares", "--data-path", squares, "--method", "pull"),
        *("--mix", "patches", "--arch", "test_resnet", "--stem", "standard", "--size", "32"),
        *("--batch-size", "16", "--device", "cpu", "--log-to", "lines", "--out", run),
        *("--cache", tmp_path / "cache", "--knn-every", "1"),
    ]
    said = mixco(*command, "--epochs", "2", "--target-decay", "0")
    assert "raise --target-decay" in said
    records = read_metrics(run)
    assert {"loss", "clean", "mixed", "accuracy", "knn"} <= records[-1].keys()
    logged = (tmp_path / "run.lines").read_text("utf-8").splitlines()
    assert [json.loads(line)["loss"] for line in logged] == [r["loss"] for r in records]

    # A run that was stopped is resumed, and its own setting is remembered.
    config = read_json(run / "config.json")
    assert config["method"]["target_decay"] == 0.0
    (run / "results.json").unlink()
    assert "going on after step 6" in mixco(*command, "--epochs", "2")
    assert read_metrics(run) == records

    evaluated = ("--run", run, "--cache", tmp_path / "cache", "--device", "cpu")
    assert "nearest centroid: top-1" in mixco("centroid", *evaluated)
    assert read_json(run / "results.json")["centroid"]["top1"] == 100
    assert "| pull+patches |" in mixco("report", run, "--table")
    assert "nearest centroid" in mixco("report", run, "--table")
    mixco("report", run, "--device", "cpu")
    page = (run / "report.html").read_text("utf-8")
    for part in ("Pull with Patches", "nearest centroid"):
        assert part in page
    mixco("export", run, "--to", "safetensors")
    card = next((run / "exports").rglob("README.md")).read_text("utf-8")
    for part in ("arxiv.org/abs/2006.07733", "arxiv.org/abs/1905.04899", "nearest centroid"):
        assert part in card
