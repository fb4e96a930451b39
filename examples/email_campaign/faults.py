"""The faults of the debug server, and which mail gets which of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from hashlib import blake2b
from typing import TypeAlias

__all__ = ["MIX", "Fault", "Faults", "draw", "no_faults", "random_faults", "read_faults"]


class Fault(Enum):
    """The faults that a mail can have."""

    CLOSING = "421"
    """The server replies that it is not available and closes the connection."""
    BUSY = "451"
    """The server asks the client to try again later."""
    NO_MAILBOX = "550"
    """The mailbox does not exist, in every attempt."""
    DROP = "drop"
    """The connection is dropped in the middle of the mail."""
    LOST = "lost"
    """The server accepts the mail, but the connection is dropped before it replies."""
    STALL = "stall"
    """The server receives the mail and stops responding."""


MIX: Mapping[Fault, float] = {
    Fault.BUSY: 0.40,
    Fault.CLOSING: 0.20,
    Fault.NO_MAILBOX: 0.18,
    Fault.DROP: 0.10,
    Fault.LOST: 0.10,
    Fault.STALL: 0.02,
}
"""The distribution of the faults if only their total is given."""

Faults: TypeAlias = Callable[[str, int], Fault | None]
"""Returns the fault of an attempt, by address and number of the attempt, starting from 1."""


def no_faults(address: str, attempt: int) -> Fault | None:
    """Return no fault for any attempt."""
    return None


def random_faults(shares: Mapping[Fault, float], seed: int = 0) -> Faults:
    """Return a function that gives each fault to its share of the attempts.

    The draw depends on the seed, the address and the attempt, so the order of the mails does not change the faults.
    """

    def fault_of(address: str, attempt: int) -> Fault | None:
        # A missing mailbox is missing in every attempt, so draw it once per address.
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
    """Return a random number from 0 to 1, always the same for the same arguments."""
    digest = blake2b(f"{seed} {attempt} {address}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 256**7


def read_faults(text: str) -> dict[Fault, float]:
    """Parse `0.05`, a total that is distributed by `MIX`, or `451=0.03,stall=0.01`.

    Raises:
        ValueError: The text has neither form, or the total of the shares is not between 0 and 1.
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
            f"must be a share from 0 to 1, or KIND=SHARE,... with kinds from {kinds} and a total of at most 1, "
            f"got {text!r}"
        ) from None
    return shares
