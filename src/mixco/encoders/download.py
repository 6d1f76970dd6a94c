"""The files of published weights: fetched or from the cache, with their licence and hash.

Most are on the Hugging Face hub, whose own client fetches and caches them (see
runtime/hub.py). timm's own function fetches those that timm has elsewhere.
"""

import hashlib
import re
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError
from timm.models._hub import download_cached_file

from mixco.runtime.errors import UserError
from mixco.runtime.hub import HUB, licence_in, read_card, said
from mixco.runtime.progress import redraws, say


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
    """The SHA-256 of the file: 64 hexadecimal digits."""
    trained: str = ""
    """How they were trained, where their file says it: "simclr on photos, 40 epochs, seed 0"."""

    @property
    def training(self) -> str:
        """How the weights themselves were trained, as far as it is known."""
        return f"published weights {self.name}" + (f" ({self.trained})" if self.trained else "")

    @property
    def details(self) -> str:
        return f"licence {self.licence}, from {self.source}, SHA-256 {self.sha256}"


FILES = ("model.safetensors", "pytorch_model.bin")  # as timm prefers them
# From an address that is not on the hub; the hub's client has its own limit.
SECONDS_WITHOUT_A_BYTE = 30
# The start of the SHA-256 in a file's name, as torch.hub has it. Shorter numbers mean something else.
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")


def by_hand(given: str, model: str, config: Any) -> tuple[Path, Origin]:
    """A file that was downloaded by hand, and where it is.

    model: timm's name of the weights, with their tag. config: timm's record of them.

    Raises UserError where there is no such file, or its hash is not the published one.
    """
    path = Path(given).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give that of {model} after the =")
    hashed = HASH_IN_NAME.search(config.url or "") if not config.hf_hub_id else None
    sha256 = sha256_of(path, hashed[1] if hashed else "", f"download {config.url} again")
    licence = str(config.license or "unknown").lower()
    return path, Origin(f"timm/{model}", f"the file {path.resolve()}", licence, sha256)


def fetched(model: str, config: Any) -> tuple[Path, Origin]:
    """The file of weights, from the cache or fetched, and where it is from; arguments as `by_hand`.

    Raises UserError where it cannot be had, or its hash is not the published one.
    """
    instead = f"give timm:{model}=FILE"
    if config.hf_hub_id:
        repository, _, revision = config.hf_hub_id.partition("@")
        names = (config.hf_hub_filename,) if config.hf_hub_filename else FILES
        return from_hub(
            repository,
            revision or "main",
            names,
            what=model,
            instead=instead,
            licence=config.license,
        )
    cache = str(Path(torch.hub.get_dir(), "checkpoints"))
    with said(model, cache, config.url, config.url, instead):
        path = _from_address(config.url)
    licence = str(config.license or "unknown").lower()
    stored = path.resolve()
    found = HASH_IN_NAME.search(stored.name)
    sha256 = sha256_of(stored, found[1] if found else "")
    return path, Origin(f"timm/{model}", config.url, licence, sha256)


def from_hub(
    repository: str,
    revision: str,
    names: Sequence[str],
    *,
    what: str,
    instead: str,
    licence: str | None = None,
    beside: str | None = None,
) -> tuple[Path, Origin]:
    """The first of these files that a repository of the hub has, and where it is from.

    repository: OWNER/NAME. revision: a branch, a tag or a commit. what, instead: of the error, what is
    not there, and what to do with a file that was downloaded by hand. licence: where the repository's
    card names none. beside: a file that is fetched into the same folder, where the repository has it.

    Raises UserError where the file cannot be had, or its hash is not the one that the hub told.
    """
    url = partial(hf_hub_url, repository, names[0], revision=revision)
    with said(what, constants.HF_HUB_CACHE, url(), url(endpoint=HUB), instead):
        path, named = _from_hub(repository, revision, names, beside)
    stored = path.resolve()
    # The hub's client names large files by their SHA-256, as the hub told it.
    told = stored.name if re.fullmatch("[0-9a-f]{64}", stored.name) else ""
    source = hf_hub_url(repository, path.name, revision=path.parent.name, endpoint=HUB)
    licence = str(named or licence or "unknown").lower()
    return path, Origin(repository, source, licence, sha256_of(stored, told))


def _from_hub(
    repository: str, revision: str, names: Collection[str], beside: str | None
) -> tuple[Path, str | None]:
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
        if beside:
            get(beside)
        card = get("README.md")
    except Exception:  # the weights are here, and timm knows most licences
        card = None
    return path, licence_in(read_card(card))


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


def sha256_of(
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
