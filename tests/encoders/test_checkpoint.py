"""Encoders are loaded completely, or not at all."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from mixco.encoders.checkpoint import EncoderDescription, save_checkpoint, save_encoder
from mixco.encoders.loading import load_encoder
from mixco.models.encoder import Encoder, build_backbone
from mixco.models.heads import build_head
from mixco.runtime.errors import UserError

DESCRIPTION = EncoderDescription(
    arch="resnet18",
    stem="auto",
    size=64,
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    training="random weights, seed 7",
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, build_backbone("resnet18", 64, seed=7), DESCRIPTION)
    return path


def test_an_encoder_comes_back_as_it_was(saved: Path) -> None:
    for path in (saved, saved.parent):
        loaded = load_encoder(path)
        expected = build_backbone("resnet18", 64, seed=7).state_dict()
        assert loaded.description == DESCRIPTION
        assert loaded.matched == len(expected) == 120
        found = loaded.backbone.state_dict()
        assert all(torch.equal(found[k], expected[k]) for k in expected)
        assert not loaded.backbone.training


def test_plain_timm_loads_it(tmp_path: Path) -> None:
    """With the stem for 224 px, the file needs no mixco."""
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, build_backbone("resnet18", 224, seed=7), DESCRIPTION)
    model = timm.create_model("resnet18", num_classes=0)
    model.load_state_dict(load_file(path))


def test_a_checkpoint_of_a_run_gives_its_encoder(tmp_path: Path) -> None:
    backbone = build_backbone("resnet18", 64, seed=7)
    method = torch.nn.Module()
    method.encoder = Encoder(backbone, build_head(512, 16, "mlp"))
    path = tmp_path / "last.pt"
    state = {"method": method.state_dict(), "encoder": DESCRIPTION.__dict__, "epoch": 3}
    save_checkpoint(path, state)
    loaded = load_encoder(path)
    assert loaded.matched == 120
    assert torch.equal(loaded.backbone.conv1.weight, backbone.conv1.weight)


def edit(path: Path, **changes: torch.Tensor | None) -> None:
    weights = {**load_file(path), **changes}
    metadata = {"mixco": json.dumps(DESCRIPTION.__dict__)}
    save_file({k: v for k, v in weights.items() if v is not None}, path, metadata)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bn1.weight": None}, "do not fit resnet18 with stem auto: bn1.weight is missing"),
        ({"fc.weight": torch.zeros(2, 2)}, "fc.weight is left over"),
        (
            {"conv1.weight": torch.zeros(64, 3, 7, 7)},
            r"conv1.weight is \[64, 3, 7, 7\] instead of \[64, 3, 3, 3\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_an_error(
    saved: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    edit(saved, **changes)
    with pytest.raises(UserError, match=message):
        load_encoder(saved)


def test_what_is_no_encoder_is_told(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        load_encoder(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match="there is no such file"):
        (tmp_path / "empty").mkdir()
        load_encoder(tmp_path / "empty")

    saved.write_bytes(saved.read_bytes()[:-5000])
    with pytest.raises(UserError, match="damaged or not a safetensors file"):
        load_encoder(saved)

    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(UserError, match="of no layout known here"):
        load_encoder(other)

    torch.save({"state_dict": {}}, tmp_path / "moco.pth.tar")
    with pytest.raises(UserError, match="no weights in it"):
        load_encoder(tmp_path / "moco.pth.tar")

    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        load_encoder(tmp_path / "text.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"arch": 5},
        {"stem": "conv9"},
        {"size": "64"},
        {"size": 10**9},
        {"mean": (0.1, 0.2)},
        {"std": (0.4, 0.5, 0.0)},
        {"std": (0.4, 0.5, float("nan"))},
        {"more": 1},
    ],
)
def test_a_damaged_description_is_told(saved: Path, change: dict[str, object]) -> None:
    said = {**DESCRIPTION.__dict__, **change}
    save_file(load_file(saved), saved, {"mixco": json.dumps(said)})
    with pytest.raises(UserError, match=r"safetensors: cannot be read as a checkpoint"):
        load_encoder(saved)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "exploded",)  # type: ignore[return-value]

    torch.save({"method": Bomb(), "encoder": {}}, tmp_path / "bomb.pt")
    with pytest.raises(UserError, match="it holds more than weights"):
        load_encoder(tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


def test_an_interrupted_save_keeps_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("mixco.encoders.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="full"):
        save_encoder(saved, build_backbone("resnet18", 64, seed=8), DESCRIPTION)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["encoder.safetensors"]


def snippets(begins: str) -> list[str]:
    """The blocks of Python in docs/checkpoints.md that begin with a text."""
    page = Path(__file__).parents[2] / "docs" / "checkpoints.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    return [block for block in blocks if block.startswith(begins)]


@pytest.mark.parametrize(("number", "size"), [(0, 128), (1, 128), (2, 64)])
def test_the_pages_lines_load_our_encoder_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, size: int
) -> None:
    description = dataclasses.replace(DESCRIPTION, size=size)
    save_encoder(tmp_path / "encoder.safetensors", build_backbone("resnet18", size), description)
    monkeypatch.chdir(tmp_path)
    names: dict[str, torch.nn.Module] = {}
    exec(snippets("import ")[number], {}, names)
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    ours = load_encoder(tmp_path / "encoder.safetensors").backbone
    with torch.no_grad():
        torch.testing.assert_close(names["model"].eval()(images), ours(images))
