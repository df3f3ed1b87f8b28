"""Who stays in a slot and who gives way. Pure: models are their places in the ranking, 0 the best."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

# Whether the first is better than the second by more than noise.
Better = Callable[[int, int], bool]
Places = list[int | None]


def fill(count: int, held: Sequence[int | None], better: Better) -> Places:
    """Return who holds each slot, in the order of the slots.

    count
        How many models there are: 0 is the best, ``count - 1`` the last.
    held
        For each slot who holds it now; None where nobody does, or nobody who may stay. With nobody anywhere the best
        fill the slots in their order.
    better
        Whether a challenger is better than a holder by more than noise; asked only of a challenger that ranks higher.

    A challenger comes in for the lowest holder that it beats, and a higher slot goes to whoever beats its holder. The
    answer is where that ends: given it as ``held`` again, nothing moves. It does end, since each step puts a higher
    rank into the first slot that it changes.
    """
    places = list(held)
    while (after := _step(count, places, better)) != places:
        places = after
    return places


def _step(count: int, places: Sequence[int | None], better: Better) -> Places:
    members = _members(count, places, better)
    return _in_order(members, [one if one in members else None for one in places], better)


def _members(count: int, places: Sequence[int | None], better: Better) -> set[int]:
    """Return who holds any slot: holders, then the best where there is room, then challengers that beat a holder."""
    inside = {one for one in places if one is not None}
    for challenger in (one for one in range(count) if one not in inside):
        if len(inside) < len(places):
            inside.add(challenger)
            continue
        below = sorted((one for one in inside if one > challenger), reverse=True)
        beaten = next((one for one in below if better(challenger, one)), None)
        if beaten is not None:
            inside = (inside - {beaten}) | {challenger}
    return inside


def _in_order(members: Collection[int], stays: Sequence[int | None], better: Better) -> Places:
    """Return the members in slots: a holder keeps its slot unless it is beaten, a free slot goes to the best left."""
    left, places = sorted(members), Places()
    for holder in stays:
        if not left:
            places.append(None)
            continue
        winner = left[0]
        if holder is not None and holder in left:
            winner = next((one for one in left if one < holder and better(one, holder)), holder)
        places.append(winner)
        left.remove(winner)
    return places
