"""The rooms of docs/architecture.md: no room imports one that stands above it."""

import ast
from pathlib import Path

import pytest

import mixco
from mixco.methods import METHODS

SOURCE = Path(mixco.__file__).parent

# From the ground up. A room imports its own modules and rooms of the rows before its own.
FLOORS = (
    ("runtime",),
    ("mixing", "losses"),
    ("models",),
    ("methods",),
    ("views",),
    ("data",),
    ("plots", "settings", "encoders"),
    ("embeddings",),
    ("training",),
    ("evaluation",),
    ("report", "export"),
    ("doctor", "comparison"),
    ("api",),
    ("demo", "__init__"),
    ("cli",),
    ("compat_2020", "__main__"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


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


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".")


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_room_imports_upwards(path: Path) -> None:
    own = room(name_of(path))
    assert own in FLOOR, f"the room {own} has no floor here and in docs/architecture.md"
    above = {m for m in imports(path) if room(m) != own and FLOOR[room(m)] >= FLOOR[own]}
    assert not above, f"{own} must not import {above}"


def test_the_documentation_has_the_same_floors() -> None:
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text("utf-8")
    _, _, rest = page.partition("From the bottom to the top:\n\n```\n")
    rows = [row.split(", ") for row in rest.partition("```")[0].splitlines()]
    assert rows == [[room for room in rooms if not room.startswith("__")] for rooms in FLOORS]


def test_the_paper_needs_nothing_but_torch() -> None:
    for name in ("mixing", "losses"):
        tree = ast.parse((SOURCE / f"{name}.py").read_text("utf-8"))
        names = {
            (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
        }
        assert {n.split(".")[0] for n in names} <= {"torch", "collections", "typing"}


def test_methods_and_models_write_no_files() -> None:
    for own in ("methods", "models"):
        for path in (SOURCE / own).glob("*.py"):
            assert not imports(path) & {"runtime.files", "runtime.run_folder"}, path


def test_training_evaluation_and_report_do_not_import_the_others_loops() -> None:
    loops = {
        "training": {"training.pretrain"},
        "evaluation": {f"evaluation.{m}" for m in ("protocols", "classifier", "train_classifier")},
    }
    pairs = [("training", "evaluation"), ("evaluation", "training")]
    pairs += [("report", "training"), ("report", "evaluation")]
    for own, other in pairs:
        for path in (SOURCE / own).glob("*.py"):
            assert not imports(path) & loops[other], path


def test_the_config_stops_at_the_entry_functions() -> None:
    readers = {
        name_of(path)
        for path in FILES
        if {"settings.config", "settings.parse", "settings.resolve"} & imports(path)
        and room(name_of(path)) != "settings"
    }
    assert readers <= {
        *("__init__", "api", "cli", "compat_2020", "demo", "doctor.doctor"),
        *("comparison.compare", "comparison.labelled"),
        *("training.pretrain", "training.setup", "embeddings.commands"),
        *("training.build", "training.initial_weights", "training.teacher"),  # parts of the set-up
        *("evaluation.features", "evaluation.protocols", "evaluation.task"),
        *("export.export", "export.push", "report.command", "report.page"),
        # These read no config, only what is declared of a setting, or write Setup's down.
        *("report.table", "training.checkpoints", "training.run"),
    }


def test_no_name_of_a_base_outside_of_methods() -> None:
    """Not as a value that code compares with; help texts and recipes name them."""
    guilty = []
    for path in FILES:
        if room(name_of(path)) in ("methods", "compat_2020"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Compare):
                values = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                if values & METHODS.keys():
                    guilty.append(f"{name_of(path)}:{node.lineno}")
    assert not guilty


def test_no_function_is_long() -> None:
    long = [
        f"{name_of(path)}.{node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 90  # type: ignore[operator]
    ]
    assert not long
