"""Batches that resume: a journal of the jobs that are done, in a file. `python -m asyncpool.journal FILE` shows it.

`journal.py` has the interface. Of this package only that is imported by `import asyncpool`: the rest needs SQLite.
"""

from asyncpool.journal.entries import FailedJob, JournalCounts, Key
from asyncpool.journal.journal import Journal

__all__ = ["FailedJob", "Journal", "JournalCounts", "Key"]
