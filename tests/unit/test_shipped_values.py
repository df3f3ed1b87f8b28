"""Values that the defaults ship with for a reason: an operator may change them, and nobody by accident."""

from __future__ import annotations

import pytest

from aiplatform import ollama, settings
from tests.conftest import CHECKOUT

DEFAULTS = settings.effective({}, CHECKOUT / "salt")


def test_the_models_that_are_pulled_before_the_first_benchmark():
    wanted = DEFAULTS["benchmark"]
    assert wanted["baseline_models"] == ["llama3.2:3b", "llama3.1:8b", "qwen2.5-coder:7b", "deepseek-coder-v2:16b"]
    assert {row["name"]: (row["size_gb"], row["expected_tokens_sec"]) for row in wanted["candidate_models"]} == {
        "qwen2.5-coder:32b-instruct-q4_K_M": (20, 4.5),
        "codegemma:7b-instruct-q5_K_M": (5.5, 12),
        "starcoder2:15b-instruct-q4_K_M": (9.5, 7),
    }


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("local", {"models": ["llama3.2:3b"]}),
        ("dev", {"models": ["llama2:7b-chat", "codellama:7b", "mistral:7b"], "cpus": 4}),
        ("prod", {"models": ["llama2:13b-chat", "codellama:13b"], "gpu": "auto", "memory_mib": 65536}),
    ],
)
def test_the_profiles_of_ollama_in_docker(name, wanted):
    """Each tag is one of Ollama's library: ``llama3.2:7b`` is none."""
    found = DEFAULTS["ollama"]["container"] | DEFAULTS["ollama"]["profiles"][name]
    assert wanted.items() <= found.items()
    assert found["gpu"] is False or name == "prod"


def test_the_kernel_leaves_memory_where_it_was_bound():
    assert DEFAULTS["ollama"]["tuning"] == {
        "sysctl": {
            "kernel.numa_balancing": 0,
            "vm.zone_reclaim_mode": 1,
            "vm.swappiness": 1,
            "vm.overcommit_memory": 1,
        },
        "transparent_hugepages": "madvise",
        "cpu_governor": "performance",
    }


def test_the_room_that_a_first_installation_needs():
    wanted = DEFAULTS["preflight"]
    assert (wanted["data_root_free_gb"], wanted["root_free_gb"]) == (500, 10)


def test_how_long_the_bot_waits_for_its_model():
    assert DEFAULTS["openclaw"]["timeout"] == 120


def test_how_long_ollama_is_waited_for():
    """A processor needs more than half a minute for a long answer, and a large model minutes to load."""
    assert (ollama.ANSWERING.read, ollama.ANSWERING.total) == (300, 900)
    assert (ollama.LOADING.read, ollama.LOADING.total) == (900, 900)
