"""The rooms of docs/architecture.md, and what each may import."""

import ast
from pathlib import Path

import pytest

import mixco

SOURCE = Path(mixco.__file__).parent

# What the modules of a room may import of mixco, besides their own room.
MAY_IMPORT = {
    "errors": set(),
    "mixing": set(),
    "losses": set(),
    "distributed": {"errors"},
    "seeding": set(),
    "schedules": set(),
    "models": {"errors", "distributed"},
    "data": {"errors", "files"},
    "methods": {"mixing", "losses", "models", "distributed"},
    "config": set(),
    "settings": {"errors", "defaults", "config"},
    "defaults": set(),
    "cautions": {"defaults"},
    "doctor_page": {"defaults"},
    "hardware": {"errors"},
    "progress": {"files"},
    "results": {"errors", "files"},
    "files": set(),
    "report": {
        *("errors", "files", "results", "pictures", "progress", "hardware", "seeding", "config"),
        "settings",
        *("mixing", "data", "checkpoint", "evaluation", "training"),
    },
    "failures": {"errors"},
    "pictures": {"files"},
    "harmless": {"errors"},
    "foreign": {"errors", "models"},
    "checkpoint": {"errors", "files", "models", "data", "harmless", "foreign"},
    "evaluation": {
        *("errors", "config", "settings", "data", "models", "checkpoint", "failures"),
        *("files", "hardware", "progress", "results", "pictures", "schedules", "seeding"),
        "distributed",
    },
    "collection": {
        *("errors", "config", "settings", "data", "models", "checkpoint", "evaluation"),
        *("files", "hardware", "progress", "results", "pictures"),
    },
    "two_views": {"data", "seeding"},
    "export": {
        *("errors", "config", "settings", "data", "checkpoint", "files", "progress", "results"),
    },
}
# The entry rooms put the others together; they may import everything but each other upwards.
ENTRIES = {"training", "demo", "doctor", "calls", "cli", "options_of_2020", "__main__", "__init__"}


def imports(path: Path) -> set[str]:
    """The modules of mixco that a file imports, by their names below the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mixco"):
            below = node.module.removeprefix("mixco").removeprefix(".")
            found |= {below} if below else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("mixco.") for a in node.names if "mixco." in a.name}
    return found


def room(module: str) -> str:
    return module.split(".")[0]


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    own = room(path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", "."))
    if own in ENTRIES:
        return
    assert own in MAY_IMPORT, f"the room {own} is not in docs/architecture.md"
    beyond = {module for module in imports(path) if room(module) not in MAY_IMPORT[own] | {own}}
    assert not beyond, f"{own} must not import {beyond}"


def test_the_paper_needs_nothing_but_torch() -> None:
    for name in ("mixing", "losses"):
        tree = ast.parse((SOURCE / f"{name}.py").read_text("utf-8"))
        names = {
            (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
        }
        assert {n.split(".")[0] for n in names} <= {"torch", "collections", "typing"}


def test_training_evaluation_and_report_do_not_import_the_others_loops() -> None:
    loops = {
        "training": {"training.pretrain"},
        "evaluation": {"evaluation.evaluate", "evaluation.trained", "evaluation.classifier"},
    }
    pairs = [("training", "evaluation"), ("evaluation", "training")]
    pairs += [("report", "training"), ("report", "evaluation")]
    for own, other in pairs:
        for path in (SOURCE / own).glob("*.py"):
            assert not imports(path) & loops[other], path


def test_the_config_stops_at_the_entry_functions() -> None:
    readers = {
        p.relative_to(SOURCE).as_posix() for p in FILES if {"config", "settings"} & imports(p)
    }
    assert readers <= {
        "settings/resolve.py",
        *("cli.py", "demo.py", "training/pretrain.py", "evaluation/protocols.py", "__init__.py"),
        *("api.py", "embeddings/commands.py"),
        "report/page.py",
        *("evaluation/task.py", "evaluation/trained.py", "compat_2020.py"),
        *("doctor/doctor.py", "training/setup.py", "doctor/trial.py"),
        *("export/export.py", "export/push.py"),
    }
