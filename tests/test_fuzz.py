"""Some hundred damaged and hostile inputs of each kind; thousands in tests/soak/fuzz.py."""

import shutil
import tempfile
from pathlib import Path

import pytest
from fuzzing import KINDS, SUCCESS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# As many of each as take a second or two.
EXAMPLES = {"command lines": 60, "image files": 200, "packed images in the cache": 50}


@pytest.mark.parametrize("name", KINDS)
def test_whatever_comes_ends_well_or_in_a_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kind, outcomes = KINDS[name], set()

    @settings(
        max_examples=EXAMPLES.get(name, 100),
        deadline=None,
        database=None,
        derandomize=True,  # the same ones in each run; the soak test draws others
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        case = data.draw(kind.cases)
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        try:
            outcomes.add(kind.attempt(case, folder))
        finally:
            shutil.rmtree(folder)

    attempt()
    assert SUCCESS in outcomes and (len(outcomes) > 1 or "packed" in name), outcomes
