"""Labels and splits from a table beside the images."""

import csv
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import config_of
from run_folders import random_run
from sample_images import unpack_sample

from mixco.data.datasets import LabelSource, Where, list_images
from mixco.data.datasets.tables import read_table
from mixco.data.image_list import ImageList
from mixco.embeddings.commands import embed
from mixco.embeddings.vectors import read_vectors
from mixco.evaluation.protocols import evaluate_knn
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import read_json, write_json
from mixco.settings.commands import EmbedConfig, KNNConfig
from mixco.settings.parse import with_settings

Rows = Sequence[Sequence[Any]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six photographs in two folders: day/0.jpg, 1, 2 and night/3.jpg, 4, 5."""
    sample = list_images("sample", None, "train")
    for number in range(6):
        path = tmp_path / "photos" / ("day" if number < 3 else "night") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.read(250 * number))
    return tmp_path / "photos"


NAMES = ["day/0.jpg", "day/1.jpg", "day/2.jpg", "night/3.jpg", "night/4.jpg", "night/5.jpg"]
LABELS = ["cat", "dog", "cat", "dog", "cat", "dog"]
SPLITS = ["train"] * 4 + ["test"] * 2


def table_of(path: Path, header: Sequence[str], rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet")
        columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    else:
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            separator = "\t" if path.suffix == ".tsv" else ","
            csv.writer(file, delimiter=separator).writerows([header, *rows])
    return path


def whole(path: Path, names: Sequence[str] = NAMES) -> Path:
    return table_of(path, ("path", "label", "split"), [*zip(names, LABELS, SPLITS, strict=True)])


def listed(photos: Path, table: Path, split: str = "pretrain", **columns: str) -> ImageList:
    return Where(str(photos), None, LabelSource(table, **columns)).images(split)


def labels_of(source: ImageList) -> dict[str, str] | None:
    if source.labels is None:
        return None
    return {f: source.classes[i] for f, i in zip(source.files, source.labels, strict=True)}


def refused(photos: Path, table: Path, split: str = "pretrain", **columns: str) -> str:
    with pytest.raises(UserError) as error:
        listed(photos, table, split, **columns)
    assert str(table) in str(error.value)
    return str(error.value)


TRUTH = dict(zip(NAMES, LABELS, strict=True))

# Which file, which columns.


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet", ".CSV"])
def test_splits_and_labels(photos: Path, tmp_path: Path, ending: str) -> None:
    table = whole(tmp_path / f"labels{ending}")
    train, test, pretrain = (listed(photos, table, s) for s in ("train", "test", "pretrain"))
    assert labels_of(train) == {name: TRUTH[name] for name in NAMES[:4]}
    assert labels_of(test) == {name: TRUTH[name] for name in NAMES[4:]}
    assert labels_of(pretrain) == labels_of(train)
    assert train.classes == test.classes == ("cat", "dog")
    assert (train.name, test.name) == ("photos/train", "photos/test")
    assert any("left aside" in note and "test (2)" in note for note in pretrain.notes)
    without = Where(str(photos), None, LabelSource(table)).images("test", labelled=False)
    assert without.files == test.files and without.labels is None
    assert len(Where(str(photos), None, LabelSource(table)).images("all").files) == 6


@pytest.mark.parametrize(
    "header",
    [
        ("path", "label", "split"),
        ("Filename", "Class", "Split"),
        ("IMAGE_ID", "Target", "Subset"),
        ("file_name", "category", "set"),
    ],
)
def test_columns_by_their_usual_names(photos: Path, tmp_path: Path, header: Sequence[str]) -> None:
    rows = [("-", *row) for row in zip(NAMES, LABELS, SPLITS, strict=True)]
    table = table_of(tmp_path / "t.csv", ("more", *header), rows)
    assert labels_of(listed(photos, table, "train")) == {name: TRUTH[name] for name in NAMES[:4]}


def test_columns_that_are_given_go_first(photos: Path, tmp_path: Path) -> None:
    rows = [
        (f"no-{i}", "x", "train", NAMES[i], LABELS[i], "val" if i < 3 else "train")
        for i in range(6)
    ]
    header = ("path", "label", "split", "Where", "Species", "Fold")
    table = table_of(tmp_path / "t.csv", header, rows)
    columns = {"path_column": "Where", "label_column": "Species", "split_column": "Fold"}
    assert labels_of(listed(photos, table, "test", **columns)) == {n: TRUTH[n] for n in NAMES[:3]}


@pytest.mark.parametrize("option", ["path", "label", "split"])
def test_a_column_that_is_not_there(photos: Path, tmp_path: Path, option: str) -> None:
    said = refused(photos, whole(tmp_path / "t.csv"), **{f"{option}_column": "Label"})
    assert all(w in said for w in ("no column Label", "path, label, split", f"--{option}-column"))


def test_a_table_without_the_usual_columns(photos: Path, tmp_path: Path) -> None:
    said = refused(photos, table_of(tmp_path / "t.csv", ("photo", "label"), [(NAMES[0], "cat")]))
    assert "path" in said and "photo, label" in said and "--path-column" in said
    said = refused(photos, table_of(tmp_path / "u.csv", ("path", "name"), [(NAMES[0], "cat")]))
    assert "path, name" in said and "--label-column" in said


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", b"", ["first line", "columns"]),
        ("t.csv", b"path,label\n", ["no row", "one for each image"]),
        ("t.csv", b"path,label\nday/0.jpg,cat\nday/1.jpg,dog,x\n", ["line 3", "3 fields", "2"]),
        ("t.csv", b'path,label\n"a\nb",cat\nday/1.jpg\n', ["line 4", "1 fields"]),
        ("t.csv", "path,label\nday/0.jpg,cat\n".encode("utf-16"), ["first line", "UTF-8"]),
        ("t.xlsx", b"PK", [".csv", ".tsv", ".parquet"]),
        ("t.parquet", b"PAR1 no such", ["cannot be read"]),
        ("t.csv", None, ["cannot be read", "No such file"]),
        ("t.parquet", None, ["cannot be read", "No such file"]),
    ],
)
def test_what_is_no_table(
    photos: Path, tmp_path: Path, name: str, content: bytes | None, words: list[str]
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    said = refused(photos, tmp_path / name)
    assert all(word in said for word in words), said


def test_how_a_table_may_be_written(tmp_path: Path) -> None:
    """A byte order mark before quotes, fields with commas and quotes, blank lines, spaces."""
    (tmp_path / "t.csv").write_bytes(
        b'\xef\xbb\xbf"path","label",more\r\n"day/0.jpg","cat, ""wild""",1\r\n\r\n'
        b"day/1.jpg , dog,\r\n ,,\r\n"
    )
    rows = read_table(LabelSource(tmp_path / "t.csv"))
    assert [row[:2] for row in rows] == [("day/0.jpg", 'cat, "wild"'), ("day/1.jpg", "dog")]


