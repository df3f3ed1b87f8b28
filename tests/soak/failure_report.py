"""The page of failures, made of what the test has measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HEAD = """\
# When something fails

Written by `tests/soak/test_failures.py` (`make soak`), with what it measured on the lab; the same as data:
[failures.json](failures.json). Seconds depend on the machine: the lab has two CPUs for all hosts.

People and tools were at work all the time, each about once a second: names asked of CoreDNS, the API with a general and
with a coding model, the chat, a search in a document, signing on at Keycloak, a secret read in Vault.

## Killed

Each process was killed with SIGKILL. Nobody helped: what is in the column "heals by" did. After each, all slots were
loaded and `salt-run ai_platform.verify` was run.

"""
BY_HAND = """
## Broken by hand

"""


def write(folder: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    """Write ``failures.json`` and ``failures.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "failures.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "failures.md").write_text(page(found))


def page(found: dict[str, list[dict[str, Any]]]) -> str:
    """The page's text."""
    killed = [
        [
            row["what"],
            "; ".join(row["goes_on"]) or "nothing",
            "; ".join(f"{use}: {_said(errors)}" for use, errors in row["stops"].items()) or "nobody noticed",
            f"{row['seconds']:g}",
            row["healed_by"],
            _verified(row["verify"]),
        ]
        for row in found["killed"]
    ]
    by_hand = [
        [
            row["what"],
            row["answer"],
            f"{row['seconds']:g}",
            "; ".join(row["stops"]) or "nobody",
            _verified(row["verify"]),
        ]
        for row in found["by hand"]
    ]
    first = _table(["killed", "goes on", "says meanwhile", "seconds until all is well", "heals by", "verify"], killed)
    second = _table(["what", "answer", "seconds", "who noticed", "verify"], by_hand)
    return f"{HEAD}{first}{BY_HAND}{second}"


def _said(errors: list[str]) -> str:
    return " / ".join(f"`{error.replace('|', chr(92) + '|')}`" for error in errors)


def _verified(checks: dict[str, Any]) -> str:
    failed = checks["failed"]
    return f"{checks['checks']} checks pass" if not failed else f"{len(failed)} of {checks['checks']} fail"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
