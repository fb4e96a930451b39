"""Attempts whose process died under them: they run again apart from others, in halves, until one is found guilty.

One death alone proves nothing: a process may be killed by the system, or with its machine. So a job is guilty when it
was alone in a process that died, twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from asyncpool._core.remote.members import Errand, Member

__all__ = ["Quarantine"]


class Quarantine:
    """The suspects, in groups that each run alone in one process.

    Invariant: an attempt in it has no member, and is in no outbox (tests/engines: the laws).
    """

    __slots__ = ("_groups",)

    def __init__(self) -> None:
        self._groups: deque[list[Errand]] = deque()

    def __len__(self) -> int:
        """How many groups wait."""
        return len(self._groups)

    def take_in(self, group: list[Errand]) -> Errand | None:
        """Take in what ran in a process that died. Return the attempt that is guilty of that, if one is."""
        if len(group) == 1:
            if group[0].died_alone:
                return group[0]
            group[0].died_alone = True
        half = (len(group) + 1) // 2
        self._groups.extend(part for part in (group[:half], group[half:]) if part)
        return None

    def assign(self, members: Sequence[Member], *, reserves: bool) -> list[tuple[Member, list[Errand]]]:
        """Return which groups can run now, and where: in members that run nothing else.

        If it `reserves`, busy members are reserved for the others, half of all at most, but at least one: they get no
        other attempts until they are empty.
        """
        assigned: list[tuple[Member, list[Errand]]] = []
        for member in members:
            if not member.errands and (self._groups or member.is_apart):
                group = self._next()
                member.is_apart = bool(group)
                if group:
                    assigned.append((member, group))
        if not reserves:
            return assigned
        reserved = sum(member.is_apart for member in members)
        wanted = min(len(self._groups) + len(assigned), max(1, len(members) // 2))
        for member in sorted(members, key=lambda member: len(member.errands)):
            if reserved >= wanted:
                break
            if not member.is_apart:
                member.is_apart = True
                reserved += 1
        return assigned

    def _next(self) -> list[Errand]:
        while self._groups:
            group = [errand for errand in self._groups.popleft() if not errand.is_cancelled]
            if group:
                return group
        return []
