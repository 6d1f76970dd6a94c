"""Pushing to a stand-in for the Hugging Face hub: what arrives there, and which errors are raised."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_stand_in import TOKEN, StandIn, running
from run_folders import random_run

import mixco.cli
from mixco.encoders.loading import load_encoder

# huggingface_hub's own use of its HTTP library, where it uploads by git's protocol for large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("runs") / "run", "sample")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with running(TOKEN) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # The hub's own store of large files is beyond a stand-in; git's protocol for them is not.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield server


def push(*arguments: str | Path) -> None:
    mixco.cli.main(["push", *map(str, arguments)])


def refusal(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The error message of a push that is refused."""
    with pytest.raises(SystemExit) as stopped:
        push(*arguments)
    assert stopped.value.code == 2
    said = capfd.readouterr().err
    assert TOKEN not in said
    (sentence,) = [line for line in said.splitlines() if line.startswith("mixco: ")]
    assert "Traceback" not in said
    return sentence


LOAD = """
import sys
sys.modules["mixco"] = None
import timm, torch
model = timm.create_model("hf-hub:me/encoder", pretrained=True).eval()
with torch.no_grad():
    torch.save((model(torch.ones(1, 3, 32, 32)), model.pretrained_cfg["std"]), sys.argv[1])
"""


def test_a_run_is_pushed_and_timm_has_it_from_there(
    hub: StandIn, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    push(run, "me/encoder", "--private", "--license", "mit")
    said = capfd.readouterr()
    assert f"{hub.url}/me/encoder" in said.out
    assert TOKEN not in said.out + said.err
    assert "%|" not in said.err, "a bar, where none can be drawn"
    repository = hub.repositories["me/encoder"]
    assert repository["private"]
    assert repository["commits"] == 1
    assert sorted(repository["files"]) == ["README.md", "config.json", "model.safetensors"]
    card = repository["files"]["README.md"].decode()
    assert 'source = "hf-hub:me/encoder"' in card
    assert "`mixco embed hf:me/encoder photos/ --out vectors.npz`" in card
    assert "license: mit" in card
    assert not (run / "exports").exists()

    out = tmp_path / "out.pt"
    home = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    subprocess.run([sys.executable, "-c", LOAD, str(out)], check=True, env={**os.environ, **home})
    features, std = torch.load(out)
    encoder = load_encoder(run)
    assert tuple(std) == encoder.description.std
    with torch.no_grad():
        torch.testing.assert_close(features, encoder.backbone(torch.ones(1, 3, 32, 32)))


def test_an_export_is_pushed_as_it_is_and_again(hub: StandIn, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    mixco.cli.main(["export", str(run), "--to", "hub", "--out", str(folder)])
    card = (folder / "README.md").read_text("utf-8")
    (folder / "README.md").write_text(card + "\nA line of my own.\n", "utf-8")
    for _ in range(2):
        push(folder, "me/other")
    repository = hub.repositories["me/other"]
    assert repository["commits"] == 2
    assert not repository["private"]
    for name in ("config.json", "model.safetensors"):
        assert repository["files"][name] == (folder / name).read_bytes()
    assert repository["files"]["README.md"].decode().endswith("\nA line of my own.\n")
    assert "OWNER/NAME" not in repository["files"]["README.md"].decode()


def test_what_the_hub_refuses_is_an_error_with_a_remedy(
    hub: StandIn,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    mixco.cli.main(["export", str(run), "--to", "hub", "--out", str(tmp_path / "export")])
    folder = tmp_path / "export"
    assert "OWNER/NAME" in refusal(capfd, folder, "encoder")
    assert "not a name on the hub" in refusal(capfd, folder, "me/en coder")
    assert "push the run" in refusal(capfd, folder, "me/x", "--license", "mit")
    card = (folder / "README.md").read_text("utf-8")
    (folder / "README.md").write_text(card.replace("license: unknown", "license: mitt"), "utf-8")
    assert '("license" must be known)' in refusal(capfd, folder, "me/x")
    (folder / "README.md").write_text(card, "utf-8")

    push(folder, "me/public")
    capfd.readouterr()
    assert "--private" in refusal(capfd, folder, "me/public", "--private")
    assert hub.repositories["me/public"]["commits"] == 1

    hub.writes = False
    assert "may not write to me/encoder" in refusal(capfd, folder, "me/encoder")
    hub.token = "another"
    assert "does not know the token in HF_TOKEN" in refusal(capfd, folder, "me/encoder")
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    assert "cannot be reached" in refusal(capfd, folder, "me/encoder")
    asked = len(hub.asked)
    monkeypatch.delenv("HF_TOKEN")
    assert "HF_TOKEN is not set" in refusal(capfd, folder, "me/encoder")
    assert len(hub.asked) == asked
