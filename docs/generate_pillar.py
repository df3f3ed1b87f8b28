"""Write docs/pillar.md from the formulas' schemas and defaults.

Usage: ``python docs/generate_pillar.py`` in the root of the checkout; a test fails where the page is behind.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT / "_utils"))

from aiplatform import settings  # noqa: E402 (its folder has just come onto the path)

PAGE = CHECKOUT / "docs" / "pillar.md"
HEAD = """\
# Settings

Everything that pillar may say, by formula. This page is written by `docs/generate_pillar.py` from
`salt/<formula>/schema.yaml` and `salt/<formula>/defaults.yaml`.

- What a site sets stands in its pillar files (`pillar/*.sls` of this checkout, or a folder of its own that comes
  first in `pillar_roots`, such as `/srv/pillar`). Whatever is left out has the default below.
- A mapping is merged key by key; a list replaces the default's. In a mapping whose keys you name (`<name>` below),
  null takes a default entry away.
- A wrong type, an unknown key, overlapping ports, a slot on an unknown instance, an untagged model and the like are
  refused before anything runs, with the key, its value and what was expected: `salt-run ai_platform.deploy` says so,
  and every state run on a host does.
- Secrets are never in pillar: they are in Vault ([vault.md](vault.md)).
- Every minion also finds `roles` and `address` (its own, from `platform.hosts`), `selection` (the benchmark's choice
  of models) and `compiled` (the master's time) in its pillar. They cannot be set.
"""
WORDS = {"object": "mapping", "array": "list", "integer": "whole number", "boolean": "true/false", "null": "null"}


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(CHECKOUT / "salt"), encoding="utf-8")


def page(tree: Path) -> str:
    """Return the page for the formulas of a state tree."""
    parts = [HEAD]
    for path in sorted(tree.glob("*/schema.yaml")):
        schema = settings.read_yaml(path)
        given = settings.read_yaml(path.with_name("defaults.yaml")) if path.with_name("defaults.yaml").exists() else {}
        parts.append(f"## {path.parent.name}\n")
        parts.append("| key | default | kind | meaning |\n| --- | --- | --- | --- |")
        parts += [
            line for key, node in schema["properties"].items() for line in rows(schema, key, node, given.get(key))
        ]
        parts.append("")
    return "\n".join(parts)


def rows(root: Mapping[str, Any], key: str, node: Mapping[str, Any], default: Any) -> Iterator[str]:
    """Yield a row of the table for a key, and for the keys below it."""
    node = resolved(root, node)
    fixed, named = node.get("properties", {}), node.get("additionalProperties")
    below = isinstance(default, Mapping) and (fixed or isinstance(named, Mapping))
    text = str(node.get("description", "")).replace("|", "\\|")
    yield f"| `{key}` | {'' if below and fixed else shown(default)} | {kind(root, node)} | {text} |"
    values = default if isinstance(default, Mapping) else {}
    for name, child in fixed.items():
        yield from rows(root, f"{key}.{name}", child, _value(values, name, resolved(root, child)))
    if isinstance(named, Mapping):
        entry = resolved(root, named)
        for name, child in entry.get("properties", {}).items():
            yield from rows(root, f"{key}.<name>.{name}", child, resolved(root, child).get("default"))


def _value(values: Mapping[Any, Any], name: str, node: Mapping[str, Any]) -> Any:
    """Return a key's default; keys that are numbers in YAML are text in a schema."""
    return values.get(name, values.get(int(name), node.get("default")) if name.isdigit() else node.get("default"))


def resolved(root: Mapping[str, Any], node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node with its reference into the file's ``$defs`` followed."""
    if "$ref" not in node:
        return dict(node)
    target = root["$defs"][str(node["$ref"]).rsplit("/", 1)[-1]]
    return resolved(root, target) | {key: value for key, value in node.items() if key != "$ref"}


def kind(root: Mapping[str, Any], node: Mapping[str, Any]) -> str:
    """Return what a key holds, in words."""
    if "enum" in node:
        return " \\| ".join(f"`{value}`" for value in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    if "anyOf" in node or "oneOf" in node:
        choices = [kind(root, resolved(root, choice)) for choice in node.get("anyOf", node.get("oneOf"))]
        return " or ".join(dict.fromkeys(choices))
    kinds = node.get("type", "any")
    words = " or ".join(
        WORDS.get(name, "text" if name == "string" else name) for name in ([kinds] if isinstance(kinds, str) else kinds)
    )
    return f"{words} ({node['format']})" if "format" in node else words


def shown(default: Any) -> str:
    """Return a default as a cell: short, in one line."""
    if default is None:
        return ""
    text = json.dumps(default, ensure_ascii=False).replace("|", "\\|")
    short = len(text) <= 80 or isinstance(default, str)
    return f"`{text}`" if short else f"see `defaults.yaml` ({len(default)} entries)"


if __name__ == "__main__":
    main()
