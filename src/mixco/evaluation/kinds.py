"""The keys of results.json: which evaluation they are of, its title, and the order to show them in."""

import re
from collections.abc import Iterable

from mixco.evaluation import EVALUATIONS


def base_kind(kind: str) -> str | None:
    """The evaluation, "finetune" of "finetune-10percent@photos"; None for what is no evaluation."""
    base = re.split("[-@]", kind)[0]
    return base if base in EVALUATIONS else None


def title_of(kind: str) -> str:
    """ "fine-tuned (10percent, photos)" of "finetune-10percent@photos"; unknown kinds as they are."""
    base = base_kind(kind)
    if base is None:
        return kind
    labels, _, data = kind.removeprefix(base).partition("@")
    details = ", ".join(filter(None, (labels.removeprefix("-"), data)))
    return EVALUATIONS[base].title + (f" ({details})" if details else "")


def in_order(kinds: Iterable[str]) -> list[str]:
    """Each kind once, in the order of EVALUATIONS; unknown ones last."""
    order = [*EVALUATIONS, None]
    return sorted(dict.fromkeys(kinds), key=lambda kind: order.index(base_kind(kind)))
