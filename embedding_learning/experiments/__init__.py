"""Trains with several losses, samplings and seeds, and compares the results in a table."""
