"""The files of Ollama's store: is what lies there what its name says, and one name given another's content in one step.

Ollama compares a blob with its digest when it has downloaded it, and never again; and it writes a manifest in place, so
that whoever reads the name in that moment finds half a file. Both are done here, on the files themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiplatform import manifests
from aiplatform.errors import NotFoundError, PlatformError

_CHUNK = 8 << 20
# Models are pulled side by side, by threads.
_remembering = threading.Lock()


class Blobs:
    """The store below a folder, with a memory of which blobs are known to be whole."""

    def __init__(self, folder: Path, memory: Path | None = None) -> None:
        """Take the folder that ``OLLAMA_MODELS`` names, and the file to remember in (None: nothing is remembered)."""
        self._folder = folder
        self._memory = memory

    def blob(self, digest: str) -> Path:
        """Return the file of a blob by its 64 hex digits."""
        return self._folder / "blobs" / f"sha256-{digest}"

    def manifest(self, name: str) -> Path:
        """Return the file that says what a name stands for."""
        return manifests.path(self._folder, name)

    def layers(self, name: str) -> dict[str, int]:
        """Return ``{digest: bytes}`` of what a name is made of; empty where its manifest cannot be read."""
        try:
            content = json.loads(self.manifest(name).read_text(encoding="utf-8"))
            rows = [content["config"], *content["layers"]]
            return {str(row["digest"]).removeprefix("sha256:"): int(row["size"]) for row in rows}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def damaged(self, name: str) -> dict[str, str]:
        """Return ``{digest: what is wrong}`` of a name's blobs.

        A file is read once; after that its size, time and inode say whether it is still the same.
        """
        known = self._known()
        found, whole = {}, {}
        for digest, size in self.layers(name).items():
            if known.get(digest) != self._identity(digest) or not known.get(digest):
                if wrong := self._wrong(digest, size):
                    found[digest] = wrong
                else:
                    whole[digest] = self._identity(digest)
        self._remember(whole)
        return found

    def trust(self, name: str) -> None:
        """Take the blobs of a name for whole, as after a pull, at the end of which Ollama has compared them."""
        self._remember({digest: self._identity(digest) for digest in self.layers(name)})

    def discard(self, digest: str) -> None:
        """Remove a damaged blob, so that a pull fetches it again: Ollama takes what is there for right."""
        self.blob(digest).unlink(missing_ok=True)

    def take_places(self, names: Mapping[str, str]) -> None:
        """Let each name stand for what its staged one stands for, each in one step.

        The staged names stay: Ollama looks at every manifest at every request, and answers "model not found" to a
        request for any model where one of them disappears meanwhile.

        names
            ``{staged name: name}``.

        :raises NotFoundError: one of the staged names is gone; no name has changed then.
        :raises PlatformError: the store cannot be written; no name has changed where there was no room for all.
        """
        pairs = [(self.manifest(staged), self.manifest(name)) for staged, name in names.items()]
        for staged, name in pairs:
            if not staged.is_file():
                hint = "somebody deleted it meanwhile"
                raise NotFoundError(f"{name.parent.name} cannot be given its model", where=str(staged), hint=hint)
        # Beside the manifests, where Ollama does not look.
        drafts = [self._folder / f".{os.getpid()}.{number}.manifest" for number in range(len(pairs))]
        try:
            for draft, (staged, name) in zip(drafts, pairs, strict=True):
                _prepare(draft, staged, name)
            for draft, (_, name) in zip(drafts, pairs, strict=True):
                draft.replace(name)
        except OSError as err:
            hint = "the store needs room on its disk, must be writable, and be one file system"
            where = str(err.filename2 or err.filename or self._folder)
            raise PlatformError(
                "The names cannot be given their model", where=where, actual=err.strerror, hint=hint
            ) from err
        finally:
            for draft in drafts:
                with suppress(OSError):
                    draft.unlink()

    def _wrong(self, digest: str, size: int) -> str:
        path = self.blob(digest)
        try:
            actual = path.stat().st_size
        except OSError as err:
            return str(err.strerror)
        if actual != size:
            return f"{actual} of {size} bytes"
        found = _sha256(path)
        return "" if found == digest else f"its content has the digest {found[:12]}"

    def _identity(self, digest: str) -> list[int]:
        try:
            stat = self.blob(digest).stat()
        except OSError:
            return []
        return [stat.st_size, stat.st_mtime_ns, stat.st_ino]

    def _known(self) -> dict[str, Any]:
        try:
            content = json.loads(self._memory.read_text(encoding="utf-8")) if self._memory else {}
        except (OSError, ValueError):
            return {}  # it is only a memory: what is lost is read again
        return content if isinstance(content, dict) else {}

    def _remember(self, whole: Mapping[str, Any]) -> None:
        if self._memory is None:
            return
        with _remembering:
            known = self._known()
            merged = {**known, **whole}
            if merged == known:
                return
            there = {digest: identity for digest, identity in merged.items() if self.blob(digest).exists()}
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            draft = self._memory.with_name(f"{self._memory.name}.{os.getpid()}")
            draft.write_text(json.dumps(there), encoding="utf-8")
            draft.replace(self._memory)


def _prepare(draft: Path, staged: Path, name: Path) -> None:
    """Write what a name is to stand for, beside it."""
    name.parent.mkdir(parents=True, exist_ok=True)
    # A copy, no link: Ollama writes the staged name again in place.
    shutil.copy2(staged, draft)
    owner = staged.stat()
    os.chown(draft, owner.st_uid, owner.st_gid)


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file, and leave nothing of it in the page cache.

    What is read here lands on the memory of the node that reads; a model of the other node would find its room taken.
    """
    total = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        at = 0
        while chunk := stream.read(_CHUNK):
            total.update(chunk)
            os.posix_fadvise(stream.fileno(), at, len(chunk), os.POSIX_FADV_DONTNEED)
            at += len(chunk)
    return total.hexdigest()
