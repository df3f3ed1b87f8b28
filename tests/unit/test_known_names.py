"""The platform's names in a host's own table of names."""

from __future__ import annotations

import pytest

from aiplatform import known_names

THEIRS = "127.0.0.1\tlocalhost\n192.0.2.30 proxy  # ours\n"


def settings(names=("idm", "vault"), proxies=("192.0.2.30",)):
    hosts = {f"proxy{address}": {"address": address, "roles": ["nginx_proxy"]} for address in proxies}
    return {
        "platform": {"domain": "acme.example", "hosts": hosts},
        "services": {name: {"name": name} for name in names} | {"postgres": {"name": None}},
    }


def line(address, names):
    return f"{address} {names} {known_names.MARK}\n"


def test_each_proxy_has_a_line_with_all_names_and_the_rest_is_left_alone():
    found = known_names.text(THEIRS, settings(proxies=("2001:db8::1", "192.0.2.30")))
    names = "idm.acme.example vault.acme.example"
    assert found == THEIRS + line("192.0.2.30", names) + line("2001:db8::1", names)


def test_a_table_that_says_so_is_not_touched_wherever_the_line_stands():
    first = known_names.text("", settings()) + THEIRS + "# no end of line"
    assert known_names.text(first, settings()) == first


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (settings(names=("idm",)), line("192.0.2.30", "idm.acme.example")),
        (settings(proxies=("192.0.2.31",)), line("192.0.2.31", "idm.acme.example vault.acme.example")),
        (settings(proxies=()), ""),
        (settings(names=()), ""),
    ],
)
def test_names_and_proxies_that_go_are_taken_out(changed, expected):
    assert known_names.text(known_names.text(THEIRS, settings()), changed) == THEIRS + expected
