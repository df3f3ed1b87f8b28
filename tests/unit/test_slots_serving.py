"""The store's memory, and an instance brought to hold what the table says: against a small model of Ollama."""

from __future__ import annotations

import copy
import hashlib
import json
from types import SimpleNamespace

import pytest

from aiplatform import numa, slots
from aiplatform import serving as serving_module
from aiplatform.errors import NotFoundError, PlatformError
from aiplatform.ollama import Chunk, ModelNotFound, normalise
from aiplatform.serving import Serving
from aiplatform.slots import Alias, Resident, Table
from aiplatform.store import Store

LOAD_SECONDS = 60


class Ollama:
    """Names, manifests and runners as Ollama keeps them: a runner is known by its weights and its load options."""

    def __init__(self, store: dict | None = None):
        self.models = {} if store is None else store
        self.runners: dict[str, dict] = {}
        self.log: list[str] = []

    def add(self, name: str, weights: str, parameters: dict | None = None, system: str = "", size: int = 1):
        content = {"weights": weights * 64, "parameters": parameters or {}, "system": system}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        self.models[normalise(name)] = {**content, "name": normalise(name), "digest": digest, "size": size}

    def health(self):
        return True

    def tags(self):
        return [{key: one[key] for key in ("name", "digest", "size")} for one in self.models.values()]

    def ps(self):
        return [
            {key: one[key] for key in ("name", "digest", "size")}
            | {"context_length": one["options"].get("num_ctx", 4096)}
            for one in self.runners.values()
        ]

    def show(self, name):
        self.log.append(f"show {name}")
        model = self._model(name)
        return {
            "modelfile": f"FROM /blobs/sha256-{model['weights']}",
            "parameters": "\n".join(f"{key} {value}" for key, value in model["parameters"].items()),
            "system": model["system"],
            "template": "T",
            "capabilities": ["embedding" if model["weights"].startswith("e") else "completion"],
            "details": {},
        }

    def digest(self, name):
        return self._model(name)["weights"]

    def chat(self, name, messages, **_):
        self.log.append(f"ask {name}")
        self.load(name, quiet=True)
        yield Chunk(0.0, {"done": True})

    def embed(self, name, texts, **_):
        self.log.append(f"embed {name}")
        return [[0.0] for _ in texts]

    def create(self, name, **fields):
        self.log.append(f"create {name}")
        base = self._model(fields["from"])
        parameters = {**base["parameters"], **fields["parameters"]}
        self.add(name, base["weights"][0], parameters, fields.get("system", base["system"]), base["size"])
        yield {"status": "success"}

    def delete(self, name):
        self.log.append(f"delete {name}")
        del self.models[normalise(name)]

    def load(self, name, quiet=False, keep_alive=-1, **_):
        if keep_alive == 0:
            self.unload(name)
            return
        self.log += [] if quiet else [f"load {name}"]
        model = self._model(name)
        options = {key: value for key, value in model["parameters"].items() if key in slots.LOAD_OPTIONS}
        runner = self.runners.get(model["weights"])
        if runner is None or runner["options"] != options:
            self.runners[model["weights"]] = model | {"options": options}

    def unload(self, name, **_):
        self.log.append(f"unload {name}")
        self.runners.pop(self._model(name)["weights"], None)

    def take_places(self, names):
        """As the store's files do it: the staged manifest gets the other name."""
        if not {normalise(staged) for staged in names} <= self.models.keys():
            raise NotFoundError("a staged name is gone")
        for staged, name in names.items():
            self.log.append(f"move {name}")
            self.models[normalise(name)] = self.models[normalise(staged)] | {"name": normalise(name)}

    def blob(self, weights):
        return __file__

    def _model(self, name):
        try:
            return self.models[normalise(name)]
        except KeyError:
            raise ModelNotFound(f"{name} not found") from None


def resident(number: int, model: str, num_ctx: int = 2048, aliases=(), instance: str = "node1") -> Resident:
    return Resident(
        f"slot-{number}", f"slots.{number}.model", instance, model, num_ctx, 1, number, "general", None, tuple(aliases)
    )


@pytest.fixture
def ollama(monkeypatch):
    monkeypatch.setattr(serving_module, "GONE_SECONDS", 0)
    server = Ollama()
    for name, weights in (("a:1", "a"), ("b:1", "b"), ("c:1", "c")):
        server.add(name, weights)
    return server


