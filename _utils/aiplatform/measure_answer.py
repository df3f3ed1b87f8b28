"""One streamed answer: when its tokens came, how fast they were made, and what Ollama itself says of both."""

from __future__ import annotations

import heapq
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from aiplatform.ollama import NANOSECONDS, Chunk, Limits, OllamaError, Timeout

MILLISECONDS = 1000.0
# Who counted the tokens of an answer: Ollama in its last piece, Ollama in a second answer with `logprobs`, or
# nobody, so that each piece is taken for one token.
BY_OLLAMA = "ollama"
BY_LOGPROBS = "logprobs"
BY_PIECES = "pieces"


class Instance(Protocol):
    """What measuring needs of ``aiplatform.ollama.Client``, which says what each method does (hence each noqa)."""

    def load(self, model: str, *, options: Mapping[str, Any], keep_alive: float, limits: Limits) -> None: ...  # noqa: D102
    def unload(self, model: str, *, limits: Limits = ...) -> None: ...  # noqa: D102
    def generate(self, model: str, prompt: str, *, limits: Limits = ..., **fields: Any) -> Iterator[Chunk]: ...  # noqa: D102
    def health(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class Sample:
    """One answered prompt. Times named ``ollama`` and rates are Ollama's own, the others are its client's.

    ``error`` says why there is no answer; then ``text`` is None and the figures count as the worst. ``token_ms`` has
    one latency a token, from the second on; ``model_s`` is the time from when the request left to its last piece.
    ``ollama_prompt_ms`` is what Ollama counts as loading and as reading the prompt. ``timed_out_s`` is the limit that
    the answer ran into. ``disturbed`` says what else the host was busy with, after so many ``attempts``.
    """

    text: str | None = None
    error: str | None = None
    timed_out_s: float | None = None
    ttft_ms: float | None = None
    ollama_ttft_ms: float | None = None
    ollama_prompt_ms: float | None = None
    wall_s: float = 0.0
    model_s: float = 0.0
    tokens: int = 0
    counted: str = BY_OLLAMA
    tokens_per_second: float = 0.0
    wall_tokens_per_second: float | None = None
    gap_ms: float | None = None
    token_ms: tuple[float, ...] = ()
    prompt_tokens: int = 0
    prompt_tokens_per_second: float | None = None
    finished: str | None = None
    disturbed: str | None = None
    attempts: int = 1


class _Piece(NamedTuple):
    """A piece of an answer that has any text: seconds after the request, text, tokens (0: it does not say).

    ``made`` is Ollama's own time of it, seconds since 1970; None where it has none.
    """

    at: float
    text: str
    tokens: int
    made: float | None = None


class _Answer(NamedTuple):
    """The pieces with text, the last piece's data, when that came, and how long all of it took; seconds."""

    pieces: list[_Piece]
    last: Mapping[str, Any]
    ended: float
    wall_s: float


def answered(chunks: Iterable[Chunk], clock: Callable[[], float] = time.monotonic) -> Sample:
    """Take in a streamed answer.

    The first piece with any text, thinking included, ends the time to first token. Rates come from Ollama's own counts;
    where it gave none, from the pieces and their times.
    """
    return _sample(_collected(chunks, clock))


def _collected(chunks: Iterable[Chunk], clock: Callable[[], float] = time.monotonic) -> _Answer:
    started = clock()
    pieces: list[_Piece] = []
    chunk = Chunk(0.0, {})
    for chunk in chunks:
        data = chunk.data
        if data.get("response") or data.get("thinking"):
            text, named = str(data.get("response") or ""), len(data.get("logprobs") or ())
            pieces.append(_Piece(chunk.at, text, named, _stamp(data)))
    return _Answer(pieces, chunk.data, chunk.at, clock() - started)


def _stamp(data: Mapping[str, Any]) -> float | None:
    try:
        return datetime.fromisoformat(data["created_at"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None


def _ollama_ttft(answer: _Answer) -> float | None:
    """Return by Ollama's own clock the seconds from the request to the first piece with text.

    Ollama stamps every piece, and counts in the last one how long the request has taken (``total_duration``, from
    ``server/routes.go``): so it also says when the request came.
    """
    first, last, total = answer.pieces[0].made if answer.pieces else None, _stamp(answer.last), answer.last
    return first - (last - _seconds(total, "total")) if first and last and total.get("total_duration") else None


def _sample(answer: _Answer) -> Sample:
    pieces, last = answer.pieces, answer.last
    times, told = [piece.at for piece in pieces], [piece.tokens for piece in pieces]
    tokens, counted = _count(last, told)
    held = told if counted == BY_LOGPROBS else spread(times, tokens, _seconds(last, "eval"))
    latencies = token_latencies(times, held)
    rate, ollama_ttft = _rate(last, "eval"), _ollama_ttft(answer)
    wall_rate = sum(held[1:]) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else None
    return Sample(
        text="".join(piece.text for piece in pieces),
        ttft_ms=times[0] * MILLISECONDS if times else None,
        ollama_ttft_ms=None if ollama_ttft is None else ollama_ttft * MILLISECONDS,
        ollama_prompt_ms=_seconds(last, "load", "prompt_eval") * MILLISECONDS or None,
        wall_s=answer.wall_s,
        model_s=answer.ended,
        tokens=tokens,
        counted=counted,
        tokens_per_second=rate if rate is not None else wall_rate or 0.0,
        wall_tokens_per_second=wall_rate,
        gap_ms=statistics.median(latencies) if latencies else None,
        token_ms=tuple(round(value, 3) for value in latencies),
        prompt_tokens=int(last.get("prompt_eval_count") or 0),
        prompt_tokens_per_second=_rate(last, "prompt_eval"),
        finished=last.get("done_reason"),
    )


def _count(last: Mapping[str, Any], told: Sequence[int]) -> tuple[int, str]:
    if last.get("eval_count"):
        return int(last["eval_count"]), BY_OLLAMA
    return (sum(told), BY_LOGPROBS) if any(told) else (len(told), BY_PIECES)


def _seconds(last: Mapping[str, Any], *parts: str) -> float:
    return sum(float(last.get(f"{part}_duration") or 0) for part in parts) / NANOSECONDS


def _rate(last: Mapping[str, Any], part: str) -> float | None:
    count, seconds = last.get(f"{part}_count"), _seconds(last, part)
    return float(count) / seconds if count and seconds else None


def spread(times: Sequence[float], tokens: int, making: float) -> list[int]:
    """Return how many tokens each piece of an answer held, at least one.

    Ollama sends several tokens in one piece where a character is made of more than one, or where they might begin a
    stop sequence. A token takes about as long as any other, so the pieces that were longest in coming held more: each
    further token goes to the piece with the longest time a token so far.

    times
        When each piece came, in seconds.
    tokens
        All tokens of the answer.
    making
        The seconds that making all of them took; what the gaps between the pieces leave of it is the first one's.
    """
    held = [1] * len(times)
    if not held:
        return held
    gaps = [later - earlier for earlier, later in pairwise(times)]
    gaps = [max(0.0, making - sum(gaps)), *gaps]
    waiting = [(-gap, place) for place, gap in enumerate(gaps)]
    heapq.heapify(waiting)
    for _ in range(tokens - len(times)):
        place = waiting[0][1]
        held[place] += 1
        heapq.heapreplace(waiting, (-gaps[place] / held[place], place))
    return held


def token_latencies(times: Sequence[float], held: Sequence[int]) -> list[float]:
    """Return the time of each token after the one before it, in milliseconds, from the second piece on."""
    found: list[float] = []
    for (earlier, later), count in zip(pairwise(times), held[1:], strict=True):
        found += [(later - earlier) * MILLISECONDS / count] * count
    return found


def percentiles(values: Iterable[float], *wanted: int) -> dict[str, float]:
    """Return ``{"p50": …}``: the smallest value that at least so many percent of them do not exceed; {} of nothing."""
    ordered = sorted(values)
    return {f"p{share}": ordered[max(0, -(-share * len(ordered) // 100) - 1)] for share in wanted if ordered}


def ask(
    instance: Instance, model: str, prompt: str, options: Mapping[str, Any], seconds: float, **fields: Any
) -> Sample:
    """Ask one prompt and return its sample; a refusal or a timeout is a sample with an error.

    options
        Ollama's options, the load options included: without them the model would be loaded again.
    seconds
        The limit for the whole answer.

    An answer without counts is asked for a second time, after the measurement, with each token named.

    Raises ``OllamaError`` where the instance itself is gone: that says nothing about the model.
    """
    limits = Limits(read=seconds, total=seconds)
    request = {"limits": limits, "think": False, "options": dict(options), **fields}
    started = time.monotonic()
    try:
        answer = _collected(instance.generate(model, prompt, **request))
        if answer.pieces and _count(answer.last, [piece.tokens for piece in answer.pieces])[1] == BY_PIECES:
            named = _collected(instance.generate(model, prompt, **request, logprobs=True))
            answer = answer._replace(pieces=_counted_by(named.pieces, answer.pieces))
    except OllamaError as err:
        took, limit = time.monotonic() - started, seconds if isinstance(err, Timeout) else None
        if not instance.health():
            raise
        return Sample(error=str(err), timed_out_s=limit, wall_s=took, model_s=took)
    return _sample(answer)


def _counted_by(named: Sequence[_Piece], pieces: Sequence[_Piece]) -> list[_Piece]:
    """Return the pieces with the tokens of an answer that names each; as they are where that is another answer."""
    if [piece.text for piece in named] != [piece.text for piece in pieces]:
        return list(pieces)
    return [piece._replace(tokens=other.tokens) for piece, other in zip(pieces, named, strict=True)]