def test_of_a_parquet_file_only_three_columns_are_read(photos: Path, tmp_path: Path) -> None:
    rows = [(name, i % 2, b"\xff" * 100) for i, name in enumerate(NAMES)]
    table = table_of(tmp_path / "t.parquet", ("path", "label", "bytes"), rows)
    assert listed(photos, table).classes == ("0", "1")


# How a row names its image.


@pytest.mark.parametrize(
    ("place", "names"),
    [
        ("photos/t.csv", NAMES),
        ("elsewhere/t.csv", NAMES),
        ("t.csv", [f"photos/{name}" for name in NAMES]),
        ("photos/tables/t.csv", [f"../{name}" for name in NAMES]),
        ("t.csv", [f"./photos/{name}" for name in NAMES]),
        ("t.csv", [f"./{name}" for name in NAMES]),
        ("t.csv", [name.replace("/", "\\") for name in NAMES]),
        ("t.csv", ["photos\\" + name.replace("/", "\\") for name in NAMES]),
        ("t.csv", [name.removesuffix(".jpg") for name in NAMES]),
        ("t.csv", [Path(name).name for name in NAMES]),
        ("t.csv", [Path(name).stem for name in NAMES]),
    ],
)
def test_how_a_row_may_name_its_image(
    photos: Path, tmp_path: Path, place: str, names: list[str]
) -> None:
    found = listed(photos, whole(tmp_path / place, names), "train")
    assert labels_of(found) == {name: TRUTH[name] for name in NAMES[:4]}
    assert not any("rows name no image" in note for note in found.notes)


