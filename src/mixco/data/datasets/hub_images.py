"""Lists the images of a data set on the Hugging Face hub, and fetches the splits that are needed."""

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from mixco.data.datasets import USUAL, Data, LabelSource
from mixco.data.datasets.folders import TRAIN
from mixco.data.datasets.hub import Found, HubFiles, fetch, find
from mixco.data.datasets.parquet import index_parquet
from mixco.data.datasets.sharded import TESTS, list_sharded
from mixco.data.datasets.shards import UNLABELLED, read_shards
from mixco.data.image_list import ImageList
from mixco.runtime.errors import UserError
from mixco.runtime.progress import say


def list_hub(
    name: str,
    data: Data,
    split: str,
    cache: Path | None = None,
    *,
    labelled: bool = True,
    labels: LabelSource = USUAL,
    train_folder: str | None = None,
    test_folder: str | None = None,
) -> ImageList:
    """The images of a split: "pretrain", "train", "test" or "all".

    data: hf:OWNER/NAME[@REVISION][:CONFIG]. The other arguments: see `list_images`. "test" is the
    validation split where there is no test, or it has no labels.

    Raises UserError as `find` and `fetch` do, and where there are no labels or no such split.
    """
    found = _find(str(data))
    wanted: Sequence[str] | None = None
    if split == "pretrain" and TRAIN in found.splits:
        wanted = [TRAIN]
    elif split in ("train", "test"):
        test_folder = test_folder or _test_split(found, cache, labels, labelled=labelled)
        wanted = [train_folder or TRAIN, test_folder] if labelled else [test_folder]
        if not labelled and split == "train":
            wanted = [train_folder or TRAIN]
    files = fetch(found, tell=say, splits=wanted)
    listed = list_sharded(
        name,
        [file.path for file in files.files],
        split,
        cache,
        labelled=labelled,
        label_column=labels.in_shards,
        train_folder=train_folder,
        test_folder=test_folder,
        splits=[file.split for file in files.files],
    )
    about = f"{data}: commit {files.commit}, licence {files.licence}, {files.address}"
    return dataclasses.replace(listed, notes=(about, *listed.notes), revision=files.commit)


@lru_cache(maxsize=8)
def _find(data: str) -> Found:
    """Once for each process, since the hub is asked several questions."""
    return find(data, tell=say)


def _test_split(found: Found, cache: Path | None, labels: LabelSource, *, labelled: bool) -> str:
    there = [name for name in TESTS if name in found.splits]
    if not there:
        raise UserError(
            f"{found.data}: has no split {' or '.join(TESTS)}, but {', '.join(found.splits)}; "
            "--test-folder names the one to test on"
        )
    return next(
        (name for name in there if not labelled or _has_labels(found, name, cache, labels)),
        there[0],
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
