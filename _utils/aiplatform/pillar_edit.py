"""One line of the operator's pillar changed by a command: comments stay, and the file is replaced in one step."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from aiplatform import origins
from aiplatform.errors import PlatformError


def find(roots: Iterable[str], number: int) -> Path:
    """Return the pillar file that says what is in a slot.

    Raises ``PlatformError`` where that is no file, or more than one.
    """
    holding = [(path, origins.entries(path)) for path in origins.files(roots)]
    for key in (f"slots.{number}", "slots"):
        hits = [str(path) for path, entries in holding if key in entries]
        if len(hits) == 1:
            return Path(hits[0])
        if hits:
            break
    raise PlatformError(
        f"It is not clear which pillar file says what is in slot {number}",
        where=", ".join(roots),
        expected=f"one file of plain YAML with slots: {{{number}: ...}}",
        actual=", ".join(hits) or "none",
        hint="write the model there by hand, and apply the state models",
    )


def slot_model(text: str, number: int, model: str | None, force: bool) -> str:
    """Return a pillar file's text with this model in the slot; comments, order and quotes stay as they are.

    Raises ``PlatformError`` where the text is no plain YAML.
    """
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 4096
    # Its own way to write null is nothing at all.
    yaml.representer.add_representer(type(None), lambda one, _: one.represent_scalar("tag:yaml.org,2002:null", "null"))
    try:
        content = yaml.load(text)
        rows = content["slots"]
        key = next((key for key in rows if str(key) == str(number)), number)
        if rows.get(key) is None:
            rows[key] = yaml.map()
        rows[key]["model"] = model
        rows[key].pop("force", None)
        if force and model:
            rows[key]["force"] = True
    except (YAMLError, KeyError, TypeError, AttributeError) as err:
        hint = "write the model there by hand, and apply the state models"
        raise PlatformError(
            "The pillar file cannot be edited", where=f"slots.{number}", expected="plain YAML", actual=err, hint=hint
        ) from err
    written = io.StringIO()
    yaml.dump(content, written)
    return written.getvalue()


def write(path: Path, text: str) -> None:
    """Replace a file in one step, with the same owner and mode.

    Raises ``PlatformError`` with the path where it cannot be written; it is as it was then.
    """
    try:
        _replace(path, text)
    except OSError as err:
        hint = "has its disk room, and may the master write there?"
        raise PlatformError(
            "The pillar file cannot be written", where=str(path), actual=err.strerror or err, hint=hint
        ) from err


def _replace(path: Path, text: str) -> None:
    before = path.stat()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chown(name, before.st_uid, before.st_gid)
        Path(name).chmod(before.st_mode & 0o7777)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
