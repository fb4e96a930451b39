"""One file per question. A question stays, even if we do not like its answer."""

from __future__ import annotations

from benchmarks.harness import Question
from benchmarks.questions.cost import COST
from benchmarks.questions.efficiency import EFFICIENCY
from benchmarks.questions.first_result import FIRST_RESULT
from benchmarks.questions.growth import GROWTH
from benchmarks.questions.http import HTTP
from benchmarks.questions.images import IMAGES
from benchmarks.questions.journal import JOURNAL, RESUME
from benchmarks.questions.pieces import PIECES
from benchmarks.questions.rate import RATE
from benchmarks.questions.retries import RETRIES, RETRY_MEMORY
from benchmarks.questions.round_trip import ROUND_TRIP
from benchmarks.questions.smtp import SMTP

__all__ = ["QUESTIONS"]

QUESTIONS: dict[str, Question] = {
    question.name: question
    for question in (
        COST,
        PIECES,
        GROWTH,
        FIRST_RESULT,
        EFFICIENCY,
        ROUND_TRIP,
        HTTP,
        SMTP,
        IMAGES,
        RETRIES,
        RETRY_MEMORY,
        RATE,
        JOURNAL,
        RESUME,
    )
}