def test_full_paths_and_a_folder_given_relatively(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole(tmp_path / "t.csv", [str(photos / name) for name in NAMES])
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "../" + tmp_path.name + "/photos/", str(photos)):
        assert len(listed(Path(folder), Path("t.csv"), "train").files) == 4


def test_rows_name_the_end_of_the_path(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    photos.rename(tmp_path / "set" / "images")
    found = listed(tmp_path / "set", whole(tmp_path / "t.csv"), "train")
    assert labels_of(found) == {f"images/{name}": TRUTH[name] for name in NAMES[:4]}


def test_a_name_of_several_images_matches_none_of_them(photos: Path, tmp_path: Path) -> None:
    for number in range(3, 6):
        (photos / "night" / f"{number}.jpg").rename(photos / "night" / f"{number - 3}.jpg")
    (photos / "night" / "9.jpg").write_bytes((photos / "day" / "0.jpg").read_bytes())
    rows = [("0.jpg", "cat"), ("1.jpg", "cat"), ("2.jpg", "dog"), ("9.jpg", "dog")]
    found = listed(photos, table_of(tmp_path / "t.csv", ("path", "label"), rows))
    assert found.labels is None
    (note,) = [note for note in found.notes if "rows" in note]
    assert "3 of its 4 rows" in note and "or several" in note and "0.jpg" in note
    said = refused(photos, table_of(tmp_path / "u.csv", ("path", "label"), rows[:3]))
    assert "none of the 7 images" in said and "--path-column" in said


def test_a_file_name_alone_is_not_the_end_of_a_longer_row(photos: Path, tmp_path: Path) -> None:
    """other/0.jpg is not day/0.jpg."""
    rows = [("other/0.jpg", "cat"), ("day/1.jpg", "dog")]
    found = listed(photos, table_of(tmp_path / "t.csv", ("path", "label"), rows))
    assert any("other/0.jpg" in note and "1 of its 2 rows" in note for note in found.notes)


def test_names_that_are_not_utf_8(photos: Path, tmp_path: Path) -> None:
    name = "day/caf\udce9.jpg"
    try:
        (photos / "day" / "0.jpg").rename(photos / name)
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    table = whole(tmp_path / "t.csv", [name, *NAMES[1:]])
    found = labels_of(listed(photos, table, "train"))
    assert found is not None and found[name] == "cat"


# Rows without images, images without rows, labels.


def test_rows_without_images_are_noted(photos: Path, tmp_path: Path) -> None:
    (photos / NAMES[1]).unlink()
    (photos / NAMES[3]).unlink()
    (photos / "day" / "7.jpg").write_bytes((photos / "day" / "0.jpg").read_bytes())
    found = listed(photos, whole(tmp_path / "t.csv"))
    assert any("2 of its 6 rows" in n and "day/1.jpg" in n for n in found.notes)


def test_images_without_rows_are_kept_for_pretraining(photos: Path, tmp_path: Path) -> None:
    rows = [*zip(NAMES, LABELS, SPLITS, strict=True)]
    table = table_of(tmp_path / "t.csv", ("path", "label", "split"), [*rows[:3], *rows[4:]])
    pretrain, train = listed(photos, table), listed(photos, table, "train")
    assert pretrain.files == tuple(NAMES[:4]) and pretrain.labels is None
    assert any("1 of the 6 images have no row" in n and NAMES[3] in n for n in pretrain.notes)
    assert labels_of(train) == {name: TRUTH[name] for name in NAMES[:3]}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("day/0.jpg", "dog", "train"), ["labels cat and dog", "--label-column"]),
        (("day\\0.jpg", "cat", "val"), ["splits train and validation", "--split-column"]),
        (("./day/0.jpg", "cat", "training"), None),
    ],
)
def test_an_image_with_two_rows(
    photos: Path, tmp_path: Path, more: tuple[str, ...], words: list[str] | None
) -> None:
    rows = [*zip(NAMES, LABELS, SPLITS, strict=True), more]
    table = table_of(tmp_path / "t.csv", ("path", "label", "split"), rows)
    if words is None:
        assert len(listed(photos, table, "train").files) == 4
        assert not any("rows" in note for note in listed(photos, table, "train").notes)
    else:
        said = refused(photos, table)
        assert all(word in said for word in words) and "0.jpg" in said


