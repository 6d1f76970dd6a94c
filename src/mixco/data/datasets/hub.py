"""The Parquet files of data sets on the Hugging Face hub: found, and fetched into its client's cache.

The client (huggingface_hub) does both, and honours HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and
HF_HUB_OFFLINE. `find` tells what there is, `fetch` brings the files of some splits.
"""

import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import (
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from mixco.data.datasets.hub_splits import converted_splits, own_splits
from mixco.runtime.errors import UserError
from mixco.runtime.hub import HUB, licence_in, quiet, read_card, said, why

# Where the hub puts its own conversion of sets that are no Parquet files.
CONVERTED = "refs/convert/parquet"
FORM = "hf:OWNER/NAME, hf:OWNER/NAME@REVISION, or one of them with :CONFIG"


class HubFile(NamedTuple):
    """A Parquet file in the client's cache."""

    path: Path
    split: str


@dataclass(frozen=True)
class HubFiles:
    """The Parquet files of a data set on the hub, in order, and where they are from."""

    files: tuple[HubFile, ...]
    """Split by split, those of a split in the order of its rows."""
    splits: tuple[str, ...]
    """All splits of the configuration, fetched or not: train, validation, test, then others."""
    config: str
    repository: str
    """OWNER/NAME."""
    commit: str
    """What the revision is: 40 hexadecimal digits."""
    licence: str
    """As its card says it, in lower case: an SPDX id, a name, several; or "unknown"."""
    address: str
    """Its page on the hub, at this commit."""

    @property
    def folder(self) -> Path:
        """The client's folder of this commit, in which the files lie as in the repository."""
        return next(p for p in self.files[0].path.parents if p.name == self.commit)


class Remote(NamedTuple):
    """What the hub tells of a file."""

    size: int
    """In bytes."""
    blob: str = ""
    """Its name among the blobs of the cache; "" where it is not known."""


class Listing(NamedTuple):
    """The Parquet files of a commit, by the hub or by the cache."""

    commit: str
    files: Mapping[str, Remote]
    card: Mapping[str, Any]
    """The head of README.md; empty for none."""
    unanswered: Exception | None
    """Why the hub did not tell it; None where it did."""


class Found(NamedTuple):
    """A data set of the hub before its files are fetched."""

    data: str
    """As the user named it."""
    repository: str
    config: str
    splits: Mapping[str, list[str]]
    """The paths in the repository, by split."""
    listing: Listing
    licence: str


def parquet_files(
    data: str, *, tell: Callable[[str], None], splits: Collection[str] | None = None
) -> HubFiles:
    """The Parquet files of a data set on the hub, from the cache or fetched.

    data: hf:OWNER/NAME[@REVISION][:CONFIG]. tell: called with a sentence about each step. splits: those
    that are wanted, by their usual names ("train", "validation", "test"); None for all.

    Raises UserError as `find` and `fetch` do.
    """
    return fetch(find(data, tell=tell), tell=tell, splits=splits)


def find(data: str, *, tell: Callable[[str], None]) -> Found:
    """What a data set of the hub consists of; fetches nothing but its card.

    Where the hub does not answer, what is in the cache counts.

    Raises UserError where the name is none of a data set, the set is neither to be had nor in the cache,
    it has no Parquet files, or its configuration is unknown or not clear.
    """
    named = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([^:]+))?(?::(.+))?", data)
    if not named:
        raise UserError(f"{data}: not a data set of the hub; expected {FORM}")
    repository, revision, config = named.groups()
    with _said(data, repository, revision or "main"), quiet(bars=False):
        own = listing = _own(repository, revision)
        if revision == CONVERTED or (revision is None and not own.files):
            listing = _converted(repository, own)
    if listing.unanswered:
        tell(
            f"{data} is taken from the cache, at commit {listing.commit}: {why(listing.unanswered)[0]}"
        )
    if not listing.files:
        raise UserError(
            f"{data}: there are no Parquet files, "
            + (
                "nor has the hub converted it to Parquet. Other files are not read, and no program of a "
                "repository is run: download its images, and give --data their folder"
                if revision in (None, CONVERTED)
                else "but the hub may have converted it to Parquet: leave out the revision"
            )
        )
    if listing is own:
        name, splits = own_splits(data, listing.files, own.card, config)
    else:
        name, splits, partial = converted_splits(data, listing.files, own.card, config)
        tell(
            f"{data}: the Parquet files are the hub's own conversion, the branch {CONVERTED}"
            + ("; it holds only a part of the set" if partial else "")
        )
    return Found(data, repository, name, splits, listing, licence_in(own.card) or "unknown")


def fetch(
    found: Found, *, tell: Callable[[str], None], splits: Collection[str] | None = None
) -> HubFiles:
    """Bring the files of the wanted splits (None: all) into the cache, those that are not there yet.

    Files that arrived whole stay when it is stopped, and are not fetched again.

    Raises UserError where there is no such split, a file cannot be had, or the disk has no room.
    """
    data, repository, config, known, listing, licence = found
    if unknown := [split for split in splits or () if split not in known]:
        raise UserError(
            f"{data}: the configuration {config} has no split {unknown[0]}; it has {', '.join(known)}"
        )
    wanted = [
        (name, split)
        for split, names in known.items()
        if splits is None or split in splits
        for name in names
    ]
    names = list(dict.fromkeys(name for name, _ in wanted))
    missing = [name for name in names if _cached(repository, name, listing.commit) is None]
    if missing:
        _download(found, missing, f"{len(missing)} of {len(names)} Parquet files", tell)
    paths = {name: _cached(repository, name, listing.commit) for name in names}
    return HubFiles(
        tuple(HubFile(path, split) for name, split in wanted if (path := paths[name])),
        tuple(known),
        config,
        repository,
        listing.commit,
        licence,
        _page(repository, listing.commit),
    )


