"""Lists the images of a data set on the Hugging Face hub, and fetches the splits that are needed."""

import dataclasses
from functools import lru_cache
from pathlib import Path

from mixco.data.datasets import Data, LabelSource, Wanted
from mixco.data.datasets.folders import TRAIN
from mixco.data.datasets.hub import Found, HubFiles, fetch, find
from mixco.data.datasets.parquet import index_parquet
from mixco.data.datasets.sharded import TESTS, list_sharded
from mixco.data.datasets.shards import UNLABELLED, read_shards
from mixco.data.image_list import ImageList
from mixco.runtime.errors import UserError
from mixco.runtime.progress import say


def list_hub(name: str, data: Data, wanted: Wanted, cache: Path | None = None) -> ImageList:
    """The wanted images of a data set on the hub.

    data: hf:OWNER/NAME[@REVISION][:CONFIG]. "test" is the validation split where there is no test, or it
    has no labels. cache: see `list_images`.

    Raises UserError as `find` and `fetch` do, and where there are no labels or no such split.
    """
    found = _find(str(data))
    if wanted.split == "test" or (wanted.split == "train" and wanted.labelled):
        test = wanted.test_folder or _test_split(found, cache, wanted)
        wanted = wanted._replace(test_folder=test)
    files = fetch(found, tell=say, splits=_needed(found, wanted))
    listed = list_sharded(
        name,
        [file.path for file in files.files],
        wanted,
        cache,
        [file.split for file in files.files],
        files.folder,
    )
    about = f"{data}: commit {files.commit}, licence {files.licence}, {files.address}"
    return dataclasses.replace(listed, notes=(about, *listed.notes), revision=files.commit)


def _needed(found: Found, wanted: Wanted) -> list[str] | None:
    """The splits to fetch; None for all."""
    if wanted.split == "pretrain":
        return [TRAIN] if TRAIN in found.splits else None
    if wanted.split == "all":
        return None
    names = {"train": wanted.train_folder or TRAIN, "test": wanted.test_folder or TESTS[0]}
    # With labels both are needed, since their classes must be the same.
    return list(names.values()) if wanted.labelled else [names[wanted.split]]


@lru_cache(maxsize=8)
def _find(data: str) -> Found:
    """Once for each process, since the hub is asked several questions."""
    return find(data, tell=say)


def _test_split(found: Found, cache: Path | None, wanted: Wanted) -> str:
    there = [name for name in TESTS if name in found.splits]
    if not there:
        raise UserError(
            f"{found.data}: has no split {' or '.join(TESTS)}, but {', '.join(found.splits)}; "
            "--test-folder names the one to test on"
        )
    if not wanted.labelled:
        return there[0]
    return next(
        (name for name in there if _has_labels(found, name, cache, wanted.labels)), there[0]
    )


def _has_labels(found: Found, split: str, cache: Path | None, labels: LabelSource) -> bool:
    files: HubFiles = fetch(found, tell=say, splits=[split])
    column = labels.in_shards
    shards = read_shards(
        [file.path for file in files.files],
        lambda path: index_parquet(path, column),
        cache,
        column or "",
    )
    return any(bool((shard.label != UNLABELLED).any()) for shard in shards)
