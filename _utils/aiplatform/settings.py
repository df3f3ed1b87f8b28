"""The effective settings: every formula's defaults under the operator's pillar.

A formula keeps its defaults in ``salt/<formula>/defaults.yaml`` and describes them in ``schema.yaml`` beside it.
The external pillar merges them here, so that states and modules find every key in place.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import yaml

from aiplatform.errors import PlatformError

Settings = dict[str, Any]

SELECTION_FILE = "model_selection.json"


class PillarError(PlatformError):
    """The pillar is wrong; ``problems`` has a line for everything that is."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("The pillar is refused:\n  " + "\n  ".join(problems))


@lru_cache(maxsize=128)
def _parsed(path: Path, changed_ns: int) -> Any:
    """Return the content of one YAML file; ``changed_ns`` makes a changed file a new cache entry."""
    del changed_ns
    # Both are safe loaders; the one in C is there where PyYAML was built with it.
    return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506


def read_yaml(path: Path) -> Settings:
    """Return a YAML file's mapping (read once until it changes; a copy, so callers may edit it)."""
    return copy.deepcopy(_parsed(path, path.stat().st_mtime_ns)) or {}


def defaults(formulas: Path) -> Settings:
    """Return the defaults of all formulas below the state tree ``formulas``, as one mapping.

    Raises ``PlatformError`` where two formulas give one key different values.
    """
    found: Settings = {}
    for path in sorted(formulas.glob("*/defaults.yaml")):
        _join(found, read_yaml(path), path, "")
    return found


def _join(into: Settings, more: Settings, path: Path, parent: str) -> None:
    for key, value in more.items():
        name = f"{parent}{key}"
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _join(into[key], value, path, f"{name}.")
        elif key in into and into[key] != value:
            raise PlatformError(
                f"Two formulas set the default of {name}", where=str(path), expected=into[key], actual=value
            )
        else:
            into[key] = value


def schemas(formulas: Path) -> dict[str, Settings]:
    """Return ``{pillar key: JSON Schema}`` from every formula's ``schema.yaml``.

    Each schema carries the ``$defs`` of its file, so that references inside a file work.
    """
    found: dict[str, Settings] = {}
    for path in sorted(formulas.glob("*/schema.yaml")):
        content = read_yaml(path)
        shared = {"$defs": content["$defs"]} if "$defs" in content else {}
        for key, schema in content.get("properties", {}).items():
            found[str(key)] = schema | shared
    return found


def merge(default: Any, wanted: Any, schema: Mapping[str, Any] | None = None) -> Any:
    """Lay ``wanted`` over ``default`` and return the result; neither is changed.

    default
        The formula's value; None where it has none.
    wanted
        The operator's value; it wins. Lists replace lists.
    schema
        The JSON Schema of this value. In a mapping whose keys the operator names (``additionalProperties`` or
        ``patternProperties``), null removes an entry that has a default, and new entries get the defaults of
        their schema's properties. Elsewhere null over a mapping means: as the defaults say.
    """
    schema = schema or {}
    if not isinstance(wanted, Mapping):
        unset = wanted is None and isinstance(default, Mapping)
        return copy.deepcopy(default if unset else wanted)
    base = default if isinstance(default, Mapping) else _schema_defaults(schema)
    merged = {key: copy.deepcopy(value) for key, value in base.items() if key not in wanted}
    for key, value in wanted.items():
        if value is None and isinstance(base.get(key), Mapping) and key not in schema.get("properties", {}):
            continue
        merged[key] = merge(base.get(key), value, _child(schema, key))
    return merged


def _schema_defaults(schema: Mapping[str, Any]) -> Settings:
    return {key: child["default"] for key, child in schema.get("properties", {}).items() if "default" in child}


def _child(schema: Mapping[str, Any], key: object) -> Mapping[str, Any]:
    """Return the schema of ``key`` inside a mapping described by ``schema``."""
    candidates = [
        schema.get("properties", {}).get(str(key)),
        *schema.get("patternProperties", {}).values(),
        schema.get("additionalProperties"),
    ]
    found = next((candidate for candidate in candidates if isinstance(candidate, Mapping)), {})
    return cast("Mapping[str, Any]", found)


def effective(pillar: Mapping[str, Any], formulas: Path) -> Settings:
    """Return the defaults with the operator's ``pillar`` over them, keys without defaults included."""
    known = schemas(formulas)
    return cast("Settings", merge(defaults(formulas), pillar, {"properties": known}))


def selection(pillar_roots: list[str]) -> Settings:
    """Return the models that the benchmark chose, or ``{}`` where it has not run.

    pillar_roots
        Folders in order of precedence; the first that holds ``model_selection.json`` counts.

    Raises ``PlatformError`` where the file is no JSON object.
    """
    path = next((file for root in pillar_roots if (file := Path(root) / SELECTION_FILE).is_file()), None)
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise _bad_selection(path, str(err)) from err
    if not isinstance(content, dict):
        raise _bad_selection(path, type(content).__name__)
    return content


def _bad_selection(path: Path, actual: str) -> PlatformError:
    return PlatformError(
        "The model selection cannot be read",
        where=str(path),
        expected="a JSON object as benchmark.select writes it",
        actual=actual,
        hint="restore it from version control, or remove it and run the benchmark phase",
    )


def load(opts: Mapping[str, Any], minion_id: str | None = None) -> Settings:
    """Return the effective pillar, compiled on the master, for runners.

    opts
        The master's options (``__opts__`` of a runner).
    minion_id
        Whose pillar; the master's own id where it is left out (no roles then, all settings).

    Raises ``PillarError`` listing every problem the pillar has.
    """
    compiled = compile_pillar(opts, minion_id)
    if errors := compiled.get("_errors"):
        raise PillarError([str(error) for error in errors])
    return compiled


def compile_pillar(opts: Mapping[str, Any], minion_id: str | None = None) -> Settings:
    """Return the pillar of ``minion_id`` as Salt compiles it, problems under ``_errors`` included."""
    import salt.pillar

    # The pillar's files use no grains: who sees what is decided by the minion's id and its roles alone.
    # Inside an orchestration the options carry its own pillar, which must not count as written by the operator.
    clean = {key: value for key, value in opts.items() if key != "pillar"}
    compiler = salt.pillar.Pillar(clean, {}, minion_id or opts["id"], opts.get("saltenv") or "base")
    try:
        return cast("Settings", compiler.compile_pillar())
    finally:
        compiler.destroy()
