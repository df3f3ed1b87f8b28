"""The gate that an instance has to pass after a start: it answers itself, with the version meant, from its store."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from aiplatform import ollama, port_holders, wait
from aiplatform.errors import PlatformError, WaitTimeoutError

# A service that systemd had to start again this often will not come up by waiting.
RESTARTS = 3


def passed(
    name: str,
    url: str,
    version: str,
    timeout: float,
    restarts: Callable[[], int] = lambda: 0,
    log_command: str = "",
    unit: str = "",
) -> None:
    """Wait until an instance answers, with this version and the list of its models.

    name, url
        The instance.
    version
        What it has to answer; empty: any.
    timeout
        Seconds to wait.
    restarts
        How often systemd has started it again by itself since it was told to start it.
    log_command
        What shows its log on the host; empty: the journal of a native instance.
    unit
        The systemd unit that has to be the one who answers; empty: whoever does.

    Raises ``PlatformError`` where it does not, at once where it keeps ending.
    """
    client = ollama.Client(url)
    hint = f"read its log on the host: {log_command or f'journalctl -t ollama-{name} -n 50'}"

    def refuse_where_it_ended(often: int) -> None:
        if (count := restarts()) >= often:
            raise PlatformError("The instance keeps ending", where=url, actual=f"started {count} times", hint=hint)

    def answers() -> bool:
        refuse_where_it_ended(RESTARTS)
        return client.health()

    try:
        wait.until(answers, timeout, interval=0.1, what=f"Ollama at {url}")
    except WaitTimeoutError as err:
        # A busy host starts it less often in that time.
        refuse_where_it_ended(1)
        raise PlatformError(f"The instance does not answer within {timeout:g} s", where=url, hint=hint) from err
    if unit:
        _demand_unit(url, unit)
    found = client.version()
    if version and found != version:
        hint = "who else holds this port?"
        raise PlatformError("Another version answers", where=url, expected=version, actual=found, hint=hint)
    client.tags()


def _demand_unit(url: str, unit: str) -> None:
    """Refuse an answer of anybody else: another server of this port and version would pass for the instance."""
    parts = urlsplit(url)
    found = port_holders.holders(parts.port or 0, parts.hostname or "")
    if not found or any(holder.unit != unit for holder in found):
        raise PlatformError(
            "Another than the instance's unit answers",
            where=url,
            expected=unit,
            actual=f"held by {'; '.join(map(str, found))}" if found else "no process of this host listens there",
            hint=f"stop who holds the port (systemctl disable --now, docker stop), then: systemctl restart {unit}",
        )
