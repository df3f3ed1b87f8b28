"""Where in the operator's pillar files a setting stands, for errors that name the line."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from aiplatform.schema import Problem

TOP = "top.sls"


@dataclass(frozen=True)
class Entry:
    """One key in one file; ``value`` is that of a single value, None for a mapping or a list."""

    path: str
    line: int
    value: Any
    single: bool


def files(roots: Iterable[str]) -> list[Path]:
    """Return the pillar files below these roots; of two with one name the first counts, as it does for Salt."""
    found: dict[Path, Path] = {}
    for root in map(Path, roots):
        for path in sorted(root.rglob("*.sls")):
            found.setdefault(path.relative_to(root), path)
    return [path for name, path in found.items() if str(name) != TOP]


def entries(path: Path) -> dict[str, Entry]:
    """Return every key of a pillar file by its dotted name; nothing where the file is no plain YAML."""
    try:
        return _entries(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # such as Jinja between the lines: what it becomes cannot be traced to one of them


@lru_cache(maxsize=64)
def _entries(path: Path, changed_ns: int) -> dict[str, Entry]:
    del changed_ns
    loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    try:
        node = loader.get_single_node()
        return dict(_walk(loader, node, path, "")) if isinstance(node, yaml.MappingNode) else {}
    finally:
        loader.dispose()


def _walk(loader: yaml.SafeLoader, node: yaml.MappingNode, path: Path, parent: str) -> Iterator[tuple[str, Entry]]:
    for key, value in node.value:
        name = f"{parent}{key.value}"
        single = isinstance(value, yaml.ScalarNode)
        held = loader.construct_object(value) if single else None
        yield name, Entry(str(path), key.start_mark.line + 1, held, single)
        if isinstance(value, yaml.MappingNode):
            yield from _walk(loader, value, path, f"{name}.")


def lines(roots: Iterable[str], settings: Mapping[str, Any], keys: Iterable[str] | None = None) -> dict[str, str]:
    """Return ``{dotted key: "<file>:<line>"}`` for each key that one file sets and that has its value from there.

    roots
        The pillar roots, in order of precedence.
    settings
        The effective pillar; a value that differs from the file's comes from elsewhere, such as the command line.
    keys
        The top-level keys that are wanted; all where it is left out.
    """
    wanted = None if keys is None else set(keys)
    found: dict[str, list[Entry]] = defaultdict(list)
    for path in files(roots):
        for name, entry in entries(path).items():
            if wanted is None or name.split(".")[0] in wanted:
                found[name].append(entry)
    alone = {name: several[0] for name, several in found.items() if len(several) == 1}
    same = {name: one for name, one in alone.items() if not one.single or one.value == _value(settings, name)}
    return {name: f"{one.path}:{one.line}" for name, one in same.items()}


def _value(settings: Mapping[str, Any], name: str) -> Any:
    node: Any = settings
    for part in name.split("."):
        if not isinstance(node, Mapping):
            return None
        node = next((value for key, value in node.items() if str(key) == part), None)
    return node


def located(problem: Problem, lines: Mapping[str, str]) -> Problem:
    """Return the problem with the line of its key, or of the nearest key above it; as it is where no line is known."""
    name = problem.key
    while name:
        if name in lines:
            return replace(problem, at=lines[name])
        name = name.rpartition(".")[0]
    return problem
