"""Fuzzing of every kind of file that the program reads: thousands of changed ones of each.

    python -m tests.fuzzing [--mutations 2000] [KIND ...]

A sample is either read, or refused with UsageError or DataError in one printable line. Anything
else is a failure: another exception, death by a signal, a hang, memory beyond a limit, a program
that is started, a file that is written outside of the sample's folder. A failure is reported with
the command that repeats it.

- kinds.py: the kinds of files: a small valid sample of each, and how the program reads it.
- mutations.py, crafted.py: how a file is changed, blindly and with knowledge of its format.
- workers.py: reads changed samples in processes that may die.
"""

# As in the program, before OpenCV is loaded: what the package sets is in force for both.
import embedding_learning  # noqa: F401
