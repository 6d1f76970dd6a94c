"""The sample that comes with mixco: EuroSAT's satellite photographs of ten classes, 64 x 64."""

import csv
import io
from importlib import resources
from pathlib import Path

from mixco.data.image_list import ImageList
from mixco.data.storage import Zip, open_zip
from mixco.views.augmentation import Channels

# Of the 1,600 training images.
MEAN: Channels = (0.3381, 0.3766, 0.4041)
STD: Channels = (0.1966, 0.1322, 0.1139)


def list_sample(_root: Path | None, split: str, _cache: Path | None = None) -> ImageList:
    """The images of "train" or "test"."""
    path = Path(str(resources.files("mixco").joinpath("sample", "eurosat-demo.zip")))
    archive = open_zip(path)
    rows = list(csv.DictReader(io.StringIO(archive.read("eurosat-demo/split.csv").decode())))
    classes = tuple(sorted({row["label"] for row in rows}))
    rows = sorted((r for r in rows if r["split"] == split), key=lambda r: r["path"])
    files = tuple(f"eurosat-demo/{row['path']}" for row in rows)
    return ImageList(
        f"sample/{split}",
        path,
        files,
        tuple(classes.index(row["label"]) for row in rows),
        classes,
        MEAN,
        STD,
        Zip(path, files),
    )