def serving(server: Ollama, *residents: Resident, absent=None, instance: str = "node1") -> Serving:
    names = frozenset({"family", "coder", *(alias.name for one in residents for alias in one.aliases)})
    return Serving(server, Store(server), server, Table(residents, absent or {}, names), instance, LOAD_SECONDS)


def converged(server: Ollama, *residents: Resident, **more) -> dict:
    """Converge and check what must hold in any case; return the changes that were predicted."""
    predicted = serving(server, *residents, **more).differences()
    server.log.clear()
    serving(server, *residents, **more).converge()
    assert serving(server, *residents, **more).differences() == {}
    loaded = {row["digest"] for row in server.ps()}
    wanted = {server.models[f"{one.name}:latest"]["digest"] for one in residents}
    assert loaded == wanted
    return predicted


def test_empty_instance_gets_all(ollama):
    family = Alias("family", "Be kind.")
    predicted = converged(ollama, resident(1, "a:1", aliases=[family]), resident(2, "b:1"))
    assert predicted.keys() == {"slot-1", "family", "slot-1 loaded", "slot-2", "slot-2 loaded"}
    assert ollama.models["family:latest"]["system"] == "Be kind."
    assert ollama.models["family:latest"]["parameters"] == {"num_ctx": 2048, "num_thread": 1}


def test_second_run_only_reads(ollama):
    wanted = [resident(1, "a:1", aliases=[Alias("family", "x")]), resident(2, "b:1")]
    converged(ollama, *wanted)
    ollama.log.clear()
    serving(ollama, *wanted).converge()
    assert not [entry for entry in ollama.log if not entry.startswith("show")]


def test_rotation_loads_before_it_moves_the_alias_and_unloads_last(ollama):
    coder = Alias("coder", "x")
    converged(ollama, resident(1, "a:1"), resident(5, "b:1", aliases=[coder]))
    converged(ollama, resident(1, "a:1"), resident(5, "c:1", aliases=[coder]))
    steps = [entry for entry in ollama.log if not entry.startswith("show")]
    assert steps == [
        "create slot-5:next", "ask slot-5:next", "create coder:next", "ask coder:next",
        "move slot-5", "move coder", "unload b:1",
    ]  # fmt: skip


