"""Images of containers: pulls, and what an image without a digest is kept to after its first pull."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import create_autospec

import docker.errors
import pytest
from urllib3.exceptions import ProtocolError

from _modules import platform_container, platform_image
from aiplatform import containers, image_pins
from aiplatform.errors import NotFoundError, PlatformError
from tests.unit.test_containers import PILLAR, WANTED

CHAT = "192.0.2.10:5000/open-webui/open-webui:v0.12.4"
FIRST, SECOND = (f"sha256:{letter * 64}" for letter in "ab")


def exact(digest):
    """The chat's image by a digest."""
    return f"192.0.2.10:5000/open-webui/open-webui@{digest}"


class Engine:
    """An engine and the registry before it, whose tags can be moved; ``asked`` is what was pulled."""

    def __init__(self, **tags):
        self.tags = {CHAT: FIRST} | tags
        self.here: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.refusal = "manifest unknown"

    def inspect_image(self, name):
        if name not in self.here:
            raise docker.errors.ImageNotFound("none")
        return {"RepoDigests": self.here[name]}

    def pull(self, name, **_):
        self.asked.append(name)
        digest = self.tags.get(name) or (name.partition("@")[2] if name.partition("@")[2] in self.tags.values() else "")
        if not digest:
            return iter([{"error": self.refusal}])
        exact = f"{image_pins.repository(name)}@{digest}"
        self.here |= {name: [exact], exact: [exact]}
        return iter([{"status": "Pulling"}, {"status": f"Digest: {digest}"}])


@pytest.fixture
def pins(tmp_path):
    return tmp_path / "state/image-pins.json"


@pytest.fixture
def host(monkeypatch, pins):
    """The module on a host, with its engine."""

    def use(engine):
        monkeypatch.setitem(platform_image.__context__, "platform_container.engine", engine)
        return engine

    pillar = {"containers": PILLAR | {"pull_timeout": 1, "pins": str(pins)}}
    monkeypatch.setattr(platform_image, "__pillar__", pillar, raising=False)
    monkeypatch.setattr(platform_image, "__context__", {}, raising=False)
    return use


@pytest.fixture
def engine(host):
    """An engine that the test speaks for."""
    return host(create_autospec(docker.APIClient, instance=True))


def absent(engine):
    engine.inspect_image.side_effect = docker.errors.ImageNotFound("none")


def test_an_image_that_is_there_is_not_pulled(engine):
    engine.inspect_image.return_value = {"RepoDigests": []}
    assert platform_image.pull("example.com/web:1") is False
    engine.pull.assert_not_called()


def test_a_pull_is_over_when_the_image_is_there(engine):
    engine.inspect_image.side_effect = [docker.errors.ImageNotFound("none"), {"Id": "1"}]
    engine.pull.return_value = iter([{"status": "Pulling"}])
    assert platform_image.pull("x:1") is True


def test_a_pull_that_fails_within_its_answer_is_an_error(engine):
    absent(engine)
    engine.pull.return_value = iter([{"status": "Pulling"}, {"error": "manifest unknown"}])
    with pytest.raises(PlatformError, match="cannot be pulled; where: x:1; actual: manifest unknown"):
        platform_image.pull("x:1")


def test_a_registry_that_falls_silent_is_given_up(engine, monkeypatch):
    monkeypatch.setitem(platform_image.__pillar__["containers"], "pull_timeout", 0.05)
    absent(engine)
    engine.pull.side_effect = lambda *_, **__: iter(lambda: platform_image.threading.Event().wait(5) or {}, None)
    with pytest.raises(PlatformError, match=r"no end after 0\.05 s"):
        platform_image.pull("x:1")


def broken_off():
    yield {"status": "Downloading"}
    raise ProtocolError("Connection broken: IncompleteRead(3 bytes read)")


