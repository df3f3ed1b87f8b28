"""The zone file: the platform's records in it, everything else as it was."""

from __future__ import annotations

import datetime
import difflib

import dns.zone
import pytest

from aiplatform import services, zone
from aiplatform.errors import PlatformError

NOW = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
SERVERS = ["192.0.2.29"]
RECORDS = {"vault": ["192.0.2.30"], "idm": ["192.0.2.30"]}
BY_HAND = """\
; our own zone
$ORIGIN acme.test.
$TTL 1h
@   IN  SOA dns1 admin ( 2026022807 ; do not forget
        3600 600
        604800 300 )
        NS dns1
dns1    A 192.0.2.2
        TXT "v=x; (not a comment)"
Vault   600 IN A 192.0.2.99   ; the old proxy
        IN TXT "stays"
idm.acme.test. IN CNAME elsewhere.example.
wiki IN A 192.0.2.77
$ORIGIN sub.acme.test.
vault A 192.0.2.78
"""


def edited(text, records=RECORDS, now=NOW, servers=SERVERS):
    return zone.edit(text, "acme.test", records, servers, now)


def addresses(text):
    found = dns.zone.from_text(text, origin="acme.test.", relativize=False)
    return {
        str(name).lower().removesuffix(".acme.test."): sorted(str(item) for item in data)
        for name, data in ((name, found.get_rdataset(name, "A")) for name in found.nodes)
        if data
    }


def test_a_new_zone_names_its_server_and_every_service():
    made = edited("")
    assert addresses(made) == {"ns": ["192.0.2.29"], "vault": ["192.0.2.30"], "idm": ["192.0.2.30"]}
    assert zone.serial(made, "acme.test") == 2026030100
    assert edited(made, now=NOW + datetime.timedelta(days=400)) == made


def test_records_come_change_and_go_and_the_serial_with_them():
    first = edited("")
    more = edited(first, RECORDS | {"chat": ["192.0.2.30"]})
    moved = edited(more, {"vault": ["192.0.2.31"], "chat": ["192.0.2.31"]}, servers=["192.0.2.28"])
    assert addresses(moved) == {"ns": ["192.0.2.28"], "vault": ["192.0.2.31"], "chat": ["192.0.2.31"]}
    assert [zone.serial(text, "acme.test") for text in (first, more, moved)] == [2026030100, 2026030101, 2026030102]
    assert zone.changes(first, more, "acme.test") == {
        "chat.acme.test": {"old": None, "new": ["192.0.2.30"]},
        "serial": {"old": 2026030100, "new": 2026030101},
    }
    assert zone.changes(more, more, "acme.test") == {}


def test_a_zone_by_hand_keeps_all_but_the_rivals_of_the_services():
    made = edited(BY_HAND)
    assert addresses(made) == {
        "dns1": ["192.0.2.2"],
        "vault": ["192.0.2.30"],
        "idm": ["192.0.2.30"],
        "wiki": ["192.0.2.77"],
        "vault.sub": ["192.0.2.78"],
    }
    lines = difflib.ndiff(BY_HAND.splitlines(), made.split(zone.BEGIN)[0].splitlines())
    assert {line for line in lines if line[0] in "+-"} == {
        "- @   IN  SOA dns1 admin ( 2026022807 ; do not forget",
        "+ @   IN  SOA dns1 admin ( 2026030100 ; do not forget",
        "- Vault   600 IN A 192.0.2.99   ; the old proxy",
        '-         IN TXT "stays"',
        '+ Vault.acme.test. IN TXT "stays"',
        "- idm.acme.test. IN CNAME elsewhere.example.",
    }
    assert edited(made) == made


def test_a_record_keeps_its_name_over_a_directive_where_the_one_before_it_goes():
    made = edited(BY_HAND.replace('        IN TXT "stays"', '$TTL 600\n        IN TXT "stays"'))
    found = dns.zone.from_text(made, origin="acme.test.", relativize=False)
    texts = {str(name).lower(): str(item) for name in found.nodes for item in found.get_rdataset(name, "TXT") or []}
    assert texts["vault.acme.test."] == '"stays"'


def test_what_is_written_behind_the_block_stays():
    made = edited(edited("") + "mail IN MX 10 mx.example.\n", RECORDS | {"chat": ["192.0.2.30"]})
    assert made.endswith("mail IN MX 10 mx.example.\n")
    assert "chat" in addresses(made)


def test_a_record_removed_by_hand_comes_back():
    made = edited("")
    damaged = "".join(line for line in made.splitlines(keepends=True) if not line.startswith("vault."))
    assert "vault" not in addresses(damaged)
    assert addresses(edited(damaged)) == addresses(made)
    assert zone.serial(edited(damaged), "acme.test") > zone.serial(made, "acme.test")


@pytest.mark.parametrize(
    "text",
    ["this is no zone\n", BY_HAND.replace(" SOA ", " SOB "), BY_HAND + "x IN A 300.1.1.1\n", BY_HAND + "x IN A (\n"],
)
def test_a_file_that_is_no_zone_is_refused(text):
    with pytest.raises(PlatformError, match="no zone"):
        edited(text)


MARKED = f"{edited('')}printer IN A 192.0.2.50\n"


@pytest.mark.parametrize(
    "text",
    [
        MARKED.replace(zone.END, ""),
        MARKED.replace(zone.BEGIN, ""),
        MARKED + zone.BEGIN + "\n" + zone.END + "\n",
        MARKED.replace(zone.BEGIN, "").replace(zone.END, zone.END + "\n" + zone.BEGIN),
    ],
    ids=["no end", "no begin", "two", "the wrong way round"],
)
def test_a_block_whose_marks_are_no_pair_is_refused(text):
    """A block without its end went on to the next one's: the records between were lost."""
    with pytest.raises(PlatformError, match=r"no pair(?s:.*)put back the line"):
        edited(text)


def test_a_block_without_both_marks_is_made_anew_and_the_rest_stays():
    made = edited(MARKED.replace(zone.BEGIN, "").replace(zone.END, ""))
    assert addresses(made) == addresses(MARKED)
    assert edited(made) == made


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (7, 2026030100),
        (2026022899, 2026030100),
        (2026030100, 2026030101),
        (2030010100, 2030010101),
        (4294967295, 1),
        (1700000000, 2026030100),
    ],
)
def test_a_serial_counts_as_newer(present, expected):
    assert zone.next_serial(present, NOW) == expected
    assert 0 < (expected - present) % 2**32 < 2**31


def test_addresses_of_the_sixth_version():
    made = edited("", {"vault": ["2001:db8::1"]})
    assert "vault.acme.test. 3600 IN AAAA 2001:db8::1" in made


def test_the_records_come_from_the_table_of_services():
    hosts = {
        "proxy": {"address": "192.0.2.30", "roles": ["nginx_proxy"]},
        "ai": {"address": "192.0.2.3", "roles": ["ai_server"]},
    }
    rows = {
        "vault": {"role": "ai_server", "port": 1, "name": "vault"},
        "qdrant": {"role": "ai_server", "port": 2, "name": None},
    }
    pillar = {"platform": {"hosts": hosts}, "services": services.expand({"services": rows})}
    assert zone.wanted(pillar) == {"vault": ["192.0.2.30"]}
