"""Dead letters: records of jobs that failed permanently, and the stores that keep them.

`_core/ledger.py` decides when a dead letter is written.
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
