"""Ollama on this host: its releases, its instances and their models.

Functions that take ``instance`` mean one of pillar ``ollama:instances``. Every failure is an error with a name, which
says what to do next.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from salt.exceptions import SaltException

from aiplatform import instances as described
from aiplatform import numa, release, slots
from aiplatform import ollama as api


def instances() -> dict[str, dict[str, Any]]:
    """Return what the unit of each instance needs: name, URL, command, environment, threads, warnings.

    Refused where the instances do not fit this host, see ``numa.plan``.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.instances
    """
    bindings = {name: numa.Binding(**plan) for name, plan in __salt__["numa.plan"]().items()}
    return described.describe(__pillar__, bindings)


def models_dir() -> str:
    """Return the folder of the store.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.models_dir
    """
    return described.models_dir(__pillar__)


def warmup_unit(instance: str) -> str:
    """Return the systemd unit that warms up an instance.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.warmup_unit node0
    """
    return slots.warmup_unit(__pillar__["ollama"]["instances"][instance]["unit"])


def retire(unit: str) -> bool:
    """Stop and disable an instance's unit and its warm-up's, and remove their files. Its models stay in the store.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.retire ollama-node0.service
    """
    # The warm-up first: it requires the instance, and would be reported as failed at every start of the host.
    for gone in (slots.warmup_unit(unit), unit):
        if (described.UNITS / gone).is_file():
            __salt__["service.stop"](gone)
            __salt__["service.disable"](gone)
            (described.UNITS / gone).unlink()
    shutil.rmtree(described.UNITS / f"{unit}.d", ignore_errors=True)
    __salt__["service.systemctl_reload"]()
    return True


def version(instance: str) -> str:
    """Return the version that an instance reports.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.version node1
    """
    return _client(instance).version()


def list_models(instance: str) -> list[dict[str, Any]]:
    """Return the models in the store: name, digest of the manifest, size in bytes, details.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.list_models node1
    """
    return _client(instance).tags()


def ps(instance: str) -> list[dict[str, Any]]:
    """Return the loaded models of an instance.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.ps node1
    """
    return _client(instance).ps()


def show(instance: str, model: str) -> dict[str, Any]:
    """Return modelfile, parameters, template and details of a model.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.show node1 llama3.2:3b
    """
    return _client(instance).show(model)


def digest(instance: str, model: str) -> str:
    """Return the digest of a model's weights: the same for every name of them.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.digest node1 llama3.2:3b
    """
    return _client(instance).digest(model)


def pull(instance: str, model: str, insecure: bool = False) -> dict[str, Any]:
    """Fetch a model into the store; carries on where an earlier pull broke off. Returns the last progress event.

    insecure
        The registry speaks plain HTTP.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.pull node1 llama3.2:3b
    """
    event: dict[str, Any] = {}
    for event in _client(instance).pull(model, insecure=insecure):  # noqa: B007 (the last one is returned)
        pass
    return event


def copy(instance: str, source: str, destination: str) -> bool:
    """Give a model a second name.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.copy node1 llama3.2:3b family:latest
    """
    _client(instance).copy(source, destination)
    return True


def delete(instance: str, model: str) -> bool:
    """Delete a name from the store; weights that another name uses stay.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.delete node1 family:latest
    """
    _client(instance).delete(model)
    return True


def load(instance: str, model: str, keep_alive: float = -1) -> bool:
    """Load a model and wait until it answers.

    keep_alive
        Seconds that it stays after its last use; -1 for ever.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.load node1 llama-family
    """
    _client(instance).load(model, keep_alive=keep_alive)
    return True


def unload(instance: str, model: str) -> bool:
    """Unload a model and wait until it is gone.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.unload node1 llama-family
    """
    _client(instance).unload(model)
    return True


def generate(instance: str, model: str, prompt: str) -> str:
    """Return a model's answer to one prompt.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.generate node1 llama-family 'Why is the sky blue?'
    """
    return "".join(chunk.data.get("response", "") for chunk in _client(instance).generate(model, prompt))


def pinned_release() -> dict[str, Any]:
    """Return version, URL and hash of the release that the pillar names for this host's processor.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.pinned_release
    """
    return vars(_release())


def is_installed() -> bool:
    """Return whether the release that the pillar names is unpacked on this host.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.is_installed
    """
    wanted = _release()
    return release.is_installed(_folder(wanted), wanted.sha256)


def install() -> str:
    """Fetch, check and unpack the release that the pillar names; returns its folder. What runs is not touched.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.install
    """
    wanted = _release()
    sha256 = wanted.sha256
    if not sha256:
        listing = _fetch(str(wanted.checksums))
        sha256 = release.listed_hash(listing.read_text(encoding="utf-8"), wanted.archive)
    archive = _fetch(wanted.url, sha256)
    try:
        release.check(archive, sha256, wanted.url)
        release.unpack(archive, _folder(wanted), sha256)
    finally:
        _forget(archive)
    return str(_folder(wanted))


def _release() -> release.Release:
    ollama = __pillar__["ollama"]
    return release.pinned(
        ollama["version"], __grains__["cpuarch"], ollama["source"], ollama["hashes"], ollama["checksums"]
    )


def _folder(wanted: release.Release) -> Path:
    return Path(__pillar__["ollama"]["root"]) / wanted.version


def _fetch(url: str, sha256: str | None = None) -> Path:
    try:
        path = __salt__["cp.cache_file"](url, source_hash=sha256)
    except SaltException as err:
        raise release.ReleaseError("The file cannot be fetched", where=url, actual=str(err)) from err
    if not path or not Path(path).is_file():
        raise release.ReleaseError("The file cannot be fetched", where=url, hint="is ollama:source right?")
    return Path(path)


def _forget(fetched: Path) -> None:
    """Remove a copy that Salt made; what was read where it lay (file://) is somebody else's."""
    if fetched.is_relative_to(__opts__["cachedir"]):
        fetched.unlink(missing_ok=True)


def _client(instance: str) -> api.Client:
    return api.Client(described.base_url(__pillar__, instance))
