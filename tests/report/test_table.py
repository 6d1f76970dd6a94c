"""`mixco report`: the table of several runs, from run folders and from collections."""

from pathlib import Path
from typing import Any

import pytest
from configs import pretrain_config

import mixco.cli
from mixco.evaluation import EVALUATIONS
from mixco.evaluation.kinds import in_order, title_of
from mixco.report.table import distinguishes, spread, table
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import add_result, read_json, write_json
from mixco.settings.parse import to_dict

KNN, PAPER = EVALUATIONS["knn"].title, EVALUATIONS["linear_paper"].title


def write_run(
    folder: Path,
    seed: int = 0,
    knn: float | None = None,
    paper: tuple[float, float] | None = None,
    others: dict[str, dict[str, Any]] | None = None,
    **method: Any,
) -> Path:
    """A run folder with results as the commands write them, without any training."""
    folder.mkdir(parents=True)
    settings = {"method": "moco", "mix": "none", "temperature": 0.2, **method}
    where = {"data": "cifar10", "data_path": folder, "size": 32, "out": folder}
    config = pretrain_config(**where, epochs=7, seed=seed, **settings)
    write_json(folder / "config.json", to_dict(config))
    name = config.method.method + ("" if config.method.mix == "none" else f"+{config.method.mix}")
    shown = {"method": name, "data": "cifar10/train", "images": 50, "arch": "resnet18", "size": 32}
    add_result(folder, "pretrain", {**shown, "epochs": 7, "loss": seed / 7, "seed": seed})
    evaluated = {"labels": "all", "size": 32, "train_images": 50, "test_images": 10}
    if knn is not None:
        add_result(folder, "knn", {"top1": knn, "top5": 99.0, "k": 20, **evaluated})
    if paper is not None:
        trained = {"epochs": 100, "head_lr": 1 + seed, "head_lr_from": "the features", "seed": 0}
        add_result(
            folder, "linear_paper", {"top1": paper[0], "top5": paper[1], **trained, **evaluated}
        )
    for kind, values in (others or {}).items():
        add_result(folder, kind, values)
    return folder


def rows(*paths: Path) -> list[dict[str, str]]:
    lines = [line for line in table(paths).splitlines() if line.startswith("|")]
    split = [[text.strip() for text in line.strip("|").split("|")] for line in lines]
    assert set(split[1]) == {"---"}
    return [dict(zip(split[0], row, strict=True)) for row in split[2:]]


def test_runs_that_differ_by_their_seed_alone_are_one_row(tmp_path: Path) -> None:
    """60, 62, 64: mean 62, and 2 is the standard deviation of a sample of three."""
    runs = [
        write_run(tmp_path / f"s{k}", k, knn=60.0 + 2 * k, paper=(70.0, 95.0 + k)) for k in range(3)
    ]
    mixed = write_run(tmp_path / "mixed", knn=65.04, mix="mixco")
    setting = {"data": "cifar10", "arch": "resnet18", "size": "32", "epochs": "7"}
    assert rows(*runs, mixed) == [
        {
            "method": "moco",
            **setting,
            f"{KNN} top-1": "62.0 +- 2.0 (3)",
            f"{PAPER} top-1": "70.0 +- 0.0 (3)",
            f"{PAPER} top-5": "96.0 +- 1.0 (3)",
        },
        {
            "method": "moco+mixco",
            **setting,
            f"{KNN} top-1": "65.0",
            f"{PAPER} top-1": "",
            f"{PAPER} top-5": "",
        },
    ]


def test_a_run_of_an_older_version_had_what_it_did_not_say(tmp_path: Path) -> None:
    published = {"mix": "mixco", "mix_alpha": 1.0, "mix_loss": "added"}
    runs = [write_run(tmp_path / f"s{seed}", seed, knn=60.0, **published) for seed in range(2)]
    config = read_json(runs[1] / "config.json")
    del config["method"]["mix_alpha"], config["method"]["mix_loss"]
    write_json(runs[1] / "config.json", config)
    other = write_run(tmp_path / "other", knn=61.0, **published | {"mix_alpha": 2.0})
    assert [row[f"{KNN} top-1"] for row in rows(*runs)] == ["60.0 +- 0.0 (2)"]
    assert len(rows(*runs, other)) == 2


