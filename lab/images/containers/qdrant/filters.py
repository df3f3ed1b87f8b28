"""Qdrant's filters as its REST API writes them, as its engine takes them; what is not known is refused."""

from __future__ import annotations

from typing import Any

import qdrant_edge as edge

Body = dict[str, Any]
MATCHES = {
    "value": edge.MatchValue,
    "any": edge.MatchAny,
    "except": edge.MatchExcept,
    "text": edge.MatchText,
    "phrase": edge.MatchPhrase,
}
CLAUSES = ("must", "should", "must_not")


class Refused(Exception):
    """A request that is answered with an error; ``status`` is its HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        """Take the status and the words of the answer."""
        super().__init__(text)
        self.status = status


def filter_of(body: Body | None) -> Any:
    """Return a filter; None where there is none. Raises ``Refused`` (400) for what the API does not know."""
    if not body:
        return None
    given = {key: value for key, value in body.items() if value is not None}
    if unknown := given.keys() - set(CLAUSES):
        raise Refused(501, f"the stand-in has no filter clause {', '.join(sorted(unknown))}")
    clauses: Body = {key: [condition_of(row) for row in listed(given[key])] for key in CLAUSES if key in given}
    return edge.Filter(**clauses)


def listed(value: Any) -> list[Body]:
    """Return the conditions of a clause, which may be a single one."""
    return value if isinstance(value, list) else [value]


def condition_of(row: Body) -> Any:
    """Return one condition."""
    given = {key: value for key, value in row.items() if value is not None}
    if "has_id" in given:
        return edge.HasIdCondition(set(given["has_id"]))
    if "is_empty" in given:
        return edge.IsEmptyCondition(given["is_empty"]["key"])
    if "is_null" in given:
        return edge.IsNullCondition(given["is_null"]["key"])
    if given.keys() <= set(CLAUSES):
        return filter_of(given)
    if given.keys() == {"key", "match"}:
        return edge.FieldCondition(key=given["key"], match=match_of(given["match"]))
    if given.keys() == {"key", "range"}:
        bounds = {name: value for name, value in given["range"].items() if value is not None}
        texts = any(isinstance(value, str) for value in bounds.values())
        kind = edge.RangeDateTime if texts else edge.RangeFloat
        return edge.FieldCondition(key=given["key"], range=kind(**bounds))
    raise Refused(501, f"the stand-in has no filter condition {sorted(given)}")


def match_of(row: Body) -> Any:
    """Return what a field is compared with."""
    for key, kind in MATCHES.items():
        if key in row:
            return kind(row[key])
    raise Refused(501, f"the stand-in has no match {sorted(row)}")
