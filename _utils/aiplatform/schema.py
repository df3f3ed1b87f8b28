"""Checks of the settings: their JSON Schemas, and what no schema can say about two keys at once.

Every problem names the key, its value and what was expected, and all problems are found in one go.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jsonschema

from aiplatform import settings
from aiplatform.tables import table

Settings = Mapping[str, Any]
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
    "network": "an IP address or a network such as 192.0.2.0/24",
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
    """One thing wrong with a setting; ``at`` is the file and line of its key, where they are known."""

    key: str
    value: Any
    expected: str
    at: str = ""

    def __str__(self) -> str:
        """Return the problem as one line."""
        key = f"{self.key} ({self.at})" if self.at else self.key
        return f"{key}: is {self.value!r}, expected {self.expected}"


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
    quoted = list(quoted_numbers(written))
    found = [*unknown_keys(merged, known), *literal_secrets(written), *quoted]
    for key, schema in known.items():
        # Where a number stands in quotes, the table has two rows of it: nothing else can be said of them.
        if key in merged and not (quoted and key == "slots"):
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


def quoted_numbers(written: Settings) -> Iterator[Problem]:
    """Yield a problem for each slot whose number is text.

    It would be a row beside the one of that number; and what a run is given by ``pillar=`` Salt adds as it is written.
    """
    slots = written.get("slots")
    for key in slots if isinstance(slots, Mapping) else ():
        if isinstance(key, str) and key.isdecimal():
            yield Problem(f"slots.{key}", key, f"the number {key} without quotes")


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
        "network": is_network,
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


def is_network(text: str) -> bool:
    """Say whether ``text`` is an address or a network in CIDR notation, without bits of a host in it."""
    try:
        ipaddress.ip_network(text)
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
                shown = "(hidden)" if _SECRET.search(str(name)) else value
                yield Problem(f"{path}.{name}", shown, f"a known key: {one_of(name, allowed)}")
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
    check_certificate_days,
    check_run,
)
