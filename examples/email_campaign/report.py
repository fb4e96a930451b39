"""The figures of a campaign, and their text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from asyncpool.stats import Distribution

__all__ = ["CampaignReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignReport:
    """The results of one run."""

    sent: int
    """Mails that the server has accepted. All of them are recorded."""
    failed: int
    """Mails that failed permanently. They are dead letters."""
    ambiguous: int
    """Mails that the server may have accepted: the connection was lost twice after the mail was transmitted. They are
    dead letters too."""
    deferred: int
    """Mails that the server rejected temporarily until the end. The next run tries them again."""
    cut_off: int
    """Mails that were interrupted. The server may or may not have accepted them."""
    left: int
    """Users who still have to get a mail."""
    seconds: float
    """The time from the first mail to the last."""
    retries: int
    reasons: Mapping[str, int]
    """The number of failed mails by reason: the code of the reply, or the type of the error."""
    latency: Distribution
    """The duration of the attempts in seconds, including the time to record them."""

    @property
    def processed(self) -> int:
        """Mails that were sent or failed, and those that may have been sent."""
        return self.sent + self.failed + self.ambiguous

    @property
    def rate(self) -> float:
        """Mails processed per second."""
        return self.processed / self.seconds if self.seconds else 0.0

    def lines(self) -> Iterator[str]:
        """Return the lines of the summary."""
        yield f"Total processed: {self.processed:,}"
        yield f"Sent: {self.sent:,}"
        yield f"Failed: {self.failed:,}{_list(self.reasons)}"
        if self.ambiguous:
            yield f"Ambiguous: {self.ambiguous:,} (transmitted twice, but the connection was lost before each reply)"
        yield f"Retries: {self.retries:,}"
        if self.deferred:
            yield f"Deferred: {self.deferred:,} (rejected temporarily; the next run tries them again)"
        if self.cut_off:
            yield f"Unfinished: {self.cut_off:,} (the next run sends them again, with the same Message-IDs)"
        yield f"Total time: {self.seconds:.2f}s"
        yield f"Rate: {self.rate:.1f} mails/s"
        if self.latency.count:
            p50, p95, p99 = (
                f"{seconds * 1000:.0f}" for seconds in (self.latency.p50, self.latency.p95, self.latency.p99)
            )
            yield f"Latency: p50 {p50} ms, p95 {p95} ms, p99 {p99} ms"


def _list(reasons: Mapping[str, int]) -> str:
    if not reasons:
        return ""
    return f" ({', '.join(f'{count:,} x {reason}' for reason, count in sorted(reasons.items()))})"
