"""What calls of models cost: one log line a call, and Prometheus metrics that outlive the process that made them."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, write_to_textfile
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

# Seconds: a cached answer, a short one, a long one on a slow host.
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class CallMetrics:
    """Counts calls. ``outcome`` is ``ok``, ``cached``, ``cancelled``, or the name of the error."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["operation", "model", "outcome"]
        self._calls = Counter("ollama_calls", "Calls of models.", labels, registry=self.registry)
        self._seconds = Histogram(
            "ollama_call_seconds", "From the call to its end.", labels[:2], buckets=BUCKETS, registry=self.registry
        )
        told = "From the call to the first token."
        self._first = Histogram("ollama_first_token_seconds", told, ["model"], buckets=BUCKETS, registry=self.registry)
        self._tokens = Counter("ollama_tokens", "Tokens read and written.", ["model", "kind"], registry=self.registry)

    def succeeded(
        self,
        operation: str,
        model: str,
        seconds: float,
        *,
        prompt_length: int,
        response_length: int,
        prompt_tokens: int = 0,
        tokens: int = 0,
        first_token: float | None = None,
        outcome: str = "ok",
    ) -> None:
        """Count a call that was answered, or left in mid-answer; lengths are in characters, times in seconds."""
        self._calls.labels(operation, model, outcome).inc()
        self._seconds.labels(operation, model).observe(seconds)
        if first_token is not None:
            self._first.labels(model).observe(first_token)
        self._tokens.labels(model, "prompt").inc(prompt_tokens)
        self._tokens.labels(model, "answer").inc(tokens)
        log.info(
            "ollama %s: %s: model=%s duration=%.3f s prompt_length=%d response_length=%d prompt_tokens=%d tokens=%d",
            *(operation, outcome, model, seconds, prompt_length, response_length, prompt_tokens, tokens),
        )

    def failed(self, operation: str, model: str, seconds: float, error: Exception, *, prompt_length: int) -> None:
        """Count a call that failed. The prompt itself is never logged."""
        kind = type(error).__name__
        self._calls.labels(operation, model, kind).inc()
        self._seconds.labels(operation, model).observe(seconds)
        log.warning(
            "ollama %s: %s: model=%s duration=%.3f s prompt_length=%d: %s",
            *(operation, kind, model, seconds, prompt_length, error),
        )

    def text(self) -> str:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry).decode()

    def add_to(self, path: Path) -> None:
        """Add them to those of a file, as node_exporter's textfile collector reads it; one writer at a time.

        The metrics here start from nothing again only with a new object: add each object once.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("a") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            before = path.read_text(encoding="utf-8") if path.exists() else ""
            registry = CollectorRegistry()
            registry.register(_Sum([*text_string_to_metric_families(before), *self.registry.collect()]))
            write_to_textfile(str(path), registry)


class _Sum(Collector):
    """Families of counters and histograms, those of one name added up."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        names = {(family.name, family.type): family.documentation for family in self._families}
        for (name, kind), documentation in names.items():
            if name.endswith("_created"):  # when a process began, of no use in a sum
                continue
            summed: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
            for family in self._families:
                for sample in family.samples if family.name == name else []:
                    if not sample.name.endswith("_created"):
                        at = (sample.name, tuple(sorted(sample.labels.items())))
                        summed[at] = summed.get(at, 0.0) + sample.value
            family = Metric(name, documentation, kind)
            for (sample_name, labels), value in summed.items():
                family.add_sample(sample_name, dict(labels), value)
            yield family