def test_numbers_are_ordered_by_their_value(photos: Path, tmp_path: Path) -> None:
    for name in ("t.csv", "t.parquet"):
        rows = [*zip(NAMES, [10, 9, 100, 2, 10, 1], strict=True)]
        table = table_of(tmp_path / name, ("path", "label"), rows)
        assert listed(photos, table).classes == ("1", "2", "9", "10", "100")


# Splits.


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("test", ["test", "Testing", "eval", "val", "valid", "Validation", "dev"])
def test_the_spellings_of_splits(photos: Path, tmp_path: Path, train: str, test: str) -> None:
    rows = [*zip(NAMES, LABELS, [train] * 4 + [test] * 2, strict=True)]
    table = table_of(tmp_path / "t.csv", ("path", "label", "split"), rows)
    assert len(listed(photos, table, "train").files) == 4
    assert len(listed(photos, table, "test").files) == 2
    assert len(listed(photos, table).files) == 4


@pytest.mark.parametrize("hidden", [False, True])
def test_test_goes_before_validation_where_it_has_labels(
    photos: Path, tmp_path: Path, hidden: bool
) -> None:
    labels = ["cat", "dog", "cat", "dog", *(["", ""] if hidden else ["cat", "dog"])]
    splits = ["train", "train", "val", "val", "test", "test"]
    rows = [*zip(NAMES, labels, splits, strict=True)]
    table = table_of(tmp_path / "t.csv", ("path", "label", "split"), rows)
    tested = NAMES[2:4] if hidden else NAMES[4:]
    assert listed(photos, table, "test").files == tuple(tested)
    assert listed(photos, table).files == tuple(NAMES[:2]), "both are left aside"


def test_an_evaluation_needs_splits(photos: Path, tmp_path: Path) -> None:
    table = table_of(tmp_path / "t.csv", ("path", "label"), [*zip(NAMES, LABELS, strict=True)])
    assert labels_of(listed(photos, table)) == TRUTH
    said = refused(photos, table, "train")
    assert "no column split" in said and "--split-column" in said
    rows = [*zip(NAMES, LABELS, "012345", strict=True)]
    said = refused(photos, table_of(tmp_path / "u.csv", ("path", "label", "fold"), rows), "test")
    assert "0 (1)" in said and "expected train and test" in said


def test_a_label_is_missing(photos: Path, tmp_path: Path) -> None:
    rows = [*zip(NAMES, ["", *LABELS[1:]], SPLITS, strict=True)]
    table = table_of(tmp_path / "t.csv", ("path", "label", "split"), rows)
    assert listed(photos, table).labels is None
    said = refused(photos, table, "train")
    assert "day/0.jpg" in said and "has no label" in said and "remove its row" in said


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_splits_have_the_same_classes(photos: Path, tmp_path: Path, split: str) -> None:
    rows = [*zip(NAMES, ["cat", "dog", "bird", "dog", "cat", "dog"], SPLITS, strict=True)]
    table = table_of(tmp_path / "t.csv", ("path", "label", "split"), rows)
    said = refused(photos, table, split)
    assert "class bird" in said and "remove it from both" in said


# Other places, and commands.


