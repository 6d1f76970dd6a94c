"""`mixco compare`: was it worth it? Runs beside what they began with, on the same images."""

from functools import partial
from pathlib import Path
from typing import Any

from mixco.comparison.compare_json import write_found
from mixco.comparison.labelled import compare_labelled
from mixco.comparison.rows import rows_of
from mixco.comparison.unlabelled import compare_unlabelled
from mixco.data.datasets import Where
from mixco.data.image_list import ImageList
from mixco.data.run_images import are_own, find_images, where_in
from mixco.evaluation.doubts import refuse_one_class
from mixco.evaluation.features import REMEDY
from mixco.report.compared import FILE
from mixco.runtime.device import keep_freed_memory, pick_device
from mixco.runtime.distributed import launch_env
from mixco.runtime.errors import UserError, explain_machine_failures
from mixco.runtime.run_folder import changing_json, read_config
from mixco.settings.compare import CompareConfig
from mixco.settings.config import label_source
from mixco.settings.parse import check_ranges


@explain_machine_failures(REMEDY)
def compare(config: CompareConfig) -> dict[str, Any]:
    """Measure the runs and what they began with on the same images; write compare.json.

    With labelled images: kNN and linear probe with all and with few labels, the network trained from
    scratch with the labels, and a verdict (comparison/verdict.py). Nothing is chosen on the test images.
    Without labels: how features lie, and whose neighbours changed; no verdict.

    Evaluations that are done stay in compare.json, and are not computed again by a later call.

    Returns what compare.json holds. Raises UserError for mistakes that the user can correct.
    """
    check_ranges(config)
    if not config.runs:
        raise UserError("compare: give run folders")
    if launch_env().processes > 1:
        raise UserError("compare: one process compares; start it without torchrun")
    rows = rows_of(config.runs, size=config.size, seed=config.seed)
    where = _images(config)
    path = (config.out or config.runs[0]) / FILE
    with changing_json(path):
        pass  # it is made now: a folder that cannot be written ends the comparison before its work
    device = pick_device(config.device)
    keep_freed_memory(device)
    splits = _labelled_splits(config, where)
    if isinstance(splits, str):
        found = compare_unlabelled(config, rows, where, path.parent, device, splits)
    else:
        found = compare_labelled(config, rows, where, path, device, *splits)
    write_found(path, found)
    return found


def _labelled_splits(config: CompareConfig, where: Where) -> tuple[ImageList, ImageList] | str:
    """The train and the test split; or why there are no labels to measure with."""
    listed = partial(
        where.images,
        cache=config.cache,
        train_folder=config.train_folder,
        test_folder=config.test_folder,
    )
    try:
        train, test = listed("train"), listed("test")
        refuse_one_class(train)
    except UserError as error:
        return str(error)
    return train, test


def _images(config: CompareConfig) -> Where:
    """The images: --data, or those of the runs. Raises UserError where the runs' images differ."""
    if config.data is not None:
        return Where(config.data, config.data_path, label_source(config))
    first, *others = config.runs
    where = find_images(first, _trained_on(first), config.cache, "--data")
    if config.data_path is not None:
        where = where._replace(data_path=config.data_path)
    where = where._replace(labels=label_source(config).over(where.labels))
    for other in others:
        if not are_own(other, _trained_on(other), where, config.cache):
            raise UserError(
                f"{other}: trained on other images than {first}; compare runs on the same images, or "
                "give --data, the images to measure all of them on"
            )
    return where


def _trained_on(run: Path) -> Where:
    return where_in(read_config(run)["data"])
