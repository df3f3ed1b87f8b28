"""Metrics of calls: counted once, logged without the prompt, added up over processes."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

from prometheus_client.parser import text_string_to_metric_families

from aiplatform.call_metrics import CallMetrics
from aiplatform.ollama import Timeout


def samples(text: str) -> dict:
    families = text_string_to_metric_families(text)
    return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}


def one_call() -> CallMetrics:
    metrics = CallMetrics()
    metrics.succeeded(
        "generate", "m", 0.3, prompt_length=5, response_length=7, prompt_tokens=2, tokens=3, first_token=0.2
    )
    return metrics


def test_a_call_is_counted_in_prometheus_words():
    found = samples(one_call().text())
    assert found["ollama_calls_total", "generate", "m", "ok"] == 1
    assert found["ollama_tokens_total", "answer", "m"] == 3
    assert found["ollama_tokens_total", "m", "prompt"] == 2
    assert found["ollama_call_seconds_sum", "generate", "m"] == 0.3
    assert found["ollama_call_seconds_bucket", "0.25", "generate", "m"] == 0
    assert found["ollama_call_seconds_bucket", "0.5", "generate", "m"] == 1
    assert found["ollama_first_token_seconds_count", "m"] == 1


def test_a_failure_has_its_name_and_the_prompt_is_not_logged(caplog):
    caplog.set_level(logging.INFO)
    metrics = one_call()
    metrics.failed("chat", "m", 1.0, Timeout("Silent for 1 s"), prompt_length=11)
    assert samples(metrics.text())["ollama_calls_total", "Timeout", "chat", "m"] == 1
    success, failure = caplog.messages
    for part in ("model=m", "duration=0.300 s", "prompt_length=5", "response_length=7"):
        assert part in success
    assert "prompt_length=11" in failure
    assert "Silent for 1 s" in failure


def test_files_add_up(tmp_path):
    path = tmp_path / "made/ollama.prom"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: one_call().add_to(path), range(12)))
    found = samples(path.read_text())
    assert found["ollama_calls_total", "generate", "m", "ok"] == 12
    assert found["ollama_call_seconds_count", "generate", "m"] == 12
    assert found["ollama_call_seconds_bucket", "+Inf", "generate", "m"] == 12
    assert found["ollama_tokens_total", "answer", "m"] == 36
    assert "_created" not in path.read_text()
    kinds = {family.name: family.type for family in text_string_to_metric_families(path.read_text())}
    assert kinds["ollama_calls"] == "counter"
    assert kinds["ollama_call_seconds"] == "histogram"
