"""What goes wrong with mails: the faults of the debug server, and who meets which of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from hashlib import blake2b
from typing import TypeAlias

__all__ = ["MIX", "Fault", "Faults", "draw", "no_faults", "random_faults", "read_faults"]


class Fault(Enum):
    """What may go wrong with a mail."""

    CLOSING = "421"
    """The server says that it is not available, and closes the connection."""
    BUSY = "451"
    """The server asks to try again later."""
    NO_MAILBOX = "550"
    """There is no such mailbox, however often it is tried."""
    DROP = "drop"
    """The connection is dropped in the middle of the mail."""
    LOST = "lost"
    """The mail is accepted, and the connection dropped before the server says so."""
    STALL = "stall"
    """The server has the mail, and says no more."""


MIX: Mapping[Fault, float] = {
    Fault.BUSY: 0.40,
    Fault.CLOSING: 0.20,
    Fault.NO_MAILBOX: 0.18,
    Fault.DROP: 0.10,
    Fault.LOST: 0.10,
    Fault.STALL: 0.02,
}
"""How the faults are shared out where only a total is given."""

Faults: TypeAlias = Callable[[str, int], Fault | None]
"""Which fault the n-th attempt at a mail to an address meets, counted from 1."""


def no_faults(address: str, attempt: int) -> Fault | None:
    """Nothing ever goes wrong."""
    return None


def random_faults(shares: Mapping[Fault, float], seed: int = 0) -> Faults:
    """Give each fault to its share of the attempts.

    Drawn by address and attempt, so that a seed means the same faults in whatever order the mails come.
    """

    def fault_of(address: str, attempt: int) -> Fault | None:
        # A mailbox that does not exist does not exist for ever: drawn once for the address.
        if draw(seed, address, 0) < shares.get(Fault.NO_MAILBOX, 0.0):
            return Fault.NO_MAILBOX
        point = draw(seed, address, attempt)
        for fault, share in shares.items():
            if fault is not Fault.NO_MAILBOX:
                if point < share:
                    return fault
                point -= share
        return None

    return fault_of


def draw(seed: int, address: str, attempt: int) -> float:
    """A random number from 0 to 1, always the same for the same arguments."""
    digest = blake2b(f"{seed} {attempt} {address}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 256**7


def read_faults(text: str) -> dict[Fault, float]:
    """Read `0.05`, a total shared out by `MIX`, or `451=0.03,stall=0.01`.

    Raises:
        ValueError: It is neither, or the shares are not from 0 to 1 in all.
    """
    try:
        if "=" in text:
            pairs = (part.partition("=") for part in text.split(","))
            shares = {Fault(kind.strip()): float(share) for kind, _, share in pairs}
        else:
            shares = {fault: float(text) * share for fault, share in MIX.items()}
        if not all(share >= 0 for share in shares.values()) or not sum(shares.values()) <= 1.0 + 1e-9:
            raise ValueError
    except ValueError:
        kinds = ", ".join(fault.value for fault in Fault)
        raise ValueError(
            f"faults must be a share from 0 to 1, or KIND=SHARE,... of {kinds} that are 1 at most in all, got {text!r}"
        ) from None
    return shares