def test_a_missing_evaluation_does_not_part_seeds(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", 0, knn=60.0, paper=(50.0, 90.0))
    b = write_run(tmp_path / "b", 1, knn=61.0)
    (row,) = rows(a, b)
    assert row[f"{KNN} top-1"] == "60.5 +- 0.7 (2)"
    assert row[f"{PAPER} top-1"] == "50.0"


def test_any_other_setting_makes_a_row_that_says_so(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", 0, knn=60.0)
    b = write_run(tmp_path / "b", 1, knn=50.0, temperature=0.1)
    assert [(row["otherwise"], row[f"{KNN} top-1"]) for row in rows(a, b)] == [
        ("temperature 0.2", "60.0"),
        ("temperature 0.1", "50.0"),
    ]


def test_evaluations_with_different_settings_stay_apart(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / f"s{k}", k, knn=60.0 + k) for k in range(2))
    add_result(b, "knn", {**read_json(b / "results.json")["knn"], "k": 200})
    (row,) = rows(a, b)
    assert row[f"{KNN} top-1"] == "60.0 / 61.0"
    assert "different settings" in table((a, b))


def test_transfers_and_fewer_labels_have_columns_of_their_own(tmp_path: Path) -> None:
    others = {"knn@photos": {"top1": 40.0, "top5": 80.0}, "finetune-10percent": {"top1": 30.0}}
    (row,) = rows(write_run(tmp_path / "a", knn=60.0, others=others))
    assert row[f"{KNN} (photos) top-1"] == "40.0"
    assert row[f"{EVALUATIONS['finetune'].title} (10percent) top-1"] == "30.0"


def test_kinds_have_titles_and_an_order() -> None:
    title = EVALUATIONS["linear"].title
    assert title_of("linear-my-list@photos") == f"{title} (my-list, photos)"
    assert title_of("kNN, held-out") == "kNN, held-out", "unknown"
    assert in_order(["new", "linear", "knn@photos", "linear", "knn"]) == [
        *("knn@photos", "knn", "linear", "new")
    ]


def test_settings_without_effect_do_not_part_runs(tmp_path: Path) -> None:
    assert not distinguishes("optimisation.micro_batches")
    assert distinguishes("optimisation.lr")
    a = write_run(tmp_path / "a", 0, knn=60.0)
    b = write_run(tmp_path / "b", 1, knn=62.0, micro_batches=2)
    assert [row[f"{KNN} top-1"] for row in rows(a, b)] == ["61.0 +- 1.4 (2)"]


def test_a_run_counts_once_and_a_collection_is_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / f"s{k}", k, knn=60.0 + k) for k in range(3)]
    collection = tmp_path / "results" / "results.json"
    mixco.cli.main(["report", *map(str, runs), "--collect", str(collection)])
    assert capsys.readouterr().out == ""
    assert list(read_json(collection)) == ["s0", "s1", "s2"]
    for paths in ((collection,), (collection.parent,), (*runs, collection, runs[0])):
        assert rows(*paths)[0][f"{KNN} top-1"] == "61.0 +- 1.0 (3)"
    mixco.cli.main(["report", str(runs[0]), "--name", "first", "--collect", str(collection)])
    assert read_json(collection)["first"] == read_json(collection)["s0"]
    mixco.cli.main(["report", str(collection), "--table"])
    assert "| moco | cifar10 | resnet18 | 32 | 7 | 61.0 +- 1.0 (3) |" in capsys.readouterr().out


def test_results_without_a_pretraining_are_a_row(tmp_path: Path) -> None:
    """An evaluation of another project's encoder, with --out."""
    training = "trained elsewhere, keys of moco"
    add_result(tmp_path, "knn@photos", {"top1": 33.0, "training": training})
    (row,) = rows(tmp_path)
    assert (row["method"], row[f"{KNN} (photos) top-1"]) == (training, "33.0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give run folders"),
        (["RUN", "--table", "--name", "x"], "--name is what --collect calls a single run"),
        (["RUN", "RUN", "--collect", "all.json", "--name", "x"], "calls a single run"),
        (["nowhere", "--table"], "is this a run folder?"),
        (["nowhere", "--collect", "all.json"], "is this a run folder?"),
        (["empty.json", "--table"], "there are no results yet"),
        (["list.json", "--table"], "not a file of results"),
        (["both.json", "--table"], "both.json: damaged"),
        (["word.json", "--table"], "damaged, top1 is 'high'; expected a percentage"),
        (["deep.json", "--table"], "is damaged"),
    ],
)
def test_mistakes_name_a_remedy(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "RUN", knn=60.0)
    write_json(tmp_path / "empty.json", {})
    write_json(tmp_path / "list.json", [1])
    write_json(tmp_path / "word.json", {"knn": {"top1": "high"}})
    (tmp_path / "deep.json").write_text("[" * 99_999)
    write_json(tmp_path / "both.json", {"knn": {"top1": 1.0}, "a": {"knn": {"top1": 1.0}}})
    with pytest.raises(SystemExit) as stopped:
        mixco.cli.main(["report", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_nothing_to_show_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is this a run folder"):
        table((tmp_path,))


def test_a_spread_is_of_a_sample() -> None:
    assert spread([61.4, 62.1, 62.8]) == "62.1 +- 0.7 (3)"
    assert spread([61.44]) == "61.4"
