"""Dead letters: what is kept of the jobs that failed permanently, and where.

When a letter is written is `_core/dead_letter_writer.py`.
"""

from asyncpool.dead_letters.file import DeadLetterFile
from asyncpool.dead_letters.letter import DeadLetter, DeadLetterSink, PoolAwareSink
from asyncpool.dead_letters.memory import DeadLetters
from asyncpool.dead_letters.store import DeadLetterStore, DeadLetterWatch, Submitter

__all__ = [
    "DeadLetter",
    "DeadLetterFile",
    "DeadLetterSink",
    "DeadLetterStore",
    "DeadLetterWatch",
    "DeadLetters",
    "PoolAwareSink",
    "Submitter",
]
