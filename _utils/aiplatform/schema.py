"""Checks of the settings: their JSON Schemas, and what no schema can say about two keys at once.

Every problem names the key, its value and what was expected, and all problems are found in one go.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jsonschema

from aiplatform import settings
from aiplatform.tables import table

Settings = Mapping[str, Any]
ROTATING_SLOTS = (5, 6)
# Keys that Salt itself reads from pillar; an operator may use them beside the platform's.
SALT_KEYS = frozenset({"beacons", "mine_functions", "mine_interval", "schedule", "_errors"})
# Keys that hold a secret wherever they stand.
_SECRET = re.compile(r"(^|_)(password|passwd|passphrase|secret|token|api_key|private_key|unseal_key)$")
# Below this key the values say how each secret is made.
_GENERATED = "vault.secrets."
_MODEL = re.compile(r"^[^\s:]+(:\d+/[^\s:]+)?:[\w][\w.-]*$")
_DOMAIN = re.compile(r"^(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
_FORMATS = {
    "address": "an IP address",
    "domain": "a DNS domain in lower case",
    "tagged-model": "a model name with its tag, such as llama3.1:8b",
    "sha256": "a SHA-256 digest (64 hexadecimal digits)",
}
_TYPES = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a setting."""

    key: str
    value: Any
    expected: str

    def __str__(self) -> str:
        """Return the problem as one line."""
        return f"{self.key}: is {self.value!r}, expected {self.expected}"


def as_table(lines: Iterable[str]) -> str:
    """Return problems, each a line as ``str(Problem)`` makes it, as a table; other lines keep their text."""
    matches = [(line, re.fullmatch(r"(.+?): is (.*), expected (.*)", line, re.DOTALL)) for line in lines]
    return table(["key", "is", "expected"], [match.groups() if match else ("", "", line) for line, match in matches])


def nearest(name: object, known: Iterable[object]) -> str:
    """Return the known name most like ``name``; empty where none is near."""
    matches = difflib.get_close_matches(str(name), [str(item) for item in known], n=1, cutoff=0.6)
    return matches[0] if matches else ""


def one_of(name: object, known: Iterable[object]) -> str:
    """Return "one of a, b, c", with the nearest to ``name`` pointed out."""
    names = [str(item) for item in known]
    near = nearest(name, names)
    return f"one of {', '.join(names) or 'none at all'}" + (f" (did you mean {near}?)" if near else "")


def problems(merged: Settings, formulas: Path, written: Settings) -> list[Problem]:
    """Return all that is wrong with the settings.

    merged
        The effective settings.
    formulas
        The state tree with the formulas' schemas.
    written
        What the operator wrote, before the defaults.
    """
    known = settings.schemas(formulas)
    found = list(unknown_keys(merged, known)) + list(literal_secrets(written))
    for key, schema in known.items():
        if key in merged:
            found += against_schema(key, merged[key], schema)
    # Two keys can only be compared when each is of the right shape.
    return found or [problem for check in CROSS_CHECKS for problem in check(merged)]


