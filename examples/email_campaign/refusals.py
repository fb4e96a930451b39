"""Notice that a server refuses mail after mail with the same reply: then it refuses us, and not those mails."""

from __future__ import annotations

__all__ = ["Refusals"]


class Refusals:
    """Counts refusals in a row that have the same reply.

    Args:
        most: How many are suspicious.
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ValueError(f"max_refusals must be >= 1, got {most}")
        self._most = most
        self._reply = ""
        self.count = 0
        """How many there were in a row."""
        self._expected: set[str] = set()

    def add(self, reply: str, address: str) -> bool:
        """Count a refusal. Return whether they are now suspicious, which is true once in a row.

        Servers repeat the address in their replies, so it does not count as a difference.
        """
        reply = reply.replace(address, "<address>")
        if reply != self._reply:
            self._reply, self.count = reply, 0
        self.count += 1
        return self.count == self._most and not self.are_expected

    @property
    def is_first(self) -> bool:
        """Whether the reply of the last refusal is another one than before."""
        return self.count == 1

    @property
    def are_expected(self) -> bool:
        """Whether `expect` was called for the reply of the last refusal."""
        return self._reply in self._expected

    def expect(self) -> None:
        """Accept any number of refusals with the last reply."""
        self._expected.add(self._reply)

    def clear(self) -> None:
        """Begin to count again, because the server has accepted a mail."""
        self._reply, self.count = "", 0
