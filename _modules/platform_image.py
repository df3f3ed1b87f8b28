"""The images of this host's containers, by Docker's own Python library: pulled, and kept to what they were at first."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import docker.errors

from aiplatform import docker_engine, image_pins
from aiplatform.errors import NotFoundError, PlatformError
from aiplatform.schema import one_of

# What engines say where a registry answers, and has no such image.
GONE = re.compile(r"manifest unknown|not found")


def pull(image: str) -> bool:
    """Get an image where this host has not got it; returns whether it had to.

    One that is named by its version alone is from now on what it is now: see ``pins``.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_image.pull quay.io/keycloak/keycloak:26.0.7
    """
    engine, wanted = _engine(), pinned(image)
    if _has_image(engine, wanted):
        return False
    digest = _pull(engine, wanted, image)
    if digest and not image_pins.is_pinned(wanted):
        image_pins.keep(_pins_file(), image, digest)
    return True


def pins() -> dict[str, dict[str, str]]:
    """Return the images that pillar names by their version alone, with the digest of what this host pulled first.

    That is what it keeps to: a container of such an image is made of that digest, and where the image is gone it is
    pulled by that digest, whatever the registry says of the version by then. ``since`` is the time of that, in UTC.
    An image that came to the host in another way (``docker load``) has none, until it is pulled.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_image.pins
    """
    return image_pins.read(_pins_file())


def pinned(image: str) -> str:
    """Return the name by which this host pulls and runs an image: by the digest in ``pins``, where it has one.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_image.pinned ghcr.io/open-webui/open-webui:v0.12.4
    """
    return image if image_pins.is_pinned(image) else image_pins.resolve(image, pins())


def pin(image: str) -> dict[str, str | None]:
    """Take what the registry says now of an image in ``pins``; returns the digest before and now.

    The next run of its state makes the container anew where the two differ. In pillar nothing changes.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_image.pin ghcr.io/open-webui/open-webui:v0.12.4
    """
    before = _known(image)
    now = _pull(_engine(), image, image)
    if now is None:
        raise PlatformError(
            "Docker does not tell what it has pulled", where=image, expected="a line Digest: sha256:..."
        )
    image_pins.replace(_pins_file(), image, now)
    return {"old": before, "new": now}


def unpin(image: str) -> dict[str, str | None]:
    """Forget an image in ``pins``, so that the host runs what it has by that name, or else pulls it for the first time.

    That is for an image that is loaded from a file (``docker load``) where its registry is gone.

    CLI Example:

    .. code-block:: bash

        salt ai_server platform_image.unpin ghcr.io/open-webui/open-webui:v0.12.4
    """
    before = _known(image)
    image_pins.replace(_pins_file(), image, None)
    return {"old": before, "new": None}


def _known(image: str) -> str:
    known = pins()
    if image not in known:
        raise NotFoundError("This host has not pinned the image", where=image, expected=one_of(image, known))
    return known[image]["digest"]


def _pins_file() -> Path:
    return Path(__pillar__["containers"]["pins"])


def _has_image(engine: Any, image: str) -> bool:
    try:
        engine.inspect_image(image)
    except docker.errors.ImageNotFound:
        return False
    return True


def _pull(engine: Any, image: str, asked: str) -> str | None:
    """Pull an image, and return the digest that the engine told meanwhile.

    The library waits for ever where a registry falls silent, so it is waited for from outside.

    asked
        The name that pillar has for it, which the digest of an earlier pull may have replaced.
    """
    errors: list[str] = []
    lines: list[str] = []

    def work() -> None:
        try:
            for line in engine.pull(image, stream=True, decode=True):
                errors.extend([line["error"]] if "error" in line else [])
                lines.append(line.get("status", ""))
        except Exception as err:  # noqa: BLE001 (a connection that breaks off comes as an error of a library below)
            errors.append(str(err) or type(err).__name__)

    limit = __pillar__["containers"]["pull_timeout"]
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit)
    if thread.is_alive():
        errors.append(f"no end after {limit} s")
    elif not errors and not _has_image(engine, image):
        errors.append("Docker's answer has ended, and the image is not there")
    if errors:
        hint = "containers.registry and the image's digest in pillar; docker pull on the host tells more"
        if image != asked and GONE.search(errors[0]):
            hint = f"{asked} was this at first; platform_image.pin {asked} takes what it is now"
        raise PlatformError("The image cannot be pulled", where=image, actual=errors[0], hint=hint)
    return image_pins.told(lines)


def _engine() -> Any:
    return docker_engine.client(__context__)
