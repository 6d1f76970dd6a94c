"""Turn the parameter lines of docstrings ("images: [B, C, H, W]") into lists."""

import re
from typing import Any

import griffe

# "images: ...", "arch, stem: ...", "on_progress(done, total): ..."; indented lines continue an entry.
ENTRY = re.compile(r"^(\w+(?:\([\w, ]*\))?(?:, \w+)*): (?=\S)")


class Lists(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = with_lists(obj.docstring.value, _names(obj))


def _names(obj: griffe.Object) -> set[str]:
    """Names that a docstring may explain: parameters; for a class also its fields and its methods'."""
    if isinstance(obj, griffe.Function):
        return {parameter.name.lstrip("*") for parameter in obj.parameters}
    if isinstance(obj, griffe.Class):
        methods = (_names(each) for each in obj.members.values() if each.is_function)
        return set(obj.members).union(*methods)
    return set()


def with_lists(text: str, names: set[str]) -> str:
    """Markdown of a docstring, with a list entry for each line that explains one of the names."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        entry = ENTRY.match(line)
        explained = re.findall(r"[a-z_]\w*", re.sub(r"\(.*?\)", "", entry[1])) if entry else []
        if entry and names.issuperset(explained):
            if not inside:
                lines.append("")
            inside = True
            line = f"- {', '.join(f'`{name}`' for name in entry[1].split(', '))}: {line[entry.end() :]}"
        elif inside and not line.startswith(" "):
            lines.append("")
            inside = False
        lines.append(line)
    return "\n".join(lines)
