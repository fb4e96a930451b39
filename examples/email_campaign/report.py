"""The figures of a campaign, and how they are told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from asyncpool.stats import Distribution

__all__ = ["CampaignReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignReport:
    """What came of one run."""

    sent: int
    """Mails that the server has taken over, all of them written down."""
    failed: int
    """Mails that failed for good: they are dead letters."""
    cut_off: int
    """Mails that were cut off: unfinished, though the server may have taken them over."""
    left: int
    """Users who still have no mail."""
    seconds: float
    """From the first mail to the last."""
    retries: int
    reasons: Mapping[str, int]
    """Why mails failed: the code of the reply, or the kind of the error."""
    latency: Distribution
    """How long the attempts took, in seconds, with writing down what was sent."""

    @property
    def processed(self) -> int:
        """Mails that were sent or have failed."""
        return self.sent + self.failed

    @property
    def rate(self) -> float:
        """Mails processed a second."""
        return self.processed / self.seconds if self.seconds else 0.0

    def lines(self) -> Iterator[str]:
        """The closing block."""
        yield f"Total processed: {self.processed:,}"
        yield f"Sent: {self.sent:,}"
        yield f"Failed: {self.failed:,}{_list(self.reasons)}"
        yield f"Retries: {self.retries:,}"
        if self.cut_off:
            yield f"Unfinished: {self.cut_off:,} cut off (the next run sends them again, with the same Message-IDs)"
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
