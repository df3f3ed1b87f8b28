"""The lab's container images: upstream's or built, once, and what the pillar learns of them."""

from __future__ import annotations

import pytest
import yaml

from aiplatform import containers as platform_containers
from lab import containers, settings
from lab.settings import LabError
from tests.conftest import CHECKOUT

IMAGE = containers.Container("web", "1.0", "quay.example.com/team/web")
DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def lab(monkeypatch, tmp_path):
    """A cache, a folder of recipes, and a registry that has what was put into it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(containers, "FOLDERS", tmp_path / "folders")
    for name in ("web", "base"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        (tmp_path / "folders" / name / "Dockerfile").write_text(f"FROM {name}\n")
    monkeypatch.setattr(containers, "in_registry", lambda image, digest: digest == DIGEST)
    monkeypatch.setattr(containers.machine, "ensure_packages", lambda *args: None)
    monkeypatch.setattr(containers, "copy", lambda image, source: DIGEST)
    monkeypatch.setattr(containers, "build", lambda image: DIGEST)
    return tmp_path


def test_upstreams_image_is_taken_where_it_can_be(lab, monkeypatch):
    monkeypatch.setattr(containers, "run", lambda *args, **kwargs: "{}")
    assert containers.obtain(IMAGE) == "upstream's image"
    assert containers.fresh(IMAGE) == f"upstream, {DIGEST[:19]}"


def refuse(*args, **kwargs):
    raise LabError("skopeo inspect: exit 1\n  | dial tcp: no such host")


@pytest.mark.parametrize(("stand_in", "word"), [(False, "built from packages"), (True, "a STAND-IN, built")])
def test_else_it_is_built_and_said_so_with_the_reason(lab, monkeypatch, stand_in, word):
    monkeypatch.setattr(containers, "run", refuse)
    told = containers.obtain(containers.Container("web", "1.0", "quay.example.com/team/web", stand_in=stand_in))
    assert told.startswith(word)
    assert "no such host" in told


def test_what_is_built_is_built_anew_when_its_recipe_changes(lab, monkeypatch):
    monkeypatch.setattr(containers, "run", refuse)
    assert containers.fresh(IMAGE) is None
    containers.obtain(IMAGE)
    assert containers.fresh(IMAGE)
    (lab / "folders/web/Dockerfile").write_text("FROM other\n")
    assert containers.fresh(IMAGE) is None


def test_what_python_compiles_beside_a_recipe_is_no_part_of_it(lab, monkeypatch):
    """A test of the stand-in imports it from there, and the image was built anew for that."""
    monkeypatch.setattr(containers, "run", refuse)
    containers.obtain(IMAGE)
    (lab / "folders/web/__pycache__").mkdir()
    (lab / "folders/web/__pycache__/filters.cpython-311.pyc").write_bytes(b"compiled")
    assert containers.fresh(IMAGE)


def test_what_the_registry_has_lost_is_brought_again(lab, monkeypatch):
    monkeypatch.setattr(containers, "run", refuse)
    containers.obtain(IMAGE)
    monkeypatch.setattr(containers, "in_registry", lambda image, digest: False)
    assert containers.fresh(IMAGE) is None


def test_another_version_is_another_image(lab, monkeypatch):
    monkeypatch.setattr(containers, "run", refuse)
    containers.obtain(IMAGE)
    assert containers.fresh(containers.Container("web", "1.1", "quay.example.com/team/web")) is None


def test_hosts_look_for_images_where_the_lab_pushes_them():
    for image in containers.ALL:
        formula = yaml.safe_load((CHECKOUT / f"salt/{image.name}/defaults.yaml").read_text())[image.name]
        defaults = formula[image.within] if image.within else formula
        named = platform_containers.reference(containers.registry(), defaults["image"], image.version, None)
        assert named == f"{containers.registry()}/{image.path}:{image.version}"
        assert (defaults["version"] or formula["version"]) == image.version
        assert (image.source / "Dockerfile").exists()


def test_the_pillar_has_the_digests(lab, monkeypatch):
    monkeypatch.setattr(containers, "ALL", (IMAGE,))
    assert "web" not in containers.pillar()
    containers.note("web", {"version": "1.0", "digest": DIGEST, "origin": "built", "recipe": "x"})
    made = containers.pillar()
    assert made["web"] == {"version": "1.0", "digest": DIGEST}
    assert made["containers"]["registry"] == f"{settings.address(10)}:5000"
    assert made["docker"]["daemon"]["insecure-registries"] == [made["containers"]["registry"]]
