"""The examples in the documentation, run like a reader runs them: each in a process, on photographs."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from forked import python
from sample_images import unpack_sample

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def output_of(tmp_path: Path, example: str, *arguments: str) -> str:
    unpack_sample(tmp_path / "photos", train=20, test=0)
    done = python(EXAMPLES / f"{example}.py", "photos", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(text: str) -> list[float]:
    return [float(value) for value in re.findall(r"loss (\d+\.\d+)", text)]


def test_three_lines(tmp_path: Path) -> None:
    text = output_of(tmp_path, "three_lines", "runs/a")
    assert re.search(r"\b200 images\b.*\b512\b", text), "images, and dimensions of their vectors"
    assert (tmp_path / "runs/a/encoder.safetensors").exists()


def test_a_plain_loop(tmp_path: Path) -> None:
    found = losses(output_of(tmp_path, "plain_loop"))
    assert len(found) == 3 and found[0] > found[-1]


@pytest.mark.skipif(find_spec("lightning") is None, reason="lightning is not installed")
def test_a_lightning_module(tmp_path: Path) -> None:
    found = losses(output_of(tmp_path, "lightning_module"))
    assert len(found) == 3 and found[0] > found[-1]


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text("utf-8")
    for example in EXAMPLES.glob("*.py"):
        assert f'"{example.stem}"' in text
