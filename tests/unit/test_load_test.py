"""The load test: its bounds, its figures, and whom it may load."""

from __future__ import annotations

import threading
import time

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Response

from aiplatform import load_test, ollama
from aiplatform.errors import PlatformError
from tests.unit.test_ollama_client import lines

ANSWER = lines({"response": "a"}, {"done": True, "eval_count": 3})


def outcomes(*seconds: float) -> list[load_test.Outcome]:
    return [load_test.Outcome(first=value / 2, seconds=value, tokens=10) for value in seconds]


@pytest.mark.parametrize(
    "wrong",
    [{"count": 0}, {"count": 10_001}, {"concurrency": 65}, {"concurrency": 0}, {"duration": 0}, {"duration": 3601}],
)
def test_a_load_test_is_bounded(wrong):
    with pytest.raises(PlatformError, match="at most"):
        load_test.Plan("m", **wrong)


def test_percentiles_are_those_of_the_nearest_rank():
    values = [float(value) for value in range(1, 101)]
    found = load_test.percentiles(reversed(values))
    assert found == {"min": 1.0, "p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "max": 100.0}
    assert load_test.percentiles([7.0])["p99"] == 7.0
    assert load_test.percentiles([]) == {}


def test_the_figures_of_a_test():
    plan = load_test.Plan("m", count=4, concurrency=2)
    done = [*outcomes(1.0, 3.0), load_test.Outcome(error="Timeout")]
    result = load_test.figures(plan, done, 4.0)
    assert (result["requests"], result["succeeded"], result["not_begun"]) == (3, 2, 1)
    assert (result["errors"], result["retcode"]) == ({"Timeout": 1}, 1)
    assert (result["requests_per_second"], result["tokens_per_second"]) == (0.5, 5.0)
    assert (result["latency"]["max"], result["first_token"]["p50"]) == (3.0, 0.5)
    text = load_test.text(result)
    assert "2 of 3 requests answered" in text
    assert "1 Timeout" in text


def test_a_test_in_which_nothing_was_answered_has_figures_too():
    plan = load_test.Plan("m", count=1)
    result = load_test.figures(plan, [load_test.Outcome(error="InstanceDown")], 0.1)
    assert "whole answer  -" in load_test.text(result)


def test_as_many_requests_as_asked_for_and_no_more_at_once(chunked):
    """Each answer waits for two others: by fewer at once none would be given."""
    guard, together, now, most = threading.Lock(), threading.Barrier(3, timeout=5), [0], [0]

    def handler(_):
        with guard:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait()
        with guard:
            now[0] -= 1
        return Response(ANSWER)

    with HTTPServer(threaded=True) as server:
        server.expect_request("/api/generate").respond_with_handler(handler)
        url = server.url_for("")
        result = load_test.run(lambda: ollama.Client(url), load_test.Plan("m", count=9, concurrency=3))
        assert (result["succeeded"], result["retcode"], len(server.log)) == (9, 0, 9)
    assert most[0] == 3
    assert result["tokens_per_second"] > 0


def test_a_test_ends_after_its_time(httpserver, chunked):
    httpserver.expect_request("/api/generate").respond_with_handler(lambda _: time.sleep(0.1) or Response(ANSWER))
    begin = time.monotonic()
    plan = load_test.Plan("m", count=1000, concurrency=1, duration=0.5)
    result = load_test.run(lambda: ollama.Client(httpserver.url_for("")), plan)
    assert time.monotonic() - begin < 2
    assert result["not_begun"] > 900
    assert result["retcode"] == 1


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://localhost:1", "http://192.0.2.29:11434", "http://[::1]:1"]
)
def test_the_platforms_own_hosts_may_be_loaded(url):
    load_test.demand_own(url, {"192.0.2.29"})


@pytest.mark.parametrize("url", ["http://192.0.2.30:11434", "http://no-such-host.invalid:1"])
def test_others_may_not(url):
    with pytest.raises(PlatformError, match="load test"):
        load_test.demand_own(url, {"192.0.2.29"})
