"""Services beside metrics.jsonl: real ones where they are installed, and what holds when one fails."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mixco.training.loggers as loggers
from mixco.runtime.errors import UserError
from mixco.training.loggers import Service, followed_by, require

RECORDS = [
    {"epoch": epoch, "loss": 5.0 - epoch / 4, "accuracy": 10.0 * epoch} for epoch in (1, 2, 3)
]
CONFIG = {"data": {"size": 32}, "run": {"log_to": ["mlflow"], "out": None}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def needs(name: str) -> None:
    if find_spec(name) is None:
        pytest.skip(f"needs {name}: pip install 'mixco[{name}]'")


IN_TWO_PARTS = """
import json, sys
from pathlib import Path
from mixco.training.loggers import followed_by
name, folder, config, records = sys.argv[1], Path(sys.argv[2]), *map(json.loads, sys.argv[3:])
with followed_by([name], folder, config, 0) as follow:
    follow(records[:1])
    follow(records[:2])
with followed_by([name], folder, config, 1) as follow:
    follow(records[:2])
    follow(records)
"""


def in_two_parts(folder: Path, name: str) -> dict[str, Any]:
    """A run that is stopped after two epochs, of which it has to do the second again.

    In a process of its own: services leave threads behind.
    """
    arguments = [name, str(folder), json.dumps(CONFIG), json.dumps(RECORDS)]
    subprocess.run([sys.executable, "-c", IN_TWO_PARTS, *arguments], check=True, timeout=200)
    known = json.loads((folder / "loggers.json").read_text())[name]
    assert known["epochs"] == 3
    return dict(known)


def test_wandb_goes_on_offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    known = in_two_parts(folder, "wandb")
    written = list((folder / "wandb").glob(f"offline-run-*-{known['id']}/*.wandb"))
    assert len(written) == 2
    assert all(path.stat().st_size > 0 for path in written)


def test_mlflow_goes_on_in_the_same_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'ml.db'}")
    known = in_two_parts(folder, "mlflow")
    with sqlite3.connect(folder / "ml.db") as connection:
        losses = connection.execute(
            "select run_uuid, step, value from metrics where key = 'loss' order by step"
        ).fetchall()
        params = dict(connection.execute("select key, value from params").fetchall())
        (status,) = connection.execute("select status from runs").fetchall()
    assert losses == [(known["id"], r["epoch"], r["loss"]) for r in RECORDS]
    assert params["data.size"] == "32"
    assert status == ("FINISHED",)


def test_trackio_goes_on_in_the_same_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(folder / "trackio"))
    needs("trackio")
    known = in_two_parts(folder, "trackio")
    (database,) = (folder / "trackio").glob("mixco*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute(
            "select step, metrics from metrics where run_name = ? order by step", (known["id"],)
        ).fetchall()
    losses = [(step, json.loads(metrics)["loss"]) for step, metrics in rows]
    assert losses == [(r["epoch"], r["loss"]) for r in RECORDS]


def to_a_file(broken: Path) -> Callable[..., Service]:
    """A service that writes lines into a folder, unless a file says that its network is down."""

    def start(folder: Path, _: dict[str, Any], identity: str | None) -> Service:
        if broken.exists():
            raise ConnectionError("no route to host")

        def log(epoch: int, values: dict[str, float]) -> None:
            if broken.exists():
                raise ConnectionError("no route to host\nand more")
            with (folder / "told").open("a") as file:
                file.write(f"{epoch} {values['loss']}\n")

        return Service(identity or str(os.getpid()), log, lambda well: log(0, {"loss": well}))

    return start


def test_a_failing_service_is_told_once_and_gets_what_it_lacks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = folder / "broken"
    monkeypatch.setitem(loggers.SERVICES, "wandb", to_a_file(broken))
    monkeypatch.setattr(loggers, "REST", 0.0)
    with followed_by(["wandb"], folder, CONFIG, 0) as follow:
        broken.touch()
        follow(RECORDS[:1])
        follow(RECORDS[:2])
        told = capsys.readouterr().err
        assert told.count("warning: wandb took no numbers (no route to host)") == 1
        broken.unlink()
        follow(RECORDS)
        broken.touch()  # at the end, too
    assert (folder / "told").read_text() == "1 4.75\n2 4.5\n3 4.25\n"
    with followed_by(["wandb"], folder, CONFIG, 3):  # cannot be reached when the run goes on
        pass
    assert "cannot be reached (no route to host)" in capsys.readouterr().err


def test_a_service_that_cannot_be_started_is_told_before_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "broken").touch()
    monkeypatch.setitem(loggers.SERVICES, "wandb", to_a_file(folder / "broken"))
    with (
        pytest.raises(UserError, match=r"--log-to wandb: cannot be started \(no route"),
        followed_by(["wandb"], folder, CONFIG, 0),
    ):
        pass


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no_such_service").mkdir()  # as wandb's own folder of runs in the working directory
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"pip install 'mixco\[no_such_service\]'"):
        require(["no_such_service"])


def test_tensorboard_has_every_epoch_once(folder: Path) -> None:
    for done, upto in ((0, 2), (1, 3)):  # stopped after two epochs, saved after the first
        with followed_by((), folder, CONFIG, done) as follow:
            for count in range(done + 1, upto + 1):
                follow(RECORDS[:count])
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("accuracy")] == [1, 2, 3]
    assert not (folder / "loggers.json").exists()
