"""Which Parquet files of a repository belong to which split, as the `datasets` library has it.

A card (the head of README.md) may say it, with globs. Else the names do. Where the hub has converted a
set, the folders do: CONFIG/SPLIT/0000.parquet. No code of a repository is run.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from mixco.runtime.errors import UserError

# The usual names of splits, and how they are spelt in paths.
SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
USUAL = {spelling: split for split, spellings in SPELLINGS.items() for spelling in spellings}
WORD = re.compile(rf"(?<![a-z])({'|'.join(USUAL)})(?![a-z])", re.IGNORECASE)
# Any split's name may stand before these numbers, where the `datasets` library has pushed.
PUSHED = re.compile(r"data/([^/]+?)-\d{5}-of-\d{5}[^/]*")

Splits = dict[str, list[str]]
"""The names of files by split, in order."""


def own_splits(
    data: str, names: Collection[str], card: Mapping[str, Any], config: str | None
) -> tuple[str, Splits]:
    """The configuration of a repository's own Parquet files, and its splits.

    data: as the user named it, for errors. names: the paths of the Parquet files in the repository.
    card: the head of README.md. config: the name that was asked for, or None for the card's default.

    Raises UserError where there is no such configuration, several and none named, or one without files.
    """
    listed = card.get("configs")
    entries = [e for e in listed if isinstance(e, Mapping)] if isinstance(listed, list) else []
    configs: dict[str, Splits] = {}
    for entry in entries:
        folder = str(entry.get("data_dir") or "").strip("./")
        below = f"{folder}/" if folder else ""
        inside = [name.removeprefix(below) for name in names if name.startswith(below)]
        found = (
            _by_globs(inside, entry["data_files"]) if "data_files" in entry else by_words(inside)
        )
        configs[str(entry.get("config_name", "default"))] = _below(below, found)
    if not entries:
        configs = _by_top_folder(names)
    name = chosen(data, list(configs), config, default_of(card))
    if not configs[name]:
        raise UserError(
            f"{data}: the configuration {name} has no Parquet files of its own; try the hub's "
            "conversion, the revision refs/convert/parquet"
        )
    return name, usual_names(configs[name])


def converted_splits(
    data: str, names: Collection[str], card: Mapping[str, Any], config: str | None
) -> tuple[str, Splits, bool]:
    """As `own_splits`, of the hub's conversion; and whether it holds only a part of a split."""
    configs: dict[str, Splits] = {}
    partial = set()
    for name in sorted(names):
        folder, split, *_ = [*name.split("/", 2), ""]
        if split.startswith("partial-"):
            partial.add(folder)
        configs.setdefault(folder, {}).setdefault(split.removeprefix("partial-"), []).append(name)
    found = chosen(data, list(configs), config, default_of(card))
    return found, usual_names(configs[found]), found in partial


def default_of(card: Mapping[str, Any]) -> str:
    """The configuration that a card calls its default, "default" where it calls none so."""
    configs = card.get("configs")
    for entry in configs if isinstance(configs, list) else ():
        if isinstance(entry, Mapping) and entry.get("default") is True:
            return str(entry.get("config_name", "default"))
    return "default"


def chosen(data: str, configs: Sequence[str], asked: str | None, default: str) -> str:
    """The configuration that is meant. Raises UserError that lists them where it is not clear."""
    known = f"it has {', '.join(sorted(configs))}"
    if asked is not None and asked not in configs:
        raise UserError(f"{data}: there is no configuration {asked}; {known}")
    name = asked or (configs[0] if len(configs) == 1 else default)
    if name not in configs:
        raise UserError(
            f"{data}: several configurations, and none is the default; {known}. Give one after a colon, "
            f"as in {data}:{min(configs)}"
        )
    return name


def by_words(names: Collection[str]) -> Splits:
    """Splits by the words in the paths, first those of folders; all is "train" where there are none."""

    def grouped(split_of: Callable[[str], str | None]) -> Splits:
        splits: Splits = {}
        for name in sorted(names):
            if split := split_of(name):
                splits.setdefault(split, []).append(name)
        return splits

    def pushed(name: str) -> str | None:
        found = PUSHED.fullmatch(name)
        return found[1] if found else None

    def word(text: str) -> str | None:
        words = WORD.findall(text)
        return (
            USUAL[words[-1].lower()] if words else None
        )  # the last one is the nearest to the file

    return (
        grouped(pushed)
        or grouped(lambda name: word(name.rpartition("/")[0]))
        or grouped(lambda name: word(name.rpartition("/")[2]))
        or grouped(lambda _: "train")
    )


def usual_names(splits: Splits) -> Splits:
    """The splits under their usual names ("val" is "validation"), train, validation and test first."""
    renamed = {split: USUAL.get(split.lower(), split) for split in splits}
    if len(set(renamed.values())) < len(renamed):  # "val" and "validation" are two splits of it
        renamed = {split: split for split in splits}
    named = {renamed[split]: names for split, names in splits.items()}
    first = [split for split in SPELLINGS if split in named]
    return {split: named[split] for split in (*first, *(s for s in named if s not in first))}


def _by_top_folder(names: Collection[str]) -> dict[str, Splits]:
    """Each top folder is a configuration, but for data/ and those of splits, which are of "default"."""
    groups: dict[str, list[str]] = {}
    for name in names:
        top, inside, _ = name.partition("/")
        own = inside and top != "data" and not WORD.search(top)
        groups.setdefault(f"{top}/" if own else "", []).append(name)
    return {
        below.rstrip("/") or "default": _below(
            below, by_words([name.removeprefix(below) for name in group])
        )
        for below, group in groups.items()
    }


def _by_globs(names: Collection[str], data_files: Any) -> Splits:
    """Splits by the `data_files` of a card: globs of "train", or splits with a glob or several each."""
    if isinstance(data_files, Mapping):
        data_files = [{"split": split, "path": path} for split, path in data_files.items()]
    splits: Splits = {}
    for rule in data_files if isinstance(data_files, list) else [data_files]:
        entry = rule if isinstance(rule, Mapping) else {"path": rule}
        paths = entry.get("path")
        files = splits.setdefault(str(entry.get("split", "train")), [])
        for path in paths if isinstance(paths, list) else [paths]:
            glob = str(path).removeprefix("./").split("/")
            files += [n for n in sorted(names) if _fits(n.split("/"), glob) and n not in files]
    return {split: files for split, files in splits.items() if files}


def _fits(path: Sequence[str], glob: Sequence[str]) -> bool:
    """Folder by folder; `**` stands for any number of them."""
    if not glob:
        return not path
    if glob[0] == "**":
        return any(_fits(path[skipped:], glob[1:]) for skipped in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], glob[0]) and _fits(path[1:], glob[1:])


def _below(folder: str, splits: Splits) -> Splits:
    return {split: [folder + name for name in names] for split, names in splits.items()}
