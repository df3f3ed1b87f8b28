"""A beacon that a state gives a minion: told to the one that runs, and written for its next start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from aiplatform.errors import PlatformError
from aiplatform.states import converge


def watched(
    name: str,
    options: list[dict[str, Any]] | None,
    opts: Mapping[str, Any],
    salt: Mapping[str, Callable[..., Any]],
) -> dict[str, Any]:
    """Return the state of a beacon that the minion has with these options; None takes it away.

    name
        The beacon's.
    opts, salt
        The state's ``__opts__`` and ``__salt__``.

    Without a master there is nobody to tell: nothing is done.
    """
    target = Path(opts["conf_file"]).parent / "minion.d" / f"{name}.conf"
    content = yaml.safe_dump({"beacons": {name: options}}) if options is not None else None
    return converge(
        name,
        plan=lambda: {} if opts.get("file_client") == "local" else _changes(target, content),
        apply=lambda: _apply(name, options, target, content, salt),
        test=opts["test"],
    )


def _changes(target: Path, wanted: str | None) -> dict[str, Any]:
    present = target.read_text(encoding="utf-8") if target.is_file() else None
    return {} if present == wanted else {str(target): {"old": present, "new": wanted}}


def _apply(
    name: str,
    options: list[dict[str, Any]] | None,
    target: Path,
    content: str | None,
    salt: Mapping[str, Callable[..., Any]],
) -> None:
    salt["beacons.delete"](name)
    if content is None:
        target.unlink(missing_ok=True)
        return
    answer = salt["beacons.add"](name, options)
    if not answer["result"]:
        raise PlatformError(f"The minion does not take the beacon {name}", actual=answer["comment"])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(content, encoding="utf-8")
