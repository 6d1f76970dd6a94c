"""compare.json: what a comparison found, and every evaluation that is done, so that none is lost.

{..., "rows": [...], "verdicts": [...], "notes": [...], "finished": {key: evaluation}}

The key of an evaluation is a hash of all that it depends on. A comparison that was stopped has only
"finished", beside the rows of an earlier one.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixco.comparison.measure import Measured
from mixco.comparison.verdict import packed, unpacked
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import changing_json, read_results

FINISHED = "finished"


def write_found(path: Path, found: dict[str, Any]) -> None:
    """Replace the result of an earlier comparison. Its evaluations stay."""
    with changing_json(path) as content:
        finished = content.get(FINISHED, {})
        content.clear()
        content.update({**found, FINISHED: finished})


def kept(path: Path, depends_on: list[Any], evaluate: Callable[[], Measured]) -> Measured:
    """The evaluation that the file has, or else a new one, which is put there.

    depends_on: plain values, all that the evaluation depends on. Raises UserError for a damaged file.
    """
    key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:32]
    content = read_results(path) if path.exists() else {}
    try:
        if key in (finished := content.get(FINISHED, {})):
            return _from_entry(finished[key])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is damaged; remove it and compare again") from None
    entry = _to_entry(evaluate())
    with changing_json(path) as content:
        content.setdefault(FINISHED, {})[key] = entry
    return _from_entry(entry)


def _to_entry(measured: Measured) -> dict[str, Any]:
    answers = {
        kind: {share: packed(right) for share, right in shares.items()}
        for kind, shares in measured.answers.items()
    }
    return {"images": measured.images, "seconds": round(measured.seconds, 1), "answers": answers}


def _from_entry(entry: dict[str, Any]) -> Measured:
    answers = {
        kind: {share: unpacked(text, entry["images"]) for share, text in shares.items()}
        for kind, shares in entry["answers"].items()
    }
    return Measured(answers, float(entry["seconds"]))