def _listed(repository: str, revision: str) -> Listing:
    """What a revision has. Raises the client's errors where the hub does not tell, nor the cache."""
    try:
        api = HfApi()
        # The client's other functions would try for long to reach a hub that does not answer.
        api.dataset_info(repository, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        # By the revision, so that the cache knows later which commit it was, and which files it has.
        folder = Path(
            snapshot_download(
                repository, repo_type="dataset", revision=revision, allow_patterns=["README.md"]
            )
        )
        tree = api.list_repo_tree(
            repository, recursive=True, revision=folder.name, repo_type="dataset"
        )
        files = {
            file.path: Remote(file.size, file.lfs.sha256 if file.lfs else file.blob_id)
            for file in tree
            if isinstance(file, RepoFile) and file.path.endswith(".parquet")
        }
        return Listing(folder.name, files, read_card(folder / "README.md"), None)
    except Exception as error:  # the client's own, its HTTP library's, the system's
        return _listed_by_cache(repository, revision, error)


def _listed_by_cache(repository: str, revision: str, unanswered: Exception) -> Listing:
    """What the cache has of a revision, and what it knows to be missing.

    Raises `unanswered` where it has nothing.
    """
    try:
        folder = Path(
            snapshot_download(
                repository,
                repo_type="dataset",
                revision=revision,
                local_files_only=True,
                allow_patterns=[],
            )
        )
    except EntryNotFoundError:
        raise unanswered from None
    files = {
        path.relative_to(folder).as_posix(): Remote(path.stat().st_size)
        for path in folder.rglob("*.parquet")
    }
    for name in _known_to_be(repository, folder.name, files):
        files.setdefault(name, Remote(0))
    return Listing(folder.name, files, read_card(folder / "README.md"), unanswered)


def _known_to_be(repository: str, commit: str, there: Collection[str]) -> list[str]:
    """The Parquet files of a commit, by the list that newer clients keep of it, or by their numbers.

    there: those in the cache; "train-00000-of-00014.parquet" tells that there are 14.
    """
    try:
        from huggingface_hub import get_cached_repo_tree

        tree = get_cached_repo_tree(repository, repo_type="dataset", revision=commit)
        return [file.path for file in tree if file.path.endswith(".parquet")]
    except Exception:  # an older client, or files that another program fetched
        numbers = defaultdict(set)
        for name in there:
            if found := re.match(r"(.*-)(\d{5})-of-(\d{5})(?!\d)", name):
                numbers[found[1], found[3]].add(int(found[2]))
        return [
            f"{before}{number:05d}-of-{count}.parquet"
            for (before, count), known in numbers.items()
            for number in range(int(count))
            if number not in known
        ]


def _own(repository: str, revision: str | None) -> Listing:
    """What the repository itself has, with the card. Raises as `_listed`."""
    if revision not in (None, CONVERTED):
        return _listed(repository, revision)
    try:
        return _listed(repository, "main")
    except Exception as error:  # the conversion may be in the cache all the same
        return Listing("", {}, {}, error)


def _converted(repository: str, own: Listing) -> Listing:
    """The hub's conversion, without files where there is none. Raises as `_listed`."""
    if own.unanswered:
        return _listed_by_cache(repository, CONVERTED, own.unanswered)
    try:
        return _listed(repository, CONVERTED)
    except RevisionNotFoundError:
        return own._replace(files={})


def _download(found: Found, missing: list[str], what: str, tell: Callable[[str], None]) -> None:
    """Fetch these files. Raises UserError."""
    repository, listing, cache = found.repository, found.listing, Path(constants.HF_HUB_CACHE)
    if listing.unanswered:
        reason, remedy = why(listing.unanswered)
        raise UserError(
            f"{found.data}: the cache {cache} lacks {_some(missing)} of commit {listing.commit}, and "
            f"{constants.ENDPOINT} does not give them: {reason}; {remedy}"
        )
    blobs = cache / f"datasets--{repository.replace('/', '--')}" / "blobs"
    remote = [listing.files[name] for name in missing]
    needed = sum(file.size for file in remote if not (blobs / file.blob).is_file())
    if needed:
        there = next((p for p in (cache, *cache.parents) if p.is_dir()), Path())
        if (free := shutil.disk_usage(there).free) < needed:
            raise UserError(
                f"{cache}: {needed / 1e9:,.1f} GB are needed for {found.data}, but {free / 1e9:,.1f} GB "
                "are free; free the disk, or let HF_HOME name a folder on another one"
            )
        tell(
            f"downloading {what} ({needed / 1e6:,.1f} MB) of {repository} from {constants.ENDPOINT}"
        )
    with _said(found.data, repository, listing.commit):
        for name in missing:
            hf_hub_download(repository, name, repo_type="dataset", revision=listing.commit)


def _said(data: str, repository: str, revision: str) -> AbstractContextManager[None]:
    return said(
        data,
        constants.HF_HUB_CACHE,
        f"{constants.ENDPOINT}/datasets/{repository}",
        _page(repository, revision),
        "give --data the folder with its Parquet files",
    )


def _page(repository: str, revision: str) -> str:
    return f"{HUB}/datasets/{repository}/tree/{revision}"


def _cached(repository: str, name: str, commit: str) -> Path | None:
    path = try_to_load_from_cache(repository, name, repo_type="dataset", revision=commit)
    return Path(path) if isinstance(path, str) else None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
