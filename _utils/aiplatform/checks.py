"""Checks that name the host, what was checked, what was expected and what was found.

A family of checks is a function ``(host) -> {name: check}`` beside the logic that it uses; a suite has its families
listed once, in ``preflight.SUITE`` or ``verification.SUITE``. A new service brings a family and its line there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from salt.exceptions import CommandExecutionError

from aiplatform import vault_policy

GIGABYTE = 10**9
Answer = TypeVar("Answer")
# What a check may raise when it cannot be made.
FAULTS = (CommandExecutionError, OSError, LookupError, TypeError, ValueError)


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    ``check`` is its name with its argument, such as ``free space on /mnt/ai_data``; ``expected`` and ``actual``
    are in words, numbers with their units; ``hint`` is what to do where it failed.
    """

    check: str
    ok: bool
    expected: str
    actual: str
    hint: str = ""

    def on(self, host: str) -> dict[str, Any]:
        """Return the finding as data, with the host it was made on."""
        return {"host": host} | vars(self)


def sentence(finding: Mapping[str, Any]) -> str:
    """Return a finding's four fields as one line, and the hint where it failed."""
    line = "host: {host}; check: {check}; expected: {expected}; actual: {actual}".format(**finding)
    return line if finding["ok"] or not finding.get("hint") else f"{line}; next: {finding['hint']}"


def state(name: str, finding: Mapping[str, Any]) -> dict[str, Any]:
    """Return a finding as the return of a state; a check never changes anything, so a dry run makes it too."""
    return {"name": name, "result": bool(finding["ok"]), "changes": {}, "comment": sentence(finding)}


def run(name: str, check: Callable[[], Finding]) -> Finding:
    """Return the check's finding; a check that cannot be made has failed."""
    try:
        return check()
    except FAULTS as err:
        return Finding(name, ok=False, expected="the check can be made", actual=str(err) or type(err).__name__)


@dataclass(frozen=True)
class Host:
    """The host that is checked, as Salt knows it.

    ``pillar`` and ``grains`` are its own; ``salt`` has Salt's execution functions by name; ``memory`` keeps what was
    asked once for several checks of one run (Salt's ``__context__``).
    """

    id: str
    pillar: Mapping[str, Any]
    grains: Mapping[str, Any]
    salt: Mapping[str, Callable[..., Any]]
    memory: MutableMapping[str, Any]

    @property
    def roles(self) -> Sequence[str]:
        """The roles that the host holds."""
        roles: Sequence[str] = self.pillar["roles"]
        return roles

    @property
    def holds_vault(self) -> bool:
        """Whether it is the host of Vault, and so of all else that there is once."""
        return "ai_server" in self.roles and vault_policy.is_vault_host(self.pillar, self.id)

    def once(self, name: str, ask: Callable[[], Answer]) -> Answer:
        """Return what ``ask`` returned when ``name`` was first asked for in this run."""
        if name not in self.memory:
            self.memory[name] = ask()
        answer: Answer = self.memory[name]
        return answer


def aside(work: Callable[[], Answer]) -> Future[Answer]:
    """Begin work beside the checks. It calls no function of Salt, which are not for several threads."""
    pool = ThreadPoolExecutor(max_workers=1)
    started = pool.submit(work)
    pool.shutdown(wait=False)
    return started


@dataclass(frozen=True)
class Aside:
    """A check that mostly waits: a run of many calls ``begin`` before it makes the first of them.

    ``judge`` is the check; where nothing has begun, it begins.
    """

    begin: Callable[[], object]
    judge: Callable[[], Finding]

    def __call__(self) -> Finding:
        """Make the check."""
        return self.judge()


Check = Callable[[], Finding]
Family = Callable[[Host], Mapping[str, Check]]


class Suite:
    """Families of checks; which of their checks a host has depends on its roles and its pillar."""

    def __init__(self, *families: Family) -> None:
        self._families = families

    def names(self, host: Host) -> list[str]:
        """Return the names of the host's checks, in the order of the families."""
        return list(self._of(host))

    def check(self, host: Host, name: str) -> dict[str, Any]:
        """Make one check and return the finding as data; a check that the host has not got has failed."""
        return run(name, lambda: self._of(host)[name]()).on(host.id)

    def _begin(self, host: Host, names: Sequence[str]) -> None:
        known = self._of(host)
        for check in (known.get(name) for name in names):
            if isinstance(check, Aside):
                # What went wrong is told where it is judged.
                with suppress(*FAULTS):
                    check.begin()

    def run(self, host: Host, only: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Make the host's checks whose name begins as one of ``only``; all where that is empty."""
        begins = tuple(only) or ("",)
        names = [name for name in self.names(host) if name.startswith(begins)]
        self._begin(host, names)
        return [self.check(host, name) for name in names]

    def _of(self, host: Host) -> dict[str, Check]:
        return {name: check for family in self._families for name, check in family(host).items()}