@pytest.mark.parametrize(
    ("answer", "told"), [(broken_off(), "IncompleteRead"), (iter([{"status": "Downloading"}]), "is not there")]
)
def test_a_pull_that_breaks_off_is_an_error(engine, answer, told):
    absent(engine)
    engine.pull.return_value = answer
    with pytest.raises(PlatformError, match=f"cannot be pulled; where: x:1; actual: .*{told}"):
        platform_image.pull("x:1")


# -- pins -----------------------------------------------------------------------------------------------------------


def test_a_moved_tag_moves_no_host_that_has_pulled_before(host):
    engine = host(Engine(other=SECOND))
    assert platform_image.pinned(CHAT) == CHAT
    assert platform_image.pull(CHAT) is True
    assert platform_image.pinned(CHAT) == exact(FIRST)
    engine.tags |= {CHAT: SECOND, "kept": FIRST}
    engine.here.clear()
    assert platform_image.pull(CHAT) is True
    assert engine.asked == [CHAT, exact(FIRST)]
    assert platform_image.pull(CHAT) is False
    assert {image: row["digest"] for image, row in platform_image.pins().items()} == {CHAT: FIRST}


@pytest.mark.parametrize("answer", ["manifest unknown", "image x not found"])
def test_what_the_registry_has_no_more_is_not_replaced_in_silence(host, answer):
    engine = host(Engine())
    platform_image.pull(CHAT)
    engine.tags[CHAT], engine.refusal = SECOND, answer
    engine.here.clear()
    wanted = (
        rf"where: {exact(FIRST)}; actual: {answer}; next: {CHAT} was this at first; platform_image\.pin {CHAT} takes"
    )
    with pytest.raises(PlatformError, match=wanted):
        platform_image.pull(CHAT)
    assert platform_image.pinned(CHAT) == exact(FIRST)


def test_a_registry_that_is_down_is_no_reason_to_take_another_image(host):
    engine = host(Engine())
    platform_image.pull(CHAT)
    engine.tags[CHAT], engine.refusal = SECOND, "dial tcp: lookup registry: no such host"
    engine.here.clear()
    with pytest.raises(PlatformError, match=r"no such host; next: containers\.registry") as told:
        platform_image.pull(CHAT)
    assert "platform_image.pin" not in str(told.value)


def test_a_person_takes_what_the_tag_is_now(host):
    engine = host(Engine())
    platform_image.pull(CHAT)
    engine.tags[CHAT] = SECOND
    assert platform_image.pin(CHAT) == {"old": FIRST, "new": SECOND}
    assert platform_image.pinned(CHAT) == exact(SECOND)


@pytest.mark.parametrize("name", ["open-webui:v0.12.4", exact(SECOND)])
@pytest.mark.parametrize("function", [platform_image.pin, platform_image.unpin])
def test_only_what_is_pinned_is_pinned_anew_or_forgotten(host, function, name):
    engine = host(Engine())
    platform_image.pull(CHAT)
    with pytest.raises(NotFoundError, match=rf"has not pinned the image; .*{CHAT}"):
        function(name)
    assert engine.asked == [CHAT]


def test_an_image_that_is_loaded_again_without_its_registry_runs_when_it_is_unpinned(host):
    """A saved and loaded image has lost its digest, so that the pinned name finds nothing."""
    engine = host(Engine())
    platform_image.pull(CHAT)
    engine.tags.clear()
    engine.here = {CHAT: []}
    with pytest.raises(PlatformError, match="cannot be pulled"):
        platform_image.pull(CHAT)
    assert platform_image.unpin(CHAT) == {"old": FIRST, "new": None}
    assert platform_image.pull(CHAT) is False
    assert (platform_image.pinned(CHAT), platform_image.pins()) == (CHAT, {})


@pytest.mark.parametrize("shown", [[], [f"192.0.2.10:5000/open-webui/open-webui@{SECOND}"]])
def test_an_image_that_was_loaded_is_taken_for_what_its_tag_says(host, pins, shown):
    """Engines with containerd's store show a digest of it too, of which no registry may know."""
    engine = host(Engine())
    engine.here[CHAT] = shown
    assert platform_image.pull(CHAT) is False
    assert platform_image.pinned(CHAT) == CHAT
    assert not pins.exists()


