"""The original example, run in processes of its own beside this program, its files as they are."""
