"""Fuzzing of every file format that the program reads: thousands of mutated files of each.

    python -m tests.fuzzing [--mutations 2000] [TARGET ...]

A mutated sample is either accepted, or refused with UsageError or DataError in one printable line.
Anything else is a failure: another exception, death by a signal, a hang, memory beyond a limit, a
program that is started, a file that is written outside of the sample's folder. A failure is
reported with the command that repeats it.

- targets.py: what is fuzzed: a small valid sample of each format, and how the program reads it.
- mutations.py: changes to any bytes. format_mutations.py: changes that know the format.
- workers.py: reads mutated samples in processes that may die.
- audit.py: notices what a reader does to the machine.
"""

# As in the program, before OpenCV is loaded: the package's settings apply to both.
import embedding_learning  # noqa: F401
