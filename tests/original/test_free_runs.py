"""Free runs: the logs' numbers, and their means and spreads."""

from __future__ import annotations

import numpy as np

from embedding_learning.original.free_runs import Run, compute_mean_and_spread, read_log

_LOG = """INFO:root:Epoch 0 learning rate=0.000100
INFO:root:[Epoch 0, Iter 20] training loss=9.1
INFO:root:[Epoch 0] training loss=18.2
INFO:root:[Epoch 0] time cost: 12.5
INFO:root:[Epoch 0] validation: Recall@1=0.5
INFO:root:[Epoch 0] validation: Recall@16=0.75
INFO:root:[Epoch 1] time cost: 10.25
INFO:root:[Epoch 1] validation: Recall@2=0.625
"""


def test_a_log_of_either_program() -> None:
    recalls, seconds = read_log(_LOG, 2)
    nan = np.nan
    expected = [[0.5, nan, nan, nan, 0.75], [nan, 0.625, nan, nan, nan]]
    np.testing.assert_array_equal(recalls, expected)
    assert seconds == 22.75


def _run(program: str, *recall_at_1: float) -> Run:
    return Run(program, 0, np.array([[value] * 5 for value in recall_at_1]), 1.0, 1.0)


def test_means_and_deviations_of_a_program_alone() -> None:
    runs = [_run("here", 0.1, 0.4), _run("the original", 9, 9), _run("here", 0.3, 0.8)]
    mean, deviation = compute_mean_and_spread(runs, "here")
    np.testing.assert_allclose(mean, [[0.2] * 5, [0.6] * 5])
    # Of a sample: the root of the squared deviations' sum over one less than their number.
    np.testing.assert_allclose(deviation, [[np.sqrt(0.02)] * 5, [np.sqrt(0.08)] * 5])


def test_a_single_seed_has_no_spread() -> None:
    mean, deviation = compute_mean_and_spread([_run("here", 0.25)], "here")
    np.testing.assert_array_equal(mean, [[0.25] * 5])
    assert np.isnan(deviation).all()
