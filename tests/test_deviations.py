"""docs/deviations.md: each row names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
}


def rows() -> list[list[str]]:
    lines = (ROOT / "docs" / "deviations.md").read_text("utf-8").splitlines()
    table = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in table]


HEAD, _, *ROWS = rows()


def test_the_table_has_its_columns() -> None:
    assert HEAD == ["question", "2020 code", "mixco", "why", "the old way", "held by"]
    assert len(ROWS) > 30
    assert all(len(row) == len(HEAD) and all(row) for row in ROWS)
    assert len({row[0] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_row_is_held_by_tests_that_exist(row: list[str]) -> None:
    held_by = re.findall(r"`([^`]+)`", row[-1])
    assert ", ".join(f"`{test}`" for test in held_by) == row[-1], "names of tests and nothing else"
    for test in held_by:
        found = (ROOT / test).is_file() if "/" in test else test in TESTS
        assert test.startswith("test") and found, test
