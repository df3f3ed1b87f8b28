"""Ollama on this host: its instances and their models.

Functions that take ``instance`` mean one of pillar ``ollama:instances``, an alias or slot that it serves, or any URL.
Every failure is an error with a name, which says what to do next.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from salt.utils.args import clean_kwargs

from aiplatform import answer_cache, calling, numa, ollama_keys, prompts, slots, structured, transfer
from aiplatform import instances as described
from aiplatform import load_test as test_of_load
from aiplatform import ollama as api


def instances() -> dict[str, dict[str, Any]]:
    """Return what the unit of each instance needs: name, URL, command, environment, threads, warnings.

    Refused where the instances do not fit this host, see ``numa.plan``.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.instances
    """
    bindings = {name: numa.Binding(**plan) for name, plan in __salt__["numa.plan"]().items()}
    return described.describe(__pillar__, bindings)


def models_dir() -> str:
    """Return the folder of the store.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.models_dir
    """
    return described.models_dir(__pillar__)


def warmup_unit(instance: str) -> str:
    """Return the systemd unit that warms up an instance.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.warmup_unit node0
    """
    return slots.warmup_unit(__pillar__["ollama"]["instances"][instance]["unit"])


def retire(unit: str) -> bool:
    """Stop and disable an instance's unit and its warm-up's, and remove their files. Its models stay in the store.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.retire ollama-node0.service
    """
    # The warm-up first: it requires the instance, and would be reported as failed at every start of the host.
    for gone in (slots.warmup_unit(unit), unit):
        if (described.UNITS / gone).is_file():
            __salt__["service.stop"](gone)
            __salt__["service.disable"](gone)
            (described.UNITS / gone).unlink()
    shutil.rmtree(described.UNITS / f"{unit}.d", ignore_errors=True)
    __salt__["service.systemctl_reload"]()
    return True


def version(instance: str) -> str:
    """Return the version that an instance reports.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.version node1
    """
    return _client(instance).version()


def list_models(instance: str) -> list[dict[str, Any]]:
    """Return the models in the store: name, digest of the manifest, size in bytes, details.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.list_models node1
    """
    return _client(instance).tags()


def ps(instance: str) -> list[dict[str, Any]]:
    """Return the loaded models of an instance.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.ps node1
    """
    return _client(instance).ps()


def show(instance: str, model: str) -> dict[str, Any]:
    """Return modelfile, parameters, template and details of a model.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.show node1 llama3.2:3b
    """
    return _client(instance).show(model)


def digest(instance: str, model: str) -> str:
    """Return the digest of a model's weights: the same for every name of them.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.digest node1 llama3.2:3b
    """
    return _client(instance).digest(model)


def pull(instance: str, model: str, insecure: bool = False, total: float | None = None) -> dict[str, Any]:
    """Fetch a model into the store; carries on where an earlier pull broke off. Returns the last event.

    The master is told how far it is, which ``salt-run state.event pretty=True`` shows.

    instance, model
        Whose store gets which model.
    insecure
        The registry speaks plain HTTP.
    total
        Seconds that it may take; None: as long as it moves.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.pull node1 llama3.2:3b
    """
    events = _client(instance).pull(model, insecure=insecure, limits=replace(api.PULLING, total=total))
    return transfer.follow("pull", model, events, __opts__, __salt__)


def copy(instance: str, source: str, destination: str) -> bool:
    """Give a model a second name.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.copy node1 llama3.2:3b family:latest
    """
    _client(instance).copy(source, destination)
    return True


def delete(instance: str, model: str) -> bool:
    """Delete a name from the store; weights that another name uses stay.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.delete node1 family:latest
    """
    _client(instance).delete(model)
    return True


def load(instance: str, model: str, keep_alive: float = -1) -> bool:
    """Load a model and wait until it answers.

    keep_alive
        Seconds that it stays after its last use; -1 for ever.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.load node1 llama-family
    """
    _client(instance).load(model, keep_alive=keep_alive)
    return True


def unload(instance: str, model: str) -> bool:
    """Unload a model and wait until it is gone.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.unload node1 llama-family
    """
    _client(instance).unload(model)
    return True


def health(instance: str) -> bool:
    """Return whether an instance answers.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.health node1
    """
    return _client(instance).health()


def push(instance: str, model: str, insecure: bool = False, total: float | None = None) -> dict[str, Any]:
    """Send a model to the registry that its name begins with. Returns the last progress event.

    instance, model
        Whose store has which model.
    insecure
        The registry speaks plain HTTP.
    total
        Seconds that it may take; None: as long as it moves.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.push node1 registry.example.com/team/llama3.2:3b
    """
    events = _client(instance).push(model, insecure=insecure, limits=replace(api.PULLING, total=total))
    return transfer.follow("push", model, events, __opts__, __salt__)


def create(instance: str, model: str, base: str, system: str | None = None, **parameters: Any) -> dict[str, Any]:
    """Make a model of another one that is in the store, with a system prompt and parameters of its own.

    instance
        Where the model is made; ``base`` is the name of the other one, ``system`` its system prompt.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.create node1 pirate llama3.2:3b system='You are a pirate.' temperature=0.9
    """
    client = _client(instance)
    # Ollama would pull a base that is missing, from wherever its name leads.
    client.show(base)
    told = clean_kwargs(**parameters)
    fields: dict[str, Any] = {"from": base} | ({"system": system} if system else {})
    events = client.create(model, **fields, **({"parameters": told} if told else {}))
    return transfer.follow("create", model, events, __opts__, __salt__)


def generate(
    instance: str,
    model: str,
    prompt: str,
    task: str = "general",
    system: str | None = None,
    deadline: float = 300.0,
    fallback: str | None = None,
    options: Mapping[str, Any] | None = None,
    **waits: float,
) -> dict[str, Any]:
    """Return a model's answer to one prompt: its text, and what it cost.

    instance
        Where the ``model`` is asked the ``prompt``, with ``system`` as its system prompt in place of its own.

    task
        ``general``, ``voice``, ``code`` or ``extraction``: the parameters that fit it.
    deadline
        Seconds for everything, all tries included.
    fallback
        A model that answers where the first one is missing or does not fit.
    options
        Further parameters, over the task's.
    waits
        ``connect`` (3), ``first_token`` (300) and ``total`` (900), in seconds, of each try; ``tries`` (3), at most.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.generate llama-family llama-family 'Why is the sky blue?' task=voice
    """
    fields: dict[str, Any] = {"options": prompts.parameters(task, **(options or {}))}
    if system:
        fields["system"] = str(system)
    with _caller(instance, fallback, **clean_kwargs(**waits)) as caller:
        return asdict(caller.generate(model, str(prompt), deadline=deadline, **fields))


def chat(
    instance: str,
    model: str,
    messages: list[dict[str, Any]],
    task: str = "general",
    deadline: float = 300.0,
    fallback: str | None = None,
    **waits: float,
) -> dict[str, Any]:
    """Return a model's answer to a conversation of ``role`` and ``content``; otherwise like ``generate``.

    instance, model, messages
        Whom is asked what: ``[{"role": "user", "content": "..."}]``; a text is one message of the user.
    task, deadline, fallback, waits
        As of ``generate``.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.chat node1 llama-family '[{"role": "user", "content": "Hello"}]'
    """
    told = [one if isinstance(one, Mapping) else {"role": "user", "content": str(one)} for one in _listed(messages)]
    with _caller(instance, fallback, **clean_kwargs(**waits)) as caller:
        return asdict(caller.chat(model, told, deadline=deadline, options=prompts.parameters(task)))


def embed(instance: str, model: str, texts: list[str], deadline: float = 300.0, **waits: float) -> list[list[float]]:
    """Return one vector a text.

    instance, model, texts
        Whom is asked for what; ``deadline`` and ``waits`` as of ``generate``.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.embed node1 all-minilm '["first text", "second text"]'
    """
    with _caller(instance, **clean_kwargs(**waits)) as caller:
        return caller.embed(model, [str(text) for text in _listed(texts)], deadline=deadline)


def extract(
    instance: str,
    model: str,
    question: str,
    evidence: list[Any],
    schema: Mapping[str, Any],
    deadline: float = 300.0,
    **waits: float,
) -> Any:
    """Return what a model reads out of evidence, as data that fits a JSON Schema.

    instance, model, question
        Whom is asked what of the evidence; ``deadline`` and ``waits`` as of ``generate``.
    evidence
        Texts, or mappings with ``text`` and ``source``; one need not stand in a list.
    schema
        JSON Schema; the answer is checked against it, and repaired once.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.extract coder-32k coder-32k 'How old is she?' '["Ada, 36"]' '{"type": "integer"}'
    """
    with _caller(instance, **clean_kwargs(**waits)) as caller:
        return structured.extract(caller, model, str(question), _listed(evidence), schema, deadline=deadline)


def truncate(
    instance: str, model: str, text: str, tokens: int = prompts.BUDGET_TOKENS, deadline: float = 300.0, **waits: float
) -> str:
    """Return a text cut to a budget of a model's tokens: as the model counts them where it is loaded, else by length.

    instance, model, text, tokens
        The ``text`` is cut to so many ``tokens`` of the ``model``; ``deadline`` and ``waits`` as of ``generate``.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.truncate node1 llama-family 'a very long text' tokens=4
    """
    with _caller(instance, **clean_kwargs(**waits)) as caller:
        return caller.fit(str(text), model, tokens, deadline=deadline)


def load_test(
    instance: str,
    model: str,
    prompt: str = "Say hello.",
    count: int = 5,
    concurrency: int = 5,
    duration: float = 60.0,
    num_predict: int = 32,
    anywhere: bool = False,
    out: str = "json",
) -> dict[str, Any] | str:
    """Send requests side by side and return what they took: percentiles in seconds, throughput, errors.

    instance, model, prompt, num_predict
        Whom is asked what, and how many tokens the longest answer has.
    count, concurrency, duration
        So many requests by so many clients; none begins after ``duration`` seconds, and all are given up then.
    anywhere
        Also to a server that is not one of the platform's hosts.
    out
        ``json`` for data, ``table`` for people.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.load_test llama-family llama-family count=20 concurrency=4 out=table
    """
    server = _server(instance)
    if not anywhere:
        test_of_load.demand_own(
            server["base_url"], {host["address"] for host in __pillar__["platform"]["hosts"].values()}
        )
    plan = test_of_load.Plan(model, str(prompt), count, concurrency, duration, num_predict)
    result = test_of_load.run(lambda: api.Client(**server), plan)
    __context__["retcode"] = result["retcode"]
    return test_of_load.text(result) if out == "table" else result


def metrics() -> str:
    """Return the metrics of all calls made on this host, in Prometheus' text format.

    CLI Example:

    .. code-block:: bash

        salt ai_server ollama.metrics
    """
    path = __pillar__["ollama"].get("metrics_file")
    return Path(path).read_text(encoding="utf-8") if path and Path(path).exists() else ""


def _listed(value: Any) -> list[Any]:
    """A list as it is; anything else that a command line gives in its place as the only member of one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _client(instance: str) -> api.Client:
    return api.Client(**_server(instance))


def _server(instance: str) -> dict[str, Any]:
    """What a client is told of a server: where it is; of one with TLS, whom this host trusts, and its key."""
    url = described.resolve(__pillar__, instance)
    if not url.lower().startswith("https://"):
        return {"base_url": url}
    bundle = __salt__["platform_ca.bundle"]()
    verify = bundle if Path(bundle).is_file() else True
    return {"base_url": url, "verify": verify, "token": ollama_keys.key_for(__pillar__, url)}


def _caller(
    instance: str,
    fallback: str | None = None,
    connect: float = api.ANSWERING.connect,
    first_token: float | None = None,
    total: float | None = api.ANSWERING.total,
    tries: int = calling.Retries.attempts,
) -> contextlib.AbstractContextManager[calling.Caller]:
    """A caller of an instance, whose calls are counted in the host's metrics when it ends.

    Answers without chance are kept for as long as this process runs: a job, a state run.
    """
    return calling.counted(
        _client(instance),
        __pillar__["ollama"].get("metrics_file"),
        retries=calling.Retries(attempts=tries),
        limits=replace(api.ANSWERING, connect=connect, first=first_token, total=total),
        fallback=fallback,
        cache=__context__.setdefault("ollama.answers", answer_cache.AnswerCache()),
    )
