"""Errors of the platform: each says what failed, where, and what was expected and found."""

from __future__ import annotations

from salt.exceptions import CommandExecutionError


class PlatformError(CommandExecutionError):
    """A failure that a person can act on.

    what
        One sentence: what failed.
    where
        Host, URL, file or pillar key it concerns.
    expected, actual
        What should have been, and what was.

    Hint:
        What to do next.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        expected: object = None,
        actual: object = None,
        hint: str = "",
    ) -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.actual = actual
        self.hint = hint
        super().__init__(_sentence(what, where, expected, actual, hint))


class WaitTimeoutError(PlatformError):
    """A condition did not come true in time."""


class NotFoundError(PlatformError):
    """The thing that an operation needs does not exist."""


def _sentence(what: str, where: str, expected: object, actual: object, hint: str) -> str:
    parts = [what]
    if where:
        parts.append(f"where: {where}")
    if expected is not None:
        parts.append(f"expected: {expected}")
    if actual is not None:
        parts.append(f"actual: {actual}")
    if hint:
        parts.append(f"next: {hint}")
    return "; ".join(parts)