def unknown_keys(merged: Settings, known: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each top-level key that no formula describes."""
    for key, value in merged.items():
        if key not in known and key not in SALT_KEYS and key != "selection":
            yield Problem(str(key), _short(value), f"a known key: {one_of(key, known)}")


def literal_secrets(written: Any, path: str = "") -> Iterator[Problem]:
    """Yield a problem for each key that looks like a secret and holds text; the text is not shown."""
    if not isinstance(written, Mapping):
        return
    for key, value in written.items():
        name = f"{path}{key}"
        if isinstance(value, str) and value and _SECRET.search(str(key)) and not name.startswith(_GENERATED):
            yield Problem(name, "(hidden)", "no secret in pillar: secrets are kept in Vault")
        yield from literal_secrets(value, f"{name}.")


def against_schema(key: str, value: Any, schema: Settings) -> list[Problem]:
    """Return what JSON Schema finds wrong with the value of a top-level key."""
    validator = jsonschema.Draft202012Validator(dict(schema), format_checker=_format_checker())
    errors = sorted(validator.iter_errors(_as_json(value)), key=lambda error: [str(part) for part in error.path])
    described = [problem for error in errors for problem in _described(key, error)]
    return list({str(problem): problem for problem in described}.values())


def _format_checker() -> jsonschema.FormatChecker:
    checker = jsonschema.FormatChecker(formats=())
    tests: dict[str, Callable[[str], bool]] = {
        "address": is_address,
        "domain": lambda text: bool(_DOMAIN.match(text)),
        "tagged-model": is_tagged,
        "sha256": lambda text: bool(re.fullmatch(r"[0-9a-f]{64}", text)),
    }
    for name, test in tests.items():
        checker.checks(name)(lambda value, test=test: not isinstance(value, str) or test(value))
    return checker


def is_address(text: str) -> bool:
    """Say whether ``text`` is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_tagged(model: str) -> bool:
    """Say whether a model name carries its tag (``registry:5000/a/b`` does not, ``registry:5000/a/b:q4`` does)."""
    return bool(_MODEL.match(model))


def _described(key: str, error: jsonschema.ValidationError) -> Iterator[Problem]:
    path = ".".join([key, *(str(part) for part in error.absolute_path)])
    schema = cast("dict[str, Any]", error.schema)
    instance: Any = error.instance
    match error.validator:
        case "additionalProperties":
            allowed = schema.get("properties", {})
            for name in sorted(instance.keys() - allowed.keys()):
                value = _short(instance[name])
                yield Problem(f"{path}.{name}", value, f"a known key: {one_of(name, allowed)}")
        case "required":
            for name in cast("list[str]", error.validator_value):
                if name not in instance:
                    yield Problem(f"{path}.{name}", None, _wanted(schema.get("properties", {}).get(name, {})))
        case "anyOf" | "oneOf":
            choices = [_wanted(choice) for choice in cast("list[Any]", error.validator_value)]
            yield Problem(path, _short(instance), schema.get("description") or " or ".join(choices))
        case _:
            yield Problem(path, _short(instance), _expectation(error))


def _expectation(error: jsonschema.ValidationError) -> str:
    """Return what the violated rule wants, in words."""
    limit: Any = error.validator_value
    texts: dict[str, Callable[[], str]] = {
        "type": lambda: _type_words(limit),
        "enum": lambda: one_of(error.instance, limit),
        "const": lambda: repr(limit),
        "format": lambda: _FORMATS.get(limit, str(limit)),
        "pattern": lambda: f"text that matches {limit}",
        "minimum": lambda: f"at least {limit}",
        "exclusiveMinimum": lambda: f"more than {limit}",
        "maximum": lambda: f"at most {limit}",
        "exclusiveMaximum": lambda: f"less than {limit}",
        "minLength": lambda: f"at least {limit} characters",
        "minItems": lambda: f"at least {limit} entries",
        "minProperties": lambda: f"at least {limit} entries",
        "maxItems": lambda: f"at most {limit} entries",
        "maxProperties": lambda: f"at most {limit} entries",
        "uniqueItems": lambda: "each entry once",
    }
    return texts.get(str(error.validator), lambda: error.message)()


def _wanted(schema: Settings) -> str:
    """Return in words what a schema describes."""
    if "format" in schema:
        return _FORMATS.get(schema["format"], str(schema["format"]))
    if "enum" in schema:
        return one_of("", schema["enum"])
    words = _type_words(schema["type"]) if "type" in schema else "a value"
    return f"{words} ({schema['description'].rstrip('.')})" if "description" in schema else words


def _type_words(kinds: str | list[str]) -> str:
    return " or ".join(_TYPES[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _as_json(value: Any) -> Any:
    """Return ``value`` as JSON has it: every key is text (slots are numbered in YAML)."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(child) for key, child in value.items()}
    return [_as_json(child) for child in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> Any:
    """Return a value as an error may show it: whole where it is small."""
    if isinstance(value, Mapping):
        return f"a mapping of {len(value)}"
    return f"a list of {len(value)}" if isinstance(value, list) and len(value) > 5 else value


# --- Two keys at once -------------------------------------------------------------------------------------------


def check_units(merged: Settings) -> Iterator[Problem]:
    """Each instance has a unit of its own: of two with one, the second would overwrite the first."""
    taken: dict[str, str] = {}
    for name, instance in merged.get("ollama", {}).get("instances", {}).items():
        if (other := taken.setdefault(instance["unit"], name)) != name:
            wanted = f"a unit of its own: instance {other} has this one"
            yield Problem(f"ollama.instances.{name}.unit", instance["unit"], wanted)


def check_hosts(merged: Settings) -> Iterator[Problem]:
    """Two hosts with one address are one host by two names."""
    seen: dict[str, str] = {}
    for name, host in merged["platform"]["hosts"].items():
        if (other := seen.setdefault(host["address"], name)) != name:
            wanted = f"an address of its own: {other} has this one"
            yield Problem(f"platform.hosts.{name}.address", host["address"], wanted)


def check_slots(merged: Settings) -> Iterator[Problem]:
    """A slot stands on an instance that exists, and only rotating slots name their model."""
    instances = merged.get("ollama", {}).get("instances", {})
    taken: dict[str, object] = {}
    for number, slot in merged.get("slots", {}).items():
        key = f"slots.{number}"
        if "instance" in slot and slot["instance"] not in instances:
            yield Problem(f"{key}.instance", slot["instance"], one_of(slot["instance"], instances))
        model = slot.get("model")
        if model is None:
            continue
        if int(number) not in ROTATING_SLOTS:
            yield Problem(f"{key}.model", model, "null: only slots 5 and 6 rotate, the others are the benchmark's")
        if not is_tagged(model):
            yield Problem(f"{key}.model", model, _FORMATS["tagged-model"])
        if (other := taken.setdefault(model.lower(), number)) != number:
            yield Problem(f"{key}.model", model, f"a model of its own: slot {other} holds this one")


def check_aliases(merged: Settings) -> Iterator[Problem]:
    """An alias names a slot that exists, or a tagged model, and not both."""
    slots = {str(number) for number in merged.get("slots", {})}
    for name, alias in merged.get("aliases", {}).items():
        slot, model = alias.get("slot"), alias.get("model")
        if (slot is None) == (model is None):
            yield Problem(f"aliases.{name}", alias, "either slot: <number> or model: <name:tag>")
        elif slot is not None and str(slot) not in slots:
            yield Problem(f"aliases.{name}.slot", slot, one_of(slot, sorted(slots)))
        elif model is not None and not is_tagged(model):
            yield Problem(f"aliases.{name}.model", model, _FORMATS["tagged-model"])


def check_load_options(merged: Settings) -> Iterator[Problem]:
    """Ollama reloads a model whose load options differ between two calls: aliases of one model agree on them."""
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, alias in merged.get("aliases", {}).items():
        target = f"slot {alias['slot']}" if alias.get("slot") is not None else f"model {alias.get('model')}"
        if alias.get("num_ctx") is not None:
            groups[target][name] = alias["num_ctx"]
    for target, sizes in groups.items():
        first, wanted = next(iter(sizes.items()))
        for name, num_ctx in sizes.items():
            if num_ctx != wanted:
                reason = f"{wanted}, as alias {first} of {target} has it: one model has one context size"
                yield Problem(f"aliases.{name}.num_ctx", num_ctx, reason)


def check_certificate_days(merged: Settings) -> Iterator[Problem]:
    """A deploy renews Vault's certificate before the verification, its last phase, finds it too old."""
    least, renewed = merged.get("verify", {}).get("certificate_days"), merged.get("vault", {}).get("renew_days")
    if least and renewed is not None and least >= renewed:
        yield Problem("verify.certificate_days", least, f"less than vault.renew_days ({renewed}): it is renewed then")


def check_run(merged: Settings) -> Iterator[Problem]:
    """Hosts that a run is limited to are hosts of the platform."""
    for name in merged.get("limit", []):
        if name not in merged["platform"]["hosts"]:
            yield Problem("limit", name, one_of(name, merged["platform"]["hosts"]))


CROSS_CHECKS: tuple[Callable[[Settings], Iterator[Problem]], ...] = (
    check_units,
    check_hosts,
    check_slots,
    check_aliases,
    check_load_options,
    check_certificate_days,
    check_run,
)
