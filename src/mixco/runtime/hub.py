"""The Hugging Face hub: what its client's errors mean, in our own words, for weights and for data.

The client (huggingface_hub) fetches and caches; it honours HF_HOME, HF_ENDPOINT, HF_TOKEN and
HF_HUB_OFFLINE.
"""

import errno
import re
import urllib.error
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from mixco.runtime.errors import UserError
from mixco.runtime.progress import redraws
from mixco.runtime.streams import silent

HUB = "https://huggingface.co"

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
    (
        "HFValidationError",
        "this is not a name on the hub",
        "give OWNER/NAME of letters, digits, - _ and .",
    ),
    ("RevisionNotFoundError", "there is no such revision", "give another after the @, or none"),
    ("status=403", "the server refuses it (error 403)", "see to HF_TOKEN and HF_ENDPOINT"),
    ("EntryNotFound|status=404|no such file", "there is no such file", "give another name"),
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


@contextmanager
def said(what: str, cache: str, address: str, public: str, instead: str) -> Iterator[None]:
    """Turn the errors of a download into a UserError: why, and what to do.

    what: the weights or the data set, as it was named. cache: the folder that it is not in. address:
    what was asked, which may be a mirror. public: the same on the hub. instead: what to do with it once
    it is downloaded by hand.
    """
    try:
        with quiet():
            yield
    except Exception as error:  # the clients' own, their HTTP libraries', the system's
        reason, remedy = why(error)
        raise UserError(
            f"{what} is not in the cache {cache}, and {address} cannot be fetched: {reason}; {remedy}, "
            f"or download {public} and {instead}"
        ) from None


def why(error: BaseException) -> tuple[str, str]:
    """Why a file cannot be fetched, and what to do, from REASONS."""
    # The client's word for "not in the cache either", of which the cause is the reason.
    while isinstance(error, LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    status = getattr(getattr(error, "response", error), "status_code", getattr(error, "code", ""))
    number = getattr(error, "errno", None)
    known = [kind.__name__ for kind in type(error).__mro__]
    text = f"{known} status={status} errno={errno.errorcode.get(number or 0, '')} {error}"
    for pattern, reason, remedy in REASONS:
        if found := re.search(pattern, text):
            return found.expand(reason), remedy
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", "try again later"


@contextmanager
def quiet(*, bars: bool = True) -> Iterator[None]:
    """Keep the hub client's warnings from the screen, and its bars: all, or where none can be drawn."""
    hidden = not (bars and redraws()) and not are_progress_bars_disabled()
    if hidden:
        disable_progress_bars()
    try:
        with silent("huggingface_hub"):
            yield
    finally:
        if hidden:
            enable_progress_bars()


def read_card(path: Path | None) -> Mapping[str, Any]:
    """The head of a README.md, empty where there is no card, no head, or none that can be read."""
    try:
        head = metadata_load(path) if path else None
    except Exception:  # of the YAML in it, and others
        head = None
    return head if isinstance(head, Mapping) else {}


def licence_in(card: Mapping[str, Any]) -> str | None:
    """The licence that a card names, in lower case: an SPDX id, the owner's own name, or several."""
    named = card.get("license")
    if named == "other":
        named = card.get("license_name")
    licences = named if isinstance(named, list) else [named] if named else []
    return ", ".join(str(each) for each in licences).lower() or None
