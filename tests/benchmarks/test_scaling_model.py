"""Compares the model of a distributed step with cases computed by hand, and with the definition."""

import random

import pytest

from tests.benchmarks.scaling_model import place_arrays, predict

MB = 250_000  # elements


def test_small_arrays_go_to_a_server_by_their_key():
    # 9973 is odd: with two servers, even keys go to the first and odd ones to the second.
    assert place_arrays({0: 10, 1: 20, 2: 30, 1_000_000: 5}, 2) == [[40, 120, 20], [80]]
    # 9973 = 3 * 3324 + 1
    assert place_arrays({0: 10, 1: 20, 2: 30}, 3) == [[40], [80], [120]]


def test_big_arrays_are_cut_among_all_servers():
    assert place_arrays({0: 1_000_000, 1: 999_999}, 2) == [[2_000_000], [2_000_000, 3_999_996]]
    assert place_arrays({7: 4_000_000}, 1) == [[16_000_000]]


def test_one_worker_sends_and_receives_at_once_but_for_the_largest_array():
    # 1 + 3 MB at 2 MB/s: all 4 MB are sent after 2 s; then the last array comes back in 1.5 s.
    step = predict({0: MB, 1: 3 * MB}, 1, 1, compute=1, bandwidth=2e6, rate=1e15)
    assert step.exchange == pytest.approx(3.5)
    assert step.seconds == pytest.approx(4.5)
    assert step.limit == "worker's link"


def test_servers_link_carries_all_workers():
    # 4 workers with 4 MB each, in arrays of 1 MB: 16 MB in at 2 MB/s, then the last 4 MB out.
    arrays = dict.fromkeys(range(4), MB)
    step = predict(arrays, 4, 1, compute=1, bandwidth=2e6, rate=1e15)
    assert step.exchange == pytest.approx(8 + 2)
    assert step.limit == "server's link"
    # Each of two servers has half of it.
    assert predict(arrays, 4, 2, 1, 2e6, 1e15).exchange == pytest.approx(4 + 2)


def test_slow_adding_limits_behind_a_fast_link():
    # 2 workers with 4 MB each: 8 MB at 4 MB/s; the first 2 MB come, the last go at 20 MB/s.
    step = predict(dict.fromkeys(range(4), MB), 2, 1, compute=1, bandwidth=20e6, rate=4e6)
    assert step.exchange == pytest.approx(0.1 + 2 + 0.1)
    assert step.limit == "server's adding"


def test_servers_without_arrays_do_not_help():
    even = {key: MB for key in range(0, 8, 2)}
    assert predict(even, 4, 2, 1, 2e6, 1e9) == predict(even, 4, 1, 1, 2e6, 1e9)


def test_more_servers_than_workers_leave_the_workers_link():
    arrays = dict.fromkeys(range(64), MB)
    step = predict(arrays, 2, 64, compute=0.1, bandwidth=2e6, rate=1e9)
    assert step.limit == "worker's link"
    assert step.exchange == pytest.approx(32 + 0.5)


def test_compute_limits_if_it_takes_longest():
    step = predict({0: MB}, 1, 1, compute=10, bandwidth=2e6, rate=1e9)
    assert step.limit == "compute"
    assert step.seconds == pytest.approx(10 + step.exchange)


def test_overlap_hides_the_exchange_but_never_computing():
    case = ({0: MB, 1: MB}, 1, 1)
    exchange = predict(*case, 4, 2e6, 1e15).exchange
    assert exchange == pytest.approx(1.5)
    assert predict(*case, 4, 2e6, 1e15, overlap=0.25).seconds == pytest.approx(4 + 1.5 - 1)
    assert predict(*case, 4, 2e6, 1e15, overlap=1).seconds == pytest.approx(4)


@pytest.mark.parametrize("seed", range(20))
def test_exchange_is_the_longest_path(seed):
    """A flow shop takes the longest path through arrays and stages that never goes back."""
    rng = random.Random(seed)
    sizes = [rng.randrange(1, 1_000_000) for _ in range(rng.randrange(1, 30))]
    workers, link, rate = rng.randrange(2, 9), rng.uniform(1e6, 1e9), rng.uniform(1e6, 1e9)
    longest = max(
        sum(sizes[: i + 1]) / link + sum(sizes[i : j + 1]) / rate + sum(sizes[j:]) / link
        for i in range(len(sizes))
        for j in range(i, len(sizes))
    )
    step = predict(dict(enumerate(sizes)), workers, 1, 1, link, rate)
    assert step.exchange == pytest.approx(longest * 4 * workers)
