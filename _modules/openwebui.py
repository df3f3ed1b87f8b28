"""Open WebUI on this host: the settings of its container."""

from __future__ import annotations

from aiplatform import webui


def environment(bundle: str) -> dict[str, str]:
    """Return the environment of the container, its secrets apart.

    bundle
        The file with the authorities to trust, as the container sees it.

    CLI Example:

    .. code-block:: bash

        salt ai_server openwebui.environment /etc/ssl/certs/ca-certificates.crt
    """
    return webui.environment(__pillar__, bundle)


def command() -> list[str]:
    """Return the container's command: the application with the platform's rules.

    CLI Example:

    .. code-block:: bash

        salt ai_server openwebui.command
    """
    every = "0.0.0.0"  # noqa: S104 (within the container; Docker publishes on one address of the host)
    serve = ["python3", "-m", "uvicorn", "platform_app:app", "--host", every, "--port", "8080"]
    return [*serve, "--forwarded-allow-ips", ",".join(webui.proxies(__pillar__)) or "127.0.0.1"]


def hosts() -> dict[str, str]:
    """Return the names that the container finds without DNS: that of the sign-on, at the proxy.

    CLI Example:

    .. code-block:: bash

        salt ai_server openwebui.hosts
    """
    return webui.known_hosts(__pillar__)
