"""Waiting for a condition, with a limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from aiplatform.errors import WaitTimeoutError

Value = TypeVar("Value")


def until(
    check: Callable[[], Value],
    timeout: float,
    interval: float = 0.5,
    what: str = "the condition",
) -> Value:
    """Call ``check`` until it returns something true, and return that.

    check
        Asks for the condition; it is called at least once, and once more at the deadline.
    timeout
        Seconds until giving up.
    interval
        Seconds between two calls.
    what
        What is awaited, for the error's text.

    Raises ``WaitTimeoutError`` with ``what``, the limit and the last answer.
    """
    deadline = time.monotonic() + timeout
    while True:
        answer = check()
        if answer:
            return answer
        left = deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeoutError(
                f"Waited {timeout:g} s in vain for {what}",
                expected=what,
                actual=answer,
            )
        time.sleep(min(interval, left))
