"""Calls of models as a service makes them: retried where that is safe, bounded by a deadline, kept, counted.

``Caller`` stands on ``ollama.Client``, which sends one request and names what went wrong.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import tenacity

from aiplatform import answer_cache, ollama, prompts
from aiplatform.call_metrics import CallMetrics

log = logging.getLogger(__name__)
Value = TypeVar("Value")

# Once nothing of an answer was handed out, these may be asked again: a model's answer changes nothing anywhere.
RETRIED = (ollama.InstanceDown, ollama.Timeout, ollama.ServerFailed)


@dataclass(frozen=True)
class Retries:
    """How often a call is tried, and the waits between, in seconds.

    After a time-out ``after_timeout``; after any other error ``base`` times 2 for each try, at most ``longest``, and up
    to ``jitter`` of it more, so that clients that failed together do not come back together.
    """

    attempts: int = 3
    base: float = 1.0
    longest: float = 8.0
    jitter: float = 0.25
    after_timeout: float = 1.0


@dataclass(frozen=True)
class Answer:
    """What a model said, and what it cost.

    Attributes:
        model: the model that answered, which is the fallback where the first one could not.
        first_token: seconds until the first token; None for a kept answer.
        seconds: from the call to its end, retries included.
        prompt_tokens, tokens: as Ollama counted them.
        reason: why it ended: ``stop``, or ``length`` where ``num_predict`` cut it.
    """

    text: str
    model: str
    seconds: float = 0.0
    first_token: float | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    reason: str = ""
    cached: bool = False


class Caller:
    """Calls the models of one instance. Not safe for several threads at once, except cache and metrics.

    client
        The instance.
    fallback
        A model that answers where the asked one is missing or does not fit; None: the error is raised.
    limits
        Of each try, where a call gives none of its own.
    cache
        Where answers of deterministic requests are kept; None: nowhere.
    metrics
        Where calls are counted.
    """

    def __init__(
        self,
        client: ollama.Client,
        *,
        retries: Retries | None = None,
        limits: ollama.Limits = ollama.ANSWERING,
        fallback: str | None = None,
        cache: answer_cache.AnswerCache[Answer] | None = None,
        metrics: CallMetrics | None = None,
    ) -> None:
        self.client = client
        self.retries = retries or Retries()
        self.limits = limits
        self.fallback = fallback
        self.cache = cache
        self.metrics = metrics or CallMetrics()

    def generate(self, model: str, prompt: str, **how: Any) -> Answer:
        """Complete a prompt. ``how``: as for ``ask``, and the fields of the API, such as ``options`` and ``system``."""
        return self.ask("generate", model, {"prompt": prompt}, **how)

    def chat(self, model: str, messages: list[dict[str, Any]], **how: Any) -> Answer:
        """Continue a conversation of ``{"role", "content"}``; otherwise as ``generate``."""
        return self.ask("chat", model, {"messages": messages}, **how)

    def try_generate(self, model: str, prompt: str, **how: Any) -> Answer | None:
        """Complete a prompt, or return None where no model can, for callers that go on without; the log says why."""
        try:
            return self.generate(model, prompt, **how)
        except ollama.OllamaError as err:
            log.warning("Going on without an answer of %s: %s", model, err)
            return None

    def ask(
        self,
        operation: str,
        model: str,
        request: Mapping[str, Any],
        *,
        limits: ollama.Limits | None = None,
        deadline: float | None = None,
        on_text: Callable[[str], None] | None = None,
        **fields: Any,
    ) -> Answer:
        """Ask a model and return its whole answer.

        :param operation: ``generate`` or ``chat``.
        :param limits: of each try, in place of the caller's.
        :param deadline: seconds for everything, tries and waits included.
        :param on_text: given each piece of the answer as it comes. After the first piece nothing is tried again, since
            the pieces cannot be taken back.
        :raises OllamaError: the error of the last try.
        """
        body = {**request, **fields}
        started = time.monotonic()
        ends = None if deadline is None else started + deadline
        length = _length(request)
        try:
            name = self._name(model, body, ends)
            answer = self._kept(name) or self._answered(operation, model, body, limits, ends, on_text)
        except Exception as err:  # whatever it is, it is counted, and raised to the caller
            self.metrics.failed(operation, model, time.monotonic() - started, err, prompt_length=length)
            raise
        answer = replace(answer, seconds=time.monotonic() - started)
        # Not where another model came to answer to that name meanwhile.
        if not answer.cached and answer.model == model and name and self._name(model, body, ends) == name:
            self._keep(name, answer)
        self.metrics.succeeded(
            *(operation, answer.model, answer.seconds),
            prompt_length=length,
            response_length=len(answer.text),
            prompt_tokens=answer.prompt_tokens,
            tokens=answer.tokens,
            first_token=answer.first_token,
            outcome="cached" if answer.cached else "ok",
        )
        if answer.cached and on_text:
            on_text(answer.text)
        return answer

    def stream(
        self,
        model: str,
        prompt: str,
        *,
        limits: ollama.Limits | None = None,
        deadline: float | None = None,
        **fields: Any,
    ) -> Iterator[str]:
        """Complete a prompt, piece by piece. Leaving the loop early cancels the answer on the server too.

        Up to the first piece it is tried again, and answered by the fallback, as in ``ask``; ``deadline`` is over
        everything. No answer is kept.
        """
        started, length, told = time.monotonic(), len(prompt), 0
        ends = None if deadline is None else started + deadline
        first: float | None = None
        counts: dict[str, Any] = {}
        outcome, name = "ok", model
        try:
            name, begun, rest = self._begun(model, {"prompt": prompt, **fields}, limits, ends)
            with contextlib.closing(rest):
                for chunk in itertools.chain([begun], rest):
                    counts = chunk.data
                    text = _text(chunk.data)
                    if text:
                        first = first if first is not None else chunk.at
                        told += len(text)
                        yield text
        except GeneratorExit:  # the loop was left
            outcome = "cancelled"
        except ollama.OllamaError as err:
            self.metrics.failed("generate", model, time.monotonic() - started, err, prompt_length=length)
            raise
        self.metrics.succeeded(
            *("generate", name, time.monotonic() - started),
            prompt_length=length,
            response_length=told,
            prompt_tokens=counts.get("prompt_eval_count", 0),
            tokens=counts.get("eval_count", 0),
            first_token=first,
            outcome=outcome,
        )

    def embed(self, model: str, texts: list[str], *, deadline: float | None = None, **fields: Any) -> list[list[float]]:
        """Return one vector a text, retried like an answer."""

        def once(left: ollama.Limits) -> list[list[float]]:
            return self.client.embed(model, texts, limits=left, **fields)

        return self._counted("embed", model, sum(map(len, texts)), lambda: self.again(once, deadline))

    def fit(self, text: str, model: str, tokens: int = prompts.BUDGET_TOKENS, *, deadline: float | None = None) -> str:
        """Return the text within a budget of the model's own tokens.

        Where the model is loaded, it is asked how many tokens it makes of samples, first of the whole text and then of
        what would be left of it, which may be denser; else 4 characters count as one. ``deadline``: seconds for all.
        """
        ends = None if deadline is None else time.monotonic() + deadline
        if len(text) <= tokens or not self.client.loaded(model, limits=_within(ollama.QUICK, ends)):
            return prompts.truncate(text, tokens)

        def count(part: str) -> int:
            return self.count(part, model, deadline=_left(ends))

        for _ in range(2):
            text = prompts.truncate(text, tokens, prompts.measured(count, text))
        return text

    def count(self, text: str, model: str, *, deadline: float | None = None) -> int:
        """Return how many tokens a model makes of a text that fits its context, retried like an answer.

        One token is generated for it.
        """

        def once(left: ollama.Limits) -> int:
            chunks = self.client.generate(model, text, raw=True, options={"num_predict": 1}, limits=left)
            return max(int(chunk.data.get("prompt_eval_count", 0)) for chunk in chunks)

        return self._counted("count", model, len(text), lambda: self.again(once, deadline))

    def again(
        self,
        call: Callable[[ollama.Limits], Value],
        deadline: float | None = None,
        limits: ollama.Limits | None = None,
        may_retry: Callable[[], bool] = lambda: True,
    ) -> Value:
        """Call until it succeeds, as ``retries`` says, and never beyond the deadline (seconds).

        call
            Given the limits of this try: no longer than what is left.
        may_retry
            Asked before each further try.
        """
        ends = None if deadline is None else time.monotonic() + deadline
        stop: Any = tenacity.stop_after_attempt(self.retries.attempts)
        if deadline is not None:
            stop = stop | tenacity.stop_before_delay(deadline)
        tries = tenacity.Retrying(
            stop=stop,
            wait=self._pause,
            retry=tenacity.retry_if_exception(lambda err: isinstance(err, RETRIED) and may_retry()),
            before_sleep=self._tell,
            reraise=True,
        )
        return tries(lambda: call(_within(limits or self.limits, ends)))

    def _pause(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, ollama.Timeout):
            return self.retries.after_timeout
        jitter = tenacity.wait_random(0, self.retries.jitter)(state)
        seconds = min(self.retries.base * 2 ** (state.attempt_number - 1), self.retries.longest)
        return float(seconds * (1 + jitter))

    def _tell(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        told = (state.attempt_number, self.retries.attempts, state.upcoming_sleep, error)
        log.warning("Try %d of %d failed, the next one in %.2f s: %s", *told)

    def _kept(self, name: str) -> Answer | None:
        found = self.cache.get(name) if self.cache is not None and name else None
        return replace(found, cached=True, first_token=None) if found else None

    def _keep(self, name: str, answer: Answer) -> None:
        if self.cache is not None:
            self.cache.put(name, answer)

    def _name(self, model: str, body: Mapping[str, Any], ends: float | None) -> str:
        """What the answer is kept under; empty where it is not, or where the model cannot be asked about in time."""
        if self.cache is None or not answer_cache.is_deterministic(body.get("options")):
            return ""
        try:
            return answer_cache.key(self.client.show(model, limits=_within(ollama.QUICK, ends)), body)
        except ollama.OllamaError:
            return ""

    def _answered(
        self,
        operation: str,
        model: str,
        body: Mapping[str, Any],
        limits: ollama.Limits | None,
        ends: float | None,
        on_text: Callable[[str], None] | None,
    ) -> Answer:
        handed_out: list[str] = []

        def hand_out(text: str) -> None:
            if on_text:
                handed_out.append(text)
                on_text(text)

        def once(name: str) -> Callable[[ollama.Limits], Answer]:
            return lambda left: self._once(operation, name, body, left, hand_out)

        return self._or_fallback(once, model, limits, ends, lambda: not handed_out)

    def _begun(
        self, model: str, body: Mapping[str, Any], limits: ollama.Limits | None, ends: float | None
    ) -> tuple[str, ollama.Chunk, Any]:
        """A stream whose first piece has come: the model that answers, that piece, and those to come."""

        def once(name: str) -> Callable[[ollama.Limits], tuple[str, ollama.Chunk, Any]]:
            def begin(left: ollama.Limits) -> tuple[str, ollama.Chunk, Any]:
                chunks = self.client.generate(name, **body, limits=left)
                return name, next(one for one in chunks if _text(one.data) or one.data.get("done")), chunks

            return begin

        return self._or_fallback(once, model, limits, ends)

    def _or_fallback(
        self,
        once: Callable[[str], Callable[[ollama.Limits], Value]],
        model: str,
        limits: ollama.Limits | None,
        ends: float | None,
        may_retry: Callable[[], bool] = lambda: True,
    ) -> Value:
        """Call with the model, and with its substitute where it is missing or does not fit."""
        try:
            return self.again(once(model), _left(ends), limits, may_retry)
        except (ollama.ModelNotFound, ollama.OutOfMemory) as err:
            if self.fallback in (None, model) or not may_retry():
                raise
            log.warning("%s answers instead of %s: %s", self.fallback, model, err)
            return self.again(once(str(self.fallback)), _left(ends), limits, may_retry)

    def _counted(self, operation: str, model: str, length: int, call: Callable[[], Value]) -> Value:
        """Make a call that has no text for an answer, and count it."""
        started = time.monotonic()
        try:
            value = call()
        except Exception as err:  # whatever it is, it is counted, and raised to the caller
            self.metrics.failed(operation, model, time.monotonic() - started, err, prompt_length=length)
            raise
        self.metrics.succeeded(operation, model, time.monotonic() - started, prompt_length=length, response_length=0)
        return value

    def _once(
        self,
        operation: str,
        model: str,
        body: Mapping[str, Any],
        limits: ollama.Limits,
        hand_out: Callable[[str], None],
    ) -> Answer:
        call: Any = self.client.generate if operation == "generate" else self.client.chat
        parts: list[str] = []
        first: float | None = None
        counts: dict[str, Any] = {}
        for chunk in call(model, **body, limits=limits):
            counts = chunk.data
            text = _text(chunk.data)
            if text:
                first = first if first is not None else chunk.at
                parts.append(text)
                hand_out(text)
        return Answer(
            text="".join(parts),
            model=model,
            first_token=first,
            prompt_tokens=counts.get("prompt_eval_count", 0),
            tokens=counts.get("eval_count", 0),
            reason=str(counts.get("done_reason", "")),
        )


@contextlib.contextmanager
def counted(client: ollama.Client, path: str | None, **how: Any) -> Iterator[Caller]:
    """A caller whose calls are added to the metrics of a file when it ends.

    client
        Closed at the end.
    path
        The file; None: nowhere. Where it cannot be written, or is damaged, the log says so: an answer is worth more.
    how
        As for ``Caller``.
    """
    caller = Caller(client, **how)
    try:
        with client:
            yield caller
    finally:
        if path:
            try:
                caller.metrics.add_to(Path(path))
            except (OSError, ValueError) as err:
                log.warning("Calls of models are not counted in %s, move it away if it is damaged: %s", path, err)


def _text(piece: Mapping[str, Any]) -> str:
    """The text of a piece, of either path."""
    return str(piece.get("response") or piece.get("message", {}).get("content") or "")


def _length(request: Mapping[str, Any]) -> int:
    """The characters of a prompt or of all messages."""
    return len(request.get("prompt", "")) + sum(len(str(m.get("content", ""))) for m in request.get("messages", []))


def _left(ends: float | None) -> float | None:
    """Seconds until ``ends`` of the monotonic clock; a moment where that has passed, None where there is no end."""
    return None if ends is None else max(ends - time.monotonic(), 0.001)


def _within(limits: ollama.Limits, ends: float | None) -> ollama.Limits:
    """The limits, cut to what is left until ``ends``."""
    left = _left(ends)
    if left is None:
        return limits
    return replace(limits, connect=min(limits.connect, left), total=min(limits.total or left, left))
