"""ImageNet (ILSVRC 2012) and Tiny-ImageNet in their public layouts; classes are WordNet ids.

The public test splits have no labels, so "test" is val. If train/ has only some of the classes, the set
consists of these, and a flat val/ is reduced to them.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from mixco.data.datasets.folders import labelled_folder, read_lines, walk
from mixco.data.image_list import ImageList
from mixco.runtime.errors import UserError

HOW_TO_GET_IMAGENET = """\
ImageNet cannot be downloaded by a program: its images are given to people who agree to its terms \
(non-commercial research and education). Register at https://image-net.org/download.php, get \
ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, and lay them out as \
train/<wnid>/*.JPEG (each class is a tar file inside the first), val/*.JPEG and ILSVRC2012_devkit_t12/; \
or take Kaggle's imagenet-object-localization-challenge and unpack it as it is. See docs/your-data.md"""

DEVKIT = "ILSVRC2012_devkit_t12"
SOLUTION = "LOC_val_solution.csv"
ALL_CLASSES = 1000
KAGGLE = "ILSVRC/Data/CLS-LOC"


def list_imagenet(root: Path, split: str, cache: Path | None = None) -> ImageList:
    """train/<wnid>/, and val/<wnid>/ or a flat val/ with a list of labels.

    The list is the devkit's or Kaggle's LOC_val_solution.csv; Kaggle's folders are found too.

    Raises UserError that names the file, what was expected and what to do.
    """
    images = root / KAGGLE if (root / KAGGLE).is_dir() else root
    train, val = images / "train", images / "val"
    for folder in (train, val):
        if not folder.is_dir():
            raise UserError(f"{folder}: missing. {HOW_TO_GET_IMAGENET}")
    flat = [name for name in walk(val, cache) if "/" not in name]
    if not flat:
        return labelled_folder(images, split, cache, name="imagenet")
    classes = _class_folders(train)
    if split == "train":
        return _of_classes("imagenet", images, classes, "", cache)
    answers = _solution(root, flat) or _ground_truth(root, flat)
    strange = sorted(set(answers.values()) - set(classes))
    if strange and len(classes) == ALL_CLASSES:
        raise UserError(
            f"{train}: has no class {strange[0]}, which val's list of labels names; unpack both again"
        )
    return _val("imagenet", images, "val", answers, classes, "val's list of labels", cache)


def list_tiny_imagenet(data_path: Path, split: str, cache: Path | None = None) -> ImageList:
    """train/<wnid>/images, val/images with val_annotations.txt, wnids.txt.

    Raises UserError that names the file, what was expected and what to do.
    """
    root = data_path
    if (root / "tiny-imagenet-200").is_dir():
        root = root / "tiny-imagenet-200"
    known = read_lines(root / "wnids.txt", "the list of classes of tiny-imagenet-200")
    train = root / "train"
    if not train.is_dir():
        raise UserError(f"{train}: missing; expected tiny-imagenet-200's folder of classes")
    classes = _class_folders(train)
    strange = sorted(set(classes) - set(known))
    if strange:
        raise UserError(f"{train / strange[0]}: this class is not in wnids.txt; remove or add it")
    if split == "train":
        return _of_classes("tiny-imagenet", root, classes, "images/", cache)
    answers = _tiny_annotations(root, known)
    return _val("tiny-imagenet", root, "val/images", answers, classes, "val_annotations.txt", cache)


def _class_folders(train: Path) -> tuple[str, ...]:
    classes = sorted(
        entry.name for entry in train.iterdir() if entry.is_dir() and entry.name[0] != "."
    )
    if not classes:
        raise UserError(f"{train}: no class folder in it; unpack it again")
    return tuple(classes)


def _of_classes(
    name: str, root: Path, classes: tuple[str, ...], below: str, cache: Path | None
) -> ImageList:
    """The train split: train/<class>/<below>..."""
    index = {wnid: label for label, wnid in enumerate(classes)}
    files: list[str] = []
    labels: list[int] = []
    for file in walk(root / "train", cache):
        wnid, _, rest = file.partition("/")
        if wnid in index and rest.startswith(below):
            files.append(f"train/{file}")
            labels.append(index[wnid])
    empty = sorted(set(range(len(classes))) - set(labels))
    if empty:
        folder = root / "train" / classes[empty[0]] / below
        raise UserError(f"{folder}: no image of this class; unpack again")
    return ImageList(f"{name}/train", root, tuple(files), tuple(labels), classes)


def _val(
    name: str,
    root: Path,
    folder: str,
    answers: dict[str, str],
    classes: tuple[str, ...],
    where: str,
    cache: Path | None,
) -> ImageList:
    """The test split: files in one folder and a list of their classes, which must match.

    answers: file name -> wnid.
    """
    there = set(walk(root / folder, cache))
    for missing, message in (
        (answers.keys() - there, f"{where} names it, but it is missing"),
        (there - answers.keys(), f"{where} does not name it"),
    ):
        if missing:
            example = root / folder / sorted(missing)[0]
            raise UserError(f"{example}: {message}; unpack {name} again")
    index = {wnid: label for label, wnid in enumerate(classes)}
    files = [file for file in sorted(answers) if answers[file] in index]
    absent = set(classes) - {answers[file] for file in files}
    if absent:
        raise UserError(
            f"{root / folder}: no image of class {sorted(absent)[0]}, but train has some; unpack "
            f"{name} again, or remove the class from train"
        )
    return ImageList(
        f"{name}/test",
        root,
        tuple(f"{folder}/{file}" for file in files),
        tuple(index[answers[file]] for file in files),
        classes,
    )


def _tiny_annotations(root: Path, known: list[str]) -> dict[str, str]:
    path = root / "val" / "val_annotations.txt"
    answers: dict[str, str] = {}
    for number, line in enumerate(read_lines(path, "the labels of val"), 1):
        name, *rest = line.split("\t")
        if not rest or rest[0] not in known:
            raise UserError(
                f"{path}, line {number}: expected a file and one of wnids.txt's classes with a tab "
                f"between them, found {line[:60]!r}; unpack tiny-imagenet-200 again"
            )
        answers[name] = rest[0]
    return answers


def _solution(root: Path, flat: Sequence[str]) -> dict[str, str] | None:
    """Kaggle's list; a line is ILSVRC2012_val_00000001,n01751748 1 2 3 4."""
    path = root / SOLUTION
    if not path.is_file():
        return None
    header, *rows = csv.reader(read_lines(path, "the labels of val"))
    if header != ["ImageId", "PredictionString"]:
        raise UserError(
            f"{path}: begins with {','.join(header)!r}; expected ImageId,PredictionString"
        )
    endings = {Path(name).stem: name for name in flat}
    answers: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        if len(row) != 2 or not row[1].strip():
            raise UserError(
                f"{path}, line {number}: expected a file, a comma and a class, found "
                f"{','.join(row)[:60]!r}; download {SOLUTION} again"
            )
        answers[endings.get(row[0], f"{row[0]}.JPEG")] = row[1].split()[0]
    return answers


def _ground_truth(root: Path, flat: Sequence[str]) -> dict[str, str]:
    """The devkit's list: a class number per line, in the order of the file names."""
    path = root / DEVKIT / "data" / "ILSVRC2012_validation_ground_truth.txt"
    if not path.is_file():
        raise UserError(
            f"{root}: val has no class folders, so its labels are needed; expected {SOLUTION} or "
            f"{path.relative_to(root)} in it, or val/<wnid>/*.JPEG. See docs/your-data.md"
        )
    lines = read_lines(path, "the labels of val")
    if len(lines) != len(flat):
        raise UserError(
            f"{path}: {len(lines)} labels, but {len(flat)} images in val; unpack val again"
        )
    # A line does not name its file, so a missing file would shift all labels after it.
    for place, name in enumerate(flat, 1):
        if not name.startswith(f"ILSVRC2012_val_{place:08d}."):
            raise UserError(
                f"val/{name}: expected ILSVRC2012_val_{place:08d}.JPEG as file {place}, since "
                f"{path.name} goes by their order; unpack val again"
            )
    wnids = _wnids_by_number(path.with_name("meta.mat"))
    answers: dict[str, str] = {}
    for number, (name, line) in enumerate(zip(flat, lines, strict=True), 1):
        wnid = wnids.get(line.strip())
        if wnid is None:
            raise UserError(
                f"{path}, line {number}: {line[:60]!r} is not the number of a class in meta.mat; "
                "unpack the devkit again"
            )
        answers[name] = wnid
    return answers


def _wnids_by_number(path: Path) -> dict[str, str]:
    """ILSVRC2012_ID, as a string -> wnid, from the devkit's meta.mat."""
    try:
        import scipy.io
    except ImportError:
        raise UserError(
            f"{path}: a MATLAB file, which needs SciPy: pip install 'mixco[imagenet]'; or "
            f"put Kaggle's {SOLUTION} beside train and val, or sort val into val/<wnid>/*.JPEG"
        ) from None
    try:
        synsets = scipy.io.loadmat(path, squeeze_me=True)["synsets"]
        return {
            str(int(number)): str(wnid)
            for number, wnid, below in zip(
                *(synsets[key] for key in ("ILSVRC2012_ID", "WNID", "num_children")), strict=True
            )
            if below == 0  # the others are superclasses
        }
    except Exception as error:  # scipy raises many kinds on damaged files
        raise UserError(f"{path}: cannot be read ({error}); unpack the devkit again") from None
