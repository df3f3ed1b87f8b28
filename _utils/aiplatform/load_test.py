"""A load test of one instance: so many answers, so many at once, for so long, and what they took."""

from __future__ import annotations

import ipaddress
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from aiplatform import ollama, tables
from aiplatform.errors import PlatformError

# No test may take a server for longer, or with more clients, than this.
MOST_COUNT = 10_000
MOST_CONCURRENCY = 64
MOST_SECONDS = 3600.0
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Plan:
    """What is sent: ``count`` requests by ``concurrency`` clients, none begun after ``duration`` seconds."""

    model: str
    prompt: str = "Say hello."
    count: int = 5
    concurrency: int = 5
    duration: float = 60.0
    num_predict: int = 32

    def __post_init__(self) -> None:
        for name, most in (("count", MOST_COUNT), ("concurrency", MOST_CONCURRENCY), ("duration", MOST_SECONDS)):
            if not 0 < getattr(self, name) <= most:
                raise PlatformError(
                    "The load test is not bounded as it must be",
                    where=name,
                    expected=f"more than 0, at most {most:g}",
                    actual=getattr(self, name),
                )


@dataclass(frozen=True)
class Outcome:
    """One request: seconds until its first token and its end, its tokens, and the name of its error."""

    first: float | None = None
    seconds: float = 0.0
    tokens: int = 0
    error: str = ""


def demand_own(url: str, addresses: Collection[str]) -> None:
    """Refuse to load a server that is not this host or one of the platform's.

    addresses
        The addresses of the platform's hosts.
    """
    host = urlsplit(url).hostname or ""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError as err:
        raise PlatformError("The host of the load test has no address", where=url, actual=str(err)) from err
    strangers = sorted(one for one in found if not ipaddress.ip_address(one).is_loopback and one not in addresses)
    if strangers:
        raise PlatformError(
            "A load test goes to the platform's own hosts only",
            where=url,
            expected="this host, or an address of pillar platform:hosts",
            actual=", ".join(strangers),
            hint="anywhere=True, for a server whose owner agreed",
        )


def run(client: Callable[[], ollama.Client], plan: Plan) -> dict[str, Any]:
    """Run a load test; returns its figures.

    client
        Makes a client; each thread has one of its own.
    """
    begin = time.monotonic()
    left = iter(range(plan.count))
    guard = threading.Lock()

    def work() -> list[Outcome]:
        done = []
        with client() as own:
            while time.monotonic() - begin < plan.duration:
                with guard:
                    if next(left, None) is None:
                        break
                ends = max(begin + plan.duration - time.monotonic(), 0.001)
                done.append(one(own, plan, ends))
        return done

    with ThreadPoolExecutor(plan.concurrency) as pool:
        parts = [pool.submit(work) for _ in range(plan.concurrency)]
        outcomes = [outcome for part in parts for outcome in part.result()]
    return figures(plan, outcomes, time.monotonic() - begin)


def one(client: ollama.Client, plan: Plan, seconds: float) -> Outcome:
    """Send one request, given up after ``seconds``."""
    begin = time.monotonic()
    first: float | None = None
    tokens = 0
    try:
        limits = ollama.Limits(read=seconds, total=seconds)
        options = {"num_predict": plan.num_predict}
        for chunk in client.generate(plan.model, plan.prompt, limits=limits, options=options):
            if first is None and chunk.data.get("response"):
                first = chunk.at
            tokens = int(chunk.data.get("eval_count", tokens))
    except ollama.OllamaError as err:
        return Outcome(first, time.monotonic() - begin, tokens, type(err).__name__)
    return Outcome(first, time.monotonic() - begin, tokens)


def figures(plan: Plan, outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Return what the requests took: percentiles in seconds, throughput, errors by name, ``retcode`` 1 with errors."""
    good = [outcome for outcome in outcomes if not outcome.error]
    tokens = sum(outcome.tokens for outcome in good)
    return {
        "model": plan.model,
        "requests": len(outcomes),
        "not_begun": plan.count - len(outcomes),
        "succeeded": len(good),
        "errors": dict(Counter(outcome.error for outcome in outcomes if outcome.error)),
        "concurrency": plan.concurrency,
        "seconds": round(seconds, 3),
        "requests_per_second": round(len(good) / seconds, 3) if seconds else 0.0,
        "tokens_per_second": round(tokens / seconds, 2) if seconds else 0.0,
        "latency": percentiles(outcome.seconds for outcome in good),
        "first_token": percentiles(outcome.first for outcome in good if outcome.first is not None),
        "retcode": 0 if len(good) == plan.count else 1,
    }


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """Return minimum, percentiles by the nearest rank and maximum, in seconds; nothing of nothing.

    >>> percentiles([1.0, 2.0])["p50"]
    1.0
    """
    ranked = sorted(values)
    if not ranked:
        return {}
    found = {f"p{share}": ranked[math.ceil(len(ranked) * share / 100) - 1] for share in PERCENTILES}
    return {name: round(value, 4) for name, value in ({"min": ranked[0]} | found | {"max": ranked[-1]}).items()}


def text(result: dict[str, Any]) -> str:
    """The figures for people."""
    names = ["min", *(f"p{share}" for share in PERCENTILES), "max"]
    rows = [
        [label, *(f"{result[key][name]:.3f}" if result[key] else "-" for name in names)]
        for key, label in (("latency", "whole answer"), ("first_token", "first token"))
    ]
    errors = ", ".join(f"{count} {name}" for name, count in sorted(result["errors"].items())) or "none"
    answered = f"{result['model']}: {result['succeeded']} of {result['requests']} requests answered"
    speed = f"{result['requests_per_second']:.2f} requests/s, {result['tokens_per_second']:.1f} tokens/s"
    lines = [
        f"{answered}, {result['concurrency']} at once, {result['seconds']:.1f} s",
        f"{speed}; errors: {errors}; not begun in time: {result['not_begun']}",
        "",
        tables.table(["seconds", *names], rows),
    ]
    return "\n".join(lines)