def test_the_first_question_loads_and_the_answer_is_told_without_the_load(ollama, monkeypatch):
    """Each request has Ollama read the metadata: a load of its own before the question would cost one more."""
    clock, told, ask = [100.0], [], ollama.chat
    monkeypatch.setattr(serving_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def chat(*question, keep_alive, **_):
        assert keep_alive == -1  # what the question loads is to stay
        list(ask(*question))
        clock[0] += 3
        yield Chunk(3.0, {"done": True, "load_duration": 2_000_000_000})

    monkeypatch.setattr(ollama, "chat", chat)
    table = Table([resident(5, "b:1")], {}, frozenset({"slot-5"}))
    Serving(ollama, Store(ollama), ollama, table, "node1", 60, tell=lambda *row: told.append(row)).converge()
    assert [row for row in told if row[1] in ("load", "answer")] == [("slot-5", "load", 2.0), ("slot-5", "answer", 1.0)]


def test_a_load_finds_its_weights_in_no_page_cache_and_leaves_none_there(ollama, monkeypatch):
    """Else they come from, or stay on, the memory of the node that read them first."""
    monkeypatch.setattr(ollama, "blob", lambda weights: weights)
    monkeypatch.setattr(numa, "evict", lambda weights: ollama.log.append(f"evict {weights[0]}"))
    converged(ollama, resident(5, "b:1"))
    steps = [entry for entry in ollama.log if entry.startswith(("evict", "load", "ask"))]
    assert steps == ["evict b", "ask slot-5:next", "evict b"]


def test_a_model_that_goes_may_end_its_answers_first(ollama):
    """Ollama says yes at once, and unloads when the last answer has ended."""
    busy, unload = [3], ollama.unload

    def later(name):
        ollama.going = name

    def ps():
        if getattr(ollama, "going", None):
            busy[0] -= 1
            if busy[0] == 0:
                unload(ollama.going)
        return Ollama.ps(ollama)

    converged(ollama, resident(5, "b:1"))
    ollama.unload, ollama.ps = later, ps
    converged(ollama, resident(5, "c:1"))
    assert busy[0] <= 0


def test_a_model_that_a_late_request_loads_again_is_unloaded_again(ollama, monkeypatch):
    """A request took the old model before its name moved, and waited for the runner to go."""
    monkeypatch.setattr(serving_module, "GONE_SECONDS", 0.3)
    looks, ps = [], ollama.ps

    def late():
        if "unload b:1" in ollama.log:
            looks.append(1)
            if len(looks) == 3:
                ollama.runners.update(before)
        return ps()

    converged(ollama, resident(5, "b:1"))
    before = dict(ollama.runners)
    ollama.ps = late
    converged(ollama, resident(5, "c:1"))
    assert ollama.log.count("unload b:1") == 2
    assert list(ollama.runners) == ["c" * 64]


def test_swapped_slots_are_not_loaded_again(ollama):
    converged(ollama, resident(1, "a:1"), resident(2, "b:1"))
    converged(ollama, resident(1, "b:1"), resident(2, "a:1"))
    assert not [entry for entry in ollama.log if entry.startswith(("load", "unload"))]


def test_other_options_load_again(ollama):
    converged(ollama, resident(1, "a:1"))
    predicted = converged(ollama, resident(1, "a:1", num_ctx=4096))
    assert predicted["slot-1"]["parameters"]["new"]["num_ctx"] == ["4096"]


def test_a_new_system_prompt_does_not_reload(ollama):
    converged(ollama, resident(1, "a:1", aliases=[Alias("family", "old")]))
    converged(ollama, resident(1, "a:1", aliases=[Alias("family", "new")]))
    steps = [entry for entry in ollama.log if not entry.startswith("show")]
    assert steps == ["create family:next", "ask family:next", "move family"]


def test_a_runner_loaded_by_an_alias_serves_its_slot(ollama):
    family = Alias("family", "old")
    converged(ollama, resident(1, "a:1", aliases=[family]))
    ollama.runners.clear()
    ollama.load("family")
    assert serving(ollama, resident(1, "a:1", aliases=[family])).differences() == {}
    # Its alias changes: now it is a runner of a name that is gone, with the very weights that are wanted.
    predicted = serving(ollama, resident(1, "a:1", aliases=[Alias("family", "new")])).differences()
    assert predicted.keys() == {"family", "slot-1 loaded"}
    converged(ollama, resident(1, "a:1", aliases=[Alias("family", "new")]))


def test_an_emptied_slot_loses_its_names_and_its_model(ollama):
    converged(ollama, resident(1, "a:1"), resident(2, "b:1", aliases=[Alias("family")]))
    gone = {"slot-2": "node1", "family": "node1"}
    predicted = converged(ollama, resident(1, "a:1"), absent=gone)
    assert {"slot-2", "family"} <= predicted.keys()
    assert not {"slot-2:latest", "family:latest"} & ollama.models.keys()


def test_a_model_that_moved_to_the_other_instance_is_unloaded_here(ollama):
    other = Ollama(ollama.models)
    converged(ollama, resident(1, "a:1"), resident(2, "b:1"))
    converged(ollama, resident(1, "a:1"), resident(2, "c:1"))
    converged(other, resident(3, "b:1", instance="node0"), instance="node0")
    assert {row["name"].split(":")[0] for row in ollama.ps()} == {"slot-1", "slot-2"}


def test_models_that_others_loaded_are_left_alone(ollama):
    ollama.add("embedder:1", "e")
    ollama.load("embedder:1")
    serving(ollama, resident(1, "a:1")).converge()
    assert "e" * 64 in ollama.runners


def test_what_takes_the_place_of_a_slot_is_foreign(ollama):
    wanted = [resident(1, "a:1", aliases=[Alias("family", "x")]), resident(2, "b:1")]
    converged(ollama, *wanted)
    assert serving(ollama, *wanted).foreign() == []
    # The weights of a slot are no others by their base name.
    ollama.runners.clear()
    ollama.load("a:1")
    assert serving(ollama, *wanted).foreign() == []
    ollama.load("c:1")
    assert serving(ollama, *wanted).foreign() == ["c:1"]


def test_a_slot_of_the_other_instance_is_foreign(ollama):
    here, there = resident(1, "a:1"), resident(3, "b:1", instance="node0")
    converged(ollama, here)
    other = Ollama(ollama.models)
    converged(other, there, instance="node0")
    ollama.load("slot-3")
    assert serving(ollama, here, there).foreign() == ["slot-3:latest"]
    assert serving(other, here, there, instance="node0").foreign() == []


def test_what_was_loaded_under_a_name_that_is_gone_is_foreign(ollama):
    converged(ollama, resident(1, "a:1"))
    ollama.load("c:1")
    ollama.delete("c:1")
    assert serving(ollama, resident(1, "a:1")).foreign() == ["c:1"]


def test_an_embedding_model_has_a_place_beside_the_slots(ollama):
    converged(ollama, resident(1, "a:1"))
    ollama.add("embedder:1", "e")
    ollama.load("embedder:1")
    assert serving(ollama, resident(1, "a:1")).foreign() == []


def test_a_model_that_is_not_there_is_no_silent_pull(ollama):
    with pytest.raises(PlatformError, match=r"z:1 is not in the store; where: slots\.1\.model"):
        serving(ollama, resident(1, "z:1")).converge()


def test_a_move_that_breaks_off_says_what_each_slot_serves_now_and_is_carried_on(ollama, monkeypatch):
    coder = Alias("coder", "x")
    converged(ollama, resident(5, "b:1", aliases=[coder]))

    def break_off(names):
        (staged, name), _ = names.items()
        Ollama.take_places(ollama, {staged: name})
        raise PlatformError("The names cannot be given their model")

    monkeypatch.setattr(ollama, "take_places", break_off)
    with pytest.raises(PlatformError, match=r"next: slot-5 serves c:1; mend"):
        serving(ollama, resident(5, "c:1", aliases=[coder])).converge()
    # Names that have moved keep what they have moved to, the other one keeps the old model.
    assert ollama.runners.keys() == {"b" * 64, "c" * 64}
    monkeypatch.undo()
    converged(ollama, resident(5, "c:1", aliases=[coder]))
    assert "move slot-5" not in ollama.log


def test_a_slot_that_will_not_load_is_an_error(ollama):
    ollama.load = lambda *_, **__: None
    with pytest.raises(PlatformError, match="slots are not as wanted"):
        serving(ollama, resident(1, "a:1")).converge()


def test_unload_all_reaches_runners_without_a_name(ollama):
    converged(ollama, resident(1, "a:1"), resident(2, "b:1"))
    ollama.add("slot-2", "c")
    serving(ollama).unload_all()
    assert ollama.ps() == []


def test_everything_is_predicted_where_nothing_answers(ollama):
    found = serving(ollama, resident(1, "a:1", aliases=[Alias("family")])).everything()
    assert found.keys() == {"slot-1", "family", "slot-1 loaded"}


# -- the store's memory -------------------------------------------------------------------------------------------


def test_store_asks_once_and_remembers(ollama, tmp_path):
    memory = tmp_path / "cache" / "store.json"
    assert Store(ollama, memory).about("A:1")["weights"] == "a" * 64
    ollama.log.clear()
    assert Store(ollama, memory).about("a:1")["weights"] == "a" * 64
    assert ollama.log == []
    ollama.add("a:1", "f")
    assert Store(ollama, memory).weights("a:1") == "f" * 64


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format": 0, "models": {"x": 1}}'])
def test_a_broken_memory_is_no_memory(ollama, tmp_path, content):
    memory = tmp_path / "store.json"
    memory.write_text(content)
    assert Store(ollama, memory).weights("a:1") == "a" * 64


def test_unknown_models_are_none(ollama):
    store = Store(ollama)
    assert (store.about("z:1"), store.weights("z:1"), store.digest("z:1")) == (None, None, None)
    assert store.missing(["A:1", "z:1"]) == ["z:1"]


def test_created_models_are_seen_after_refresh(ollama):
    store = Store(SimpleNamespace(tags=lambda: copy.deepcopy(ollama.tags()), show=ollama.show))
    assert store.missing(["new:1"]) == ["new:1"]
    ollama.add("new:1", "d")
    store.refresh()
    assert store.missing(["new:1"]) == []
