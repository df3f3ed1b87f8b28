"""The Debian that the hosts are made of: upstream's image where a registry answers, else one from packages."""

from __future__ import annotations

import pytest

from lab import images, process
from lab.settings import LabError


@pytest.fixture
def pull(monkeypatch, tmp_path):
    """``pull(script)`` makes that the engine's ``docker pull``; returns why Debian was made otherwise."""
    made: list[str] = []

    def prepare(script: str) -> list[str]:
        docker = tmp_path / "docker"
        docker.write_text(f'#!/bin/sh\n[ "$1" = pull ] || exit 0\n{script}\n')
        docker.chmod(0o755)
        return made

    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(images, "debootstrap", made.append)
    return prepare


def test_upstreams_image_is_taken_where_it_can_be(pull):
    made = pull("echo bookworm: Pulling from library/debian; echo Pull complete")
    assert images.base() == "upstream's debian:bookworm"
    assert made == []


def test_a_registry_that_does_not_answer_is_given_up_soon_and_named(pull, monkeypatch):
    monkeypatch.setattr(images, "ANSWER_SECONDS", 0.1)
    made = pull("exec sleep 60")
    assert "cannot be pulled: docker pull debian:bookworm: no answer after 0 s" in images.base()
    assert len(made) == 1


def test_what_the_engine_says_of_a_pull_that_fails_is_kept(pull):
    made = pull("echo 'dial tcp: no such host' >&2; exit 1")
    assert "cannot be pulled: dial tcp: no such host" in images.base()
    assert made == ["dial tcp: no such host"]


def test_without_root_the_reason_is_named(monkeypatch):
    monkeypatch.setattr(images.machine, "ensure_packages", lambda *_args: None)
    monkeypatch.setattr(images.machine, "is_root", lambda: False)
    with pytest.raises(LabError, match=r"cannot be pulled \(no such host\).*needs root"):
        images.debootstrap("no such host")


def test_a_command_that_answers_and_does_not_end_is_ended():
    with pytest.raises(LabError, match="no end after"):
        process.run(["sh", "-c", "echo here; exec sleep 60"], answer=60, timeout=0.1)
