"""What each client can do with a real instance: every row is done by both, and says what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import ollama as official

from aiplatform import ollama as ours

COPY, MADE = "comparison-copy:1", "comparison-made:1"
OPTIONS = {"num_predict": 4, "temperature": 0, "seed": 1}
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
SAID = [{"role": "user", "content": "Say hello."}]


Row = tuple[str, Callable[[], object], Callable[[], object]]


def features(url: str, model: str, embedding: str) -> list[tuple[str, str, str]]:
    """Each feature, and whether the official client and ours did it.

    ``model`` answers, is pulled from the registry in its name and pushed there, and is copied, built upon and unloaded;
    what is made of it is deleted again. ``embedding`` makes vectors.
    """
    client, mine = official.Client(host=url), ours.Client(url)
    answer = {"options": OPTIONS}
    rows: list[Row] = [
        ("health of the instance", lambda: client.health(), mine.health),
        ("version of the instance", lambda: client.version(), mine.version),
        ("models of the store", lambda: client.list().models, mine.tags),
        ("modelfile and parameters", lambda: client.show(model).modelfile, lambda: mine.show(model)["modelfile"]),
        ("identity of the weights", lambda: client.digest(model), lambda: mine.digest(model)),
        (
            "answer, streamed",
            lambda: [*client.generate(model, "Say hello.", stream=True, **answer)],
            lambda: [*mine.generate(model, "Say hello.", **answer)],
        ),
        (
            "conversation, streamed",
            lambda: [*client.chat(model, SAID, stream=True, **answer)],
            lambda: [*mine.chat(model, SAID, **answer)],
        ),
        (
            "seconds to the first token",
            lambda: next(client.generate(model, "Say hello.", stream=True, **answer)).at,
            lambda: next(mine.generate(model, "Say hello.", **answer)).at,
        ),
        (
            "within a JSON Schema",
            lambda: begins_as_data(client.generate(model, "Ada is 36.", format=SCHEMA, **answer).response),
            lambda: begins_as_data(mine.generate(model, "Ada is 36.", format=SCHEMA, **answer)),
        ),
        (
            "vectors of texts",
            lambda: client.embed(embedding, ["a text"]).embeddings,
            lambda: mine.embed(embedding, ["a text"]),
        ),
        (
            "pull, with progress",
            lambda: [*client.pull(model, insecure=True, stream=True)],
            lambda: [*mine.pull(model, insecure=True)],
        ),
        (
            "push, with progress",
            lambda: [*client.push(model, insecure=True, stream=True)],
            lambda: [*mine.push(model, insecure=True)],
        ),
        ("copy", lambda: client.copy(model, COPY) and 1, lambda: mine.copy(model, COPY) or 1),
        (
            "create, with progress",
            lambda: [*client.create(MADE, from_=model, stream=True)],
            lambda: [*mine.create(MADE, **{"from": model})],
        ),
        ("loaded models", lambda: client.ps().models, mine.ps),
        ("load and pin", lambda: client.load(model), lambda: mine.load(model) or 1),
        ("unload, and await it", lambda: client.unload(model), lambda: mine.unload(model) or 1),
        ("delete", lambda: client.delete(COPY) and 1, lambda: mine.delete(MADE) or 1),
    ]
    return [(name, done(theirs), done(own)) for name, theirs, own in rows]


def begins_as_data(said: str | Iterable[ours.Chunk]) -> bool:
    """Whether an answer, which a few tokens cut, begins as the JSON object that was asked for."""
    text = said if isinstance(said, str) else "".join(chunk.data["response"] for chunk in said)
    return text.lstrip().startswith("{")


def done(feature: Callable[[], object]) -> str:
    """``yes``, ``no`` where the client has no such thing, or the error."""
    try:
        return "yes" if feature() else "nothing came"
    except AttributeError:
        return "no"
    except Exception as err:  # noqa: BLE001 (whatever it is, that is what is compared)
        return f"{type(err).__name__}: {err}"
