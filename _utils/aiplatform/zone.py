"""A zone file with the platform's records in it: written where there is none, else edited, all the rest left as it is.

The platform's records stand in a block of their own. Elsewhere in the file it takes away only what would answer
beside them: addresses and aliases of the names that the table of services has. The serial goes up by a change only.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dns.exception
import dns.rdatatype
import dns.zone

from aiplatform import services
from aiplatform.errors import PlatformError

BEGIN = "; --- the platform's services: managed by Salt, edits are lost ---"
END = "; --- end of the platform's services ---"
OWN = "ns"
RIVALS = {"A", "AAAA", "CNAME"}
SERIALS = 2**32
# What a zone file is made of: a comment, a quoted text, a bracket, a word, or space.
_TOKEN = re.compile(r';[^\n]*|"(?:\\.|[^"\\])*"|[()]|(?:\\.|[^\s;"()\\])+|\s')

Records = dict[str, list[str]]


@dataclass
class Entry:
    """One record or directive with all its lines; ``words`` leaves comments and brackets out, with their positions."""

    text: str
    words: list[tuple[str, int]]
    owner: str = ""
    inherits: bool = False

    @property
    def kind(self) -> str:
        """The record's type; empty for directives, comments and empty lines."""
        rest = self.words if self.inherits else self.words[1:]
        # A TTL and a class may stand before it, in any order.
        for word, _ in rest:
            if not re.fullmatch(r"\d+[smhdw\d]*|IN|CH|HS|CS", word, re.IGNORECASE):
                return word.upper()
        return ""


def wanted(pillar: Mapping[str, Any]) -> Records:
    """Return ``{public label: addresses of the proxies}``.

    pillar
        The effective pillar.
    """
    proxies = sorted(services.hosts_of(pillar, "nginx_proxy").values())
    labels = sorted({row["name"] for row in pillar["services"].values() if row.get("name")})
    return dict.fromkeys(labels, proxies) if proxies else {}


def edit(text: str, domain: str, records: Records, servers: Sequence[str], now: datetime.datetime) -> str:
    """Return the zone file with these records in it; the same text where they are in it already.

    text
        The present file; empty where there is none.
    domain
        The zone's name.
    records
        Addresses by label.
    servers
        Addresses of the hosts that serve the zone, for a file that the platform makes.
    now
        For the serial, a date as far as it goes.

    Raises ``PlatformError`` where the present file is no zone, or its block's marks are no pair; it is then left alone.
    """
    fresh = not text.strip()
    if fresh:
        text = _new(domain, servers, now)
    _check(text, domain)
    _check_marks(text, domain)
    entries = list(_entries(text, domain))
    # Only a name server that the platform has named itself is its own to move.
    own = {OWN: list(servers)} if fresh or OWN in _block_labels(text, domain) else {}
    block = _block(domain, own | records)
    names = {f"{label}.{domain}.".lower() for label in own | records}
    made = _with_block("".join(_kept(entries, names)), block)
    if made == text and not fresh:
        return text
    made = made if fresh else _with_serial(made, domain, now)
    _check(made, domain)
    return made


def changes(before: str, after: str, domain: str) -> dict[str, Any]:
    """Return how two zone files differ, as the changes of a state: records by name, and the serial."""
    old, new = (_addresses(text, domain) for text in (before, after))
    found: dict[str, Any] = {
        name: {"old": old.get(name), "new": new.get(name)}
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }
    if before != after:
        found["serial"] = {"old": serial(before, domain), "new": serial(after, domain)}
    return found


def serial(text: str, domain: str) -> int | None:
    """Return the serial of a zone file; None where there is none."""
    if not text.strip():
        return None
    for entry in _entries(text, domain):
        if entry.kind == "SOA":
            return int(_serial_word(entry)[0])
    return None


def next_serial(present: int, now: datetime.datetime) -> int:
    """Return a serial that counts as newer: of today as YYYYMMDDnn where that is more, else one more."""
    today = int(f"{now:%Y%m%d}") * 100
    return today if 0 < today - present < SERIALS // 2 else (present + 1) % SERIALS or 1


def _addresses(text: str, domain: str) -> Records:
    if not text.strip():
        return {}
    found: Records = {}
    for entry in _entries(text, domain):
        if entry.kind in RIVALS:
            found.setdefault(entry.owner.removesuffix("."), []).append(entry.words[-1][0])
    return {name: sorted(values) for name, values in found.items()}


def _new(domain: str, servers: Iterable[str], now: datetime.datetime) -> str:
    return f"""\
$ORIGIN {domain}.
$TTL 3600
@ IN SOA {OWN}.{domain}. hostmaster.{domain}. (
    {int(f"{now:%Y%m%d}") * 100} ; serial
    3600       ; refresh
    600        ; retry
    604800     ; expire
    300 )      ; negative answers
@ IN NS {OWN}.{domain}.
{_block(domain, {OWN: list(servers)})}"""


