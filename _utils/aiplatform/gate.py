"""The gate that an instance has to pass after a start: it answers, with the version that was meant, from its store."""

from __future__ import annotations

from collections.abc import Callable

from aiplatform import ollama, wait
from aiplatform.errors import PlatformError, WaitTimeoutError

# A service that systemd had to start again this often will not come up by waiting.
RESTARTS = 3


def passed(name: str, url: str, version: str, timeout: float, restarts: Callable[[], int] = lambda: 0) -> None:
    """Wait until an instance answers, with this version and the list of its models.

    name, url
        The instance.
    timeout
        Seconds to wait.
    restarts
        How often systemd has started it again by itself since it was told to start it.

    Raises ``PlatformError`` where it does not, at once where it keeps ending.
    """
    client = ollama.Client(url)
    hint = f"read its journal on the host: journalctl -t ollama-{name} -n 50"

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
    found = client.version()
    if found != version:
        hint = "who else holds this port?"
        raise PlatformError("Another version answers", where=url, expected=version, actual=found, hint=hint)
    client.tags()