def test_a_digest_of_pillar_counts_before_a_pin(host, pins):
    engine = host(Engine())
    platform_image.pull(CHAT)
    assert platform_image.pinned(exact(SECOND)) == exact(SECOND)
    engine.tags["other"] = SECOND
    platform_image.pull(exact(SECOND))
    assert list(json.loads(pins.read_text())) == [CHAT]


@pytest.mark.parametrize("text", ["", "[]", '{"x:1": {}}', '{"x:1": {"digest": "sha256:12"}}', '{"x:1": "sha256:12"}'])
def test_pins_that_cannot_be_read_are_no_reason_to_take_anything(host, pins, text):
    engine = host(Engine())
    pins.parent.mkdir()
    pins.write_text(text)
    with pytest.raises(PlatformError, match=r"pinned to cannot be read; where: .*image-pins\.json"):
        platform_image.pull(CHAT)
    assert engine.asked == []
    # Who names a digest needs no pins.
    assert platform_image.pull(exact(FIRST)) is True


def test_pins_that_cannot_be_written_are_told(host, pins):
    host(Engine())
    pins.parent.write_text("a file where the folder should be")
    with pytest.raises(PlatformError, match="cannot be"):
        platform_image.pull(CHAT)


def test_phases_side_by_side_lose_no_pin_and_the_first_one_stays(pins):
    images = [f"x/{number % 12}:1" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda image: image_pins.keep(pins, image, FIRST), images))
    assert sorted(image_pins.read(pins)) == sorted(set(images))
    image_pins.keep(pins, images[0], SECOND)
    assert {row["digest"] for row in image_pins.read(pins).values()} == {FIRST}


@pytest.mark.parametrize("image", ["docker.io/library/postgres:15.14", "10.0.0.1:5000/web:1", CHAT])
def test_the_registrys_port_is_no_tag(image):
    assert image_pins.resolve(image, {image: {"digest": FIRST}}) == f"{image.rpartition(':')[0]}@{FIRST}"


def test_a_container_is_made_of_what_its_image_is_pinned_to(host, monkeypatch):
    """The first run pins; the label that the second compares is of the pinned name, so that it finds no change."""
    engine = host(Engine())
    docker_engine = create_autospec(docker.APIClient, instance=True)
    calls = {f"platform_image.{name}": getattr(platform_image, name) for name in ("pull", "pinned")}
    monkeypatch.setattr(platform_container, "__salt__", calls, raising=False)
    monkeypatch.setattr(platform_container, "__pillar__", {"containers": PILLAR}, raising=False)
    kept = {"platform_container.engine": docker_engine}
    monkeypatch.setattr(platform_container, "__context__", kept, raising=False)
    platform_container.create("chat", platform_container.specification("chat", image=CHAT, **WANTED))
    config = docker_engine.create_container_from_config.call_args.args[0]
    assert config["Image"] == exact(FIRST)
    engine.tags[CHAT] = SECOND
    again = platform_container.specification("chat", image=CHAT, **WANTED)
    found = {"Config": config | {"Image": exact(FIRST)}}
    assert containers.differences(found, again, platform_container.digests(again)) == {}


def test_a_volume_of_the_image_changes_with_it():
    """Keycloak's holds what is built of the image's own files."""

    def source(image):
        wanted = WANTED | {"volumes": {"built-{image}": "/built", "/data": "/data"}}
        parts = containers.specification(PILLAR, "web", image, **wanted)
        return [mount["Source"] for mount in containers.engine_config("web", parts, {})["HostConfig"]["Mounts"]]

    assert source(exact(FIRST)) == source(exact(FIRST)) != source(exact(SECOND))
    assert source(exact(FIRST))[1] == "/data"
    assert "{" not in source(exact(FIRST))[0]