def test_folders_as_splits_and_a_table_do_not_go_together(photos: Path, tmp_path: Path) -> None:
    where = Where(str(photos), None, LabelSource(whole(tmp_path / "t.csv")))
    with pytest.raises(UserError, match="--split-column"):
        where.images("train", train_folder="day")


def test_images_of_several_places_and_named_ones_have_a_table_too(
    photos: Path, tmp_path: Path
) -> None:
    table = whole(tmp_path / "t.csv")
    data = (str(photos / "day"), str(photos / NAMES[3]), str(photos / "night" / "*.jpg"))
    where = Where(data, None, LabelSource(table))
    assert labels_of(where.images("train")) == {name: TRUTH[name] for name in NAMES[:4]}
    assert labels_of(where.images("test")) == {name: TRUTH[name] for name in NAMES[4:]}


def write_shards(photos: Path, folder: Path) -> Path:
    folder.mkdir()
    for number, names in enumerate((NAMES[:2], NAMES[2:])):
        with tarfile.open(folder / f"train-{number}.tar", "w") as file:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(data := (photos / name).read_bytes())
                file.addfile(member, io.BytesIO(data))
    return folder


def test_shards_with_a_table(photos: Path, tmp_path: Path) -> None:
    shards = write_shards(photos, tmp_path / "shards")
    for names in (NAMES, [Path(name).stem for name in NAMES]):
        table = whole(tmp_path / "t.csv", names)
        test = listed(shards, table, "test")
        assert [labels_of(test)[name] for name in test.files] == LABELS[4:]  # type: ignore[index]
        assert test.read(1) == (photos / NAMES[5]).read_bytes()


def table_of_sample(tmp_path: Path) -> tuple[Path, Path]:
    """Photographs in one folder, without classes, and a table of both splits."""
    sorted_ones = unpack_sample(tmp_path / "sorted", train=4, test=2, classes=3)
    (tmp_path / "photos").mkdir()
    rows = []
    for path in sorted(sorted_ones.rglob("*.jpg")):
        split, label, name = path.relative_to(sorted_ones).parts
        path.rename(tmp_path / "photos" / name)
        rows.append((name, label, split))
    header = ("image_id", "species", "split")
    return tmp_path / "photos", table_of(tmp_path / "labels.csv", header, rows)


def test_an_evaluation_by_a_table(tmp_path: Path) -> None:
    """It is the evaluation by class folders of the same images."""
    photos, table = table_of_sample(tmp_path)
    again = unpack_sample(tmp_path / "again", train=4, test=2, classes=3)
    run = random_run(tmp_path / "run", photos)
    common = {"run": run, "precision": "float32", "cache": tmp_path / "cache"}
    by_table = evaluate_knn(
        config_of(KNNConfig, labels_from=table, label_column="species", **common)
    )
    by_folders = evaluate_knn(config_of(KNNConfig, data=str(again), **common))
    assert by_table["top1"] == by_folders["top1"]
    assert (by_table["train_images"], by_table["test_images"]) == (12, 6)
    assert by_table["data"] == "photos/test"


def test_vectors_of_shards_that_a_table_divides(photos: Path, tmp_path: Path) -> None:
    """They are read again without the table."""
    shards = write_shards(photos, tmp_path / "shards")
    splits = ["train", "test", "train", "train", "train", "test"]
    rows = [*zip(NAMES, LABELS, splits, strict=True)]
    table = table_of(tmp_path / "t.csv", ("path", "label", "split"), rows)
    run = random_run(tmp_path / "run", shards)
    config = read_json(run / "config.json")
    config["data"]["labels_from"] = str(table)
    write_json(run / "config.json", config)
    out = tmp_path / "vectors.npz"
    settings = {"out": out, "cache": tmp_path / "cache", "workers": 0, "device": "cpu"}
    embed(with_settings(EmbedConfig(run), settings, "embed"))
    found = read_vectors(out)
    assert [Path(path).name for path in found.paths()] == ["0.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert found.vectors.shape[0] == 4 and torch.isfinite(found.vectors).all()
