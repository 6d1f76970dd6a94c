"""Encoders in repositories of the hub: what `mixco push` wrote, and what timm wrote for others."""

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from configs import evaluation_config
from hub_stand_in import TOKEN, StandIn, point
from run_folders import random_run, short_run
from safetensors.torch import save
from sample_images import unpack_sample

from mixco.cli import main
from mixco.encoders.checkpoint import fingerprint
from mixco.encoders.loading import load_encoder
from mixco.encoders.published import is_published, is_repository
from mixco.evaluation.task import load_task
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import read_json
from mixco.training.pretrain import pretrain

# huggingface_hub's own use of its HTTP library, where it uploads by git's protocol for large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CONFIG = {
    "architecture": "test_resnet",
    "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("runs") / "run", "sample")


@pytest.fixture
def pushed(empty_hub: StandIn, run: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A hub with me/encoder, which `mixco push` put there."""
    monkeypatch.setenv("HF_ENDPOINT", empty_hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    main(["push", str(run), "me/encoder", "--license", "mit"])
    monkeypatch.delenv("HF_TOKEN")
    return empty_hub


def theirs(hub: StandIn, config: Any = CONFIG) -> dict[str, torch.Tensor]:
    """Put weights with a classifier onto the hub as timm's push does, into them/net."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        weights = timm.create_model("test_resnet").state_dict()
    files = {"model.safetensors": save(weights), "config.json": json.dumps(config).encode()}
    hub.repositories["them/net"] = {"files": files}
    return weights


def refusal(what: str, **options: Any) -> str:
    with pytest.raises(UserError) as refused:
        load_encoder(what, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("what", ["hf:me/encoder", "hf-hub:me/encoder", "hf:me/encoder@main"])
@pytest.mark.usefixtures("pushed")
def test_what_was_pushed_comes_back_with_its_description_and_licence(what: str, run: Path) -> None:
    assert is_published(what) and is_repository(what)
    there, here = load_encoder(what), load_encoder(run)
    assert fingerprint(there.backbone) == fingerprint(here.backbone)
    assert there.description.input == here.description.input
    assert there.description.stem == here.description.stem
    assert there.description.training == "published weights me/encoder (random weights, seed 0)"
    origin = there.description.origin
    assert origin and (origin.name, origin.licence) == ("me/encoder", "mit")
    address = f"https://huggingface.co/me/encoder/resolve/{'0' * 40}/model.safetensors"
    assert origin.source == address
    assert address in there.report[0] and "licence mit" in there.report[0]


def test_names_that_are_of_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    others = (
        "timm:resnet18",
        "timm/resnet18",
        "hf:timm/resnet18",
        "hf-hub:timm/resnet18",
        "runs/a",
    )
    assert not any(map(is_repository, others))
    Path("hf:me").mkdir()
    Path("hf:me/file").touch()
    assert not is_published("hf:me/file") and not is_repository("hf:me/file")
    for what in ("hf:me/a/b", "hf:you/", "hf:you", "hf:me/encoder@", "hf:me/en coder"):
        assert "expected hf:OWNER/NAME" in refusal(what)


def test_the_cache_gives_it_again_without_the_hub(
    pushed: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_encoder("hf:me/encoder")
    fetched = len(pushed.ranges)
    assert fetched == 3  # the weights, config.json and the card
    pushed.status = 503
    assert load_encoder("hf:me/encoder").description == first.description
    with socket.create_server(("127.0.0.1", 0)) as unused:
        point(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert load_encoder("hf:me/encoder").description == first.description
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load_encoder("hf:me/encoder").description == first.description
    assert len(pushed.ranges) == fetched


def test_a_run_begins_with_it_and_goes_on_without_the_hub(
    pushed: StandIn, run: Path, tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = short_run(tmp_path, "hf:me/encoder")
    pretrain(settings, stop_after=1)
    said = capfd.readouterr().err
    assert "--init: me/encoder (random weights, seed 0): licence mit" in said
    initial = load_encoder(tmp_path / "run" / "init.safetensors")
    assert fingerprint(initial.backbone) == fingerprint(load_encoder(run).backbone)
    shutil.rmtree(cache)
    pushed.status = 503
    pretrain(settings)
    result = read_json(tmp_path / "run" / "results.json")["pretrain"]
    assert result["init"] == "published weights me/encoder (random weights, seed 0)"
    assert "licence mit" in result["init_published"]
    begun = load_encoder(tmp_path / "run").description
    assert begun.origin and begun.origin.name == "me/encoder"
    main(["export", str(tmp_path / "run"), "--to", "timm", "--out", str(tmp_path / "exported")])
    card = (tmp_path / "exported" / "README.md").read_text("utf-8")
    assert "Their training began with the published weights me/encoder: licence mit" in card


@pytest.mark.usefixtures("pushed")
def test_commands_take_it_and_leave_their_files_where_they_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = unpack_sample(tmp_path / "photos", train=6, test=2, classes=2)
    task = load_task(
        evaluation_config(
            checkpoint=Path("hf:me/encoder"), data=str(photos), cache=tmp_path / "cache"
        )
    )
    assert task.encoder.description.size == 32
    main(["export", "hf:me/encoder", "--to", "timm"])
    assert (tmp_path / "exports" / "timm" / "model.safetensors").is_file()
    card = (tmp_path / "exports" / "timm" / "README.md").read_text("utf-8")
    assert "Made by `mixco export` from `hf:me/encoder`" in card
    assert "The weights: mit." in card and "They are the published weights me/encoder" in card
    assert not list(tmp_path.glob("hf:*"))


def test_anothers_encoder_says_how_it_began(
    pushed: StandIn, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder that began with published weights, pushed as another one."""
    again = tmp_path / "again"
    main(["export", "hf:me/encoder", "--to", "hub", "--out", str(again)])
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    main(["push", str(again), "you/again"])
    monkeypatch.delenv("HF_TOKEN")
    encoder = load_encoder("hf:you/again")
    assert fingerprint(encoder.backbone) == fingerprint(load_encoder(run).backbone)
    assert encoder.description.origin and encoder.description.origin.name == "you/again"
    assert "me/encoder" in encoder.description.training
    assert any(line.startswith("it began with me/encoder: licence mit") for line in encoder.report)
    assert pushed.repositories.keys() == {"me/encoder", "you/again"}


def test_weights_that_timm_pushed_need_no_options(empty_hub: StandIn) -> None:
    weights = theirs(empty_hub)
    encoder = load_encoder("hf:them/net")
    about = encoder.description
    assert (about.arch, about.size) == ("test_resnet", 64)
    assert (about.mean, about.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert about.origin and about.origin.licence == "unknown"
    found = encoder.backbone.state_dict()
    assert all(torch.equal(found[key], weights[key]) for key in found)
    assert "by config.json: images of 64 px" in encoder.report
    given = load_encoder("hf:them/net", size=32, mean=(0.5,) * 3, std=(0.5,) * 3).description
    assert (given.size, given.mean) == (32, (0.5,) * 3)


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["ResNetForImageClassification"]},
        {**CONFIG, "architecture": "no_such_net"},
        {**CONFIG, "pretrained_cfg": {"input_size": [3, 64, 32], "mean": [0], "std": [1]}},
        {**CONFIG, "pretrained_cfg": None},
        [],
    ],
)
def test_another_programs_config_is_not_taken_for_timms(empty_hub: StandIn, config: Any) -> None:
    theirs(empty_hub, config)
    assert "give --arch" in refusal("hf:them/net")
    assert load_encoder("hf:them/net", arch="test_resnet").description.size != 64


def test_a_folder_that_timm_wrote_is_read_like_its_repository(
    tmp_path: Path, empty_hub: StandIn
) -> None:
    theirs(empty_hub)
    for name, content in empty_hub.repositories["them/net"]["files"].items():
        (tmp_path / name).write_bytes(content)
    assert load_encoder(tmp_path).description.size == 64
    assert load_encoder(tmp_path / "model.safetensors").description.arch == "test_resnet"


def test_what_the_hub_refuses_is_said_with_the_way_by_hand(
    pushed: StandIn, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said() -> str:
        sentence = refusal("hf:me/encoder")
        public = "https://huggingface.co/me/encoder/resolve/main/model.safetensors"
        assert f"download {public} and give the path of the file" in sentence
        assert str(cache) in sentence
        return sentence

    pushed.status = 503
    assert "error 503; try again later" in said()
    pushed.status = 0
    pushed.repositories["me/encoder"]["gated"] = True
    assert "wants terms to be accepted" in said()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    load_encoder("hf:me/encoder")
    monkeypatch.delenv("HF_TOKEN")
    shutil.rmtree(cache)
    pushed.repositories["me/encoder"] = {"files": {"README.md": b"nothing"}}
    assert "there is no such file" in said()
    del pushed.repositories["me/encoder"]
    assert "there is no such repository" in said()


def test_a_file_of_weights_that_could_run_code_is_refused(
    empty_hub: StandIn, tmp_path: Path
) -> None:
    torch.save({"code": os.system}, tmp_path / "pytorch_model.bin")
    files = {"pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes()}
    empty_hub.repositories["them/net"] = {"files": files}
    assert "could run code" in refusal("hf:them/net")