def _block(domain: str, records: Mapping[str, Sequence[str]]) -> str:
    lines = [
        f"{label}.{domain}. 3600 IN {'AAAA' if ipaddress.ip_address(address).version == 6 else 'A'} {address}"
        for label, addresses in sorted(records.items())
        for address in addresses
    ]
    return "\n".join([BEGIN, *lines, END, ""])


def _block_labels(text: str, domain: str) -> set[str]:
    _, _, rest = text.partition(BEGIN)
    inside = rest.partition(END)[0]
    return {entry.owner.removesuffix(f".{domain}.") for entry in _entries(inside, domain)} - {""}


def _with_block(text: str, block: str) -> str:
    before, begin, rest = text.partition(BEGIN)
    if begin:
        after = rest.partition(END)[2]
        return before + block.rstrip("\n") + after
    return f"{text.rstrip(chr(10))}\n{block}"


def _kept(entries: Iterable[Entry], names: set[str]) -> Iterator[str]:
    """Give the text of what stays: everything but rivals outside the platform's own block."""
    inside, orphan = False, ""
    for entry in entries:
        inside = (inside or BEGIN in entry.text) and END not in entry.text
        if entry.kind in RIVALS and entry.owner.lower() in names and not inside:
            # The next record may have taken its name from this one.
            orphan = orphan if entry.inherits else entry.owner
            continue
        if entry.inherits and orphan:
            yield f"{orphan} {entry.text.lstrip()}"
        else:
            yield entry.text
        if entry.words and not entry.words[0][0].startswith("$"):
            orphan = ""


def _with_serial(text: str, domain: str, now: datetime.datetime) -> str:
    made = []
    for entry in _entries(text, domain):
        line = entry.text
        if entry.kind == "SOA":
            word, at = _serial_word(entry)
            line = line[:at] + str(next_serial(int(word), now)) + line[at + len(word) :]
        made.append(line)
    return "".join(made)


def _serial_word(entry: Entry) -> tuple[str, int]:
    kinds = [word.upper() for word, _ in entry.words]
    return entry.words[kinds.index("SOA") + 3]


def _entries(text: str, domain: str) -> Iterator[Entry]:
    """Give the zone's entries in order, each with the absolute name that it belongs to."""
    origin, owner = f"{domain}.", ""
    for lines in _lines(text):
        entry = Entry(lines, list(_words(lines)))
        if entry.words and entry.words[0][0].upper() == "$ORIGIN":
            origin = _absolute(entry.words[1][0], origin)
        elif entry.words and not entry.words[0][0].startswith("$"):
            entry.inherits = lines[0].isspace()
            owner = owner if entry.inherits else _absolute(entry.words[0][0], origin)
            entry.owner = owner
        yield entry


def _absolute(name: str, origin: str) -> str:
    if name == "@":
        return origin
    return name if name.endswith(".") else f"{name}.{origin}".replace("..", ".")


def _lines(text: str) -> Iterator[str]:
    """Give each entry's lines as one text: brackets hold lines together."""
    start = at = depth = 0
    while found := _TOKEN.match(text, at):
        piece, at = found.group(), found.end()
        depth += (piece == "(") - (piece == ")")
        if piece == "\n" and depth == 0:
            yield text[start:at]
            start = at
    if text[start:]:
        yield text[start:]


def _words(lines: str) -> Iterator[tuple[str, int]]:
    for found in _TOKEN.finditer(lines):
        if not found.group().isspace() and found.group()[0] not in ";()":
            yield found.group(), found.start()


def _check(text: str, domain: str) -> None:
    try:
        zone = dns.zone.from_text(text, origin=f"{domain}.", relativize=False)
        zone.get_soa()
    except (dns.exception.DNSException, ValueError, KeyError) as err:
        raise PlatformError(
            "The zone file is no zone; it is left as it is",
            where=domain,
            expected="a zone file with one SOA and an NS record",
            actual=str(err) or type(err).__name__,
            hint="mend what it names, or move the file away to have a new one made",
        ) from err


def _check_marks(text: str, domain: str) -> None:
    """Raise where it cannot be told which lines are the platform's, since what stands between the marks is replaced."""
    found = re.findall("|".join(map(re.escape, (BEGIN, END))), text)
    if found not in ([], [BEGIN, END]):
        raise PlatformError(
            "The marks of the platform's block in the zone file are no pair; it is left as it is",
            where=domain,
            expected=f"one line {BEGIN!r} and one {END!r} behind it, or neither",
            actual=found,
            hint="put back the line that is missing, or remove them all: the block is then made anew",
        )
