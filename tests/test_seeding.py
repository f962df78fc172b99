"""Statistical tests have fixed seeds and a false-alarm rate of 1e-4 each."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest, pearsonr

from sbiflow import pairs, posterior, samples
from sbiflow.calibration import ensemble, predictive, run
from sbiflow.seeding import check_seed, row_rng, torch_generator, uniform_rows
from sbiflow.simulate import ROW_KEY, THETA_KEY
from sbiflow.training import data

RATE = 1e-4
BAD_SEEDS = [-1, 1.0, True, "1", None, np.float64(2)]


@pytest.mark.parametrize("dim", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("start, stop", [(0, 50), (7, 8), (13, 50), (49, 50)])
def test_rows_are_the_same_wherever_the_table_is_entered(dim, start, stop):
    whole = uniform_rows(5, 0, 50, dim, 1, 2)
    assert whole.shape == (50, dim) and whole.dtype == np.float64
    assert np.array_equal(uniform_rows(5, start, stop, dim, 1, 2), whole[start:stop])


def test_a_row_far_out_is_reached_at_once():
    assert uniform_rows(1, 10**15, 10**15 + 3, 7).shape == (3, 7)


def test_no_rows():
    assert uniform_rows(1, 4, 4, 3).shape == (0, 3)


@pytest.mark.parametrize("dim", [1, 3, 4, 6])
def test_the_table_is_uniform_in_the_open_interval(dim):
    u = uniform_rows(11, 0, 20_000, dim)
    assert u.min() > 0 and u.max() < 1
    for column in u.T:
        assert kstest(column, "uniform").pvalue > RATE
    assert len(np.unique(u)) == u.size
    for i in range(1, dim):
        assert pearsonr(u[:, 0], u[:, i]).pvalue > RATE
    assert pearsonr(u[:-1, 0], u[1:, 0]).pvalue > RATE


def test_zero_is_kept_out(monkeypatch):
    class Zero:
        def random(self, shape):
            return np.zeros(shape)

    monkeypatch.setattr(np.random, "Generator", lambda bits: Zero())
    assert (uniform_rows(1, 0, 2, 3) == 2.0**-54).all()


def test_generators_of_rows_are_their_own():
    first = np.stack([row_rng(3, row, 8).random(4) for row in range(3000)])
    assert np.array_equal(row_rng(3, 17, 8).random(4), first[17])
    assert len(np.unique(first)) == first.size
    assert kstest(first.ravel(), "uniform").pvalue > RATE
    assert pearsonr(first[:-1, 0], first[1:, 0]).pvalue > RATE


def test_generators_of_neighbouring_rows_do_not_run_into_each_other():
    assert not np.isin(row_rng(3, 1).random(10_000), row_rng(3, 0).random(10_000)).any()


def test_torch_generators_depend_on_seed_and_every_key():
    def draw(*seed_and_key):
        return torch.rand(4, generator=torch_generator(*seed_and_key)).tolist()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    streams = [
        draw(*key) for key in [(1,), (2,), (1, 2), (2, 1), (1, 2, 3), (1, 3, 2), (2**80,), (2**80 + 1,)]
    ]
    assert len({tuple(stream) for stream in streams}) == len(streams)


def test_streams_of_the_package_are_distinct():
    """Training, sampling, simulating and checking with one seed share no random numbers.

    NumPy takes (seed, 7) and (seed, 7, 0) for one: that a key does not end in zero is therefore checked here.
    """
    alone = [
        (data.SPLIT,), (data.VALIDATION_NOISE,), (data.VALIDATION_NOISE, 1), (posterior._SAMPLE_KEY,),
        (samples._RESAMPLE_KEY,), (THETA_KEY,), (ROW_KEY,),
        (pairs._THETA_KEY,), (pairs._ROW_KEY,), (pairs._NOISE_KEY,),
    ]  # fmt: skip
    per_step = [(what, step) for what in (data.ORDER, data.NOISE) for step in range(50)]
    checks = [(key, i) for key in (ensemble._KEY, predictive._KEY, run._KEY) for i in range(1, 5)]
    keys = alone + per_step + checks
    for seed in (0, 1, 2, 3, 2**40):
        states = {torch_generator(seed, *key).initial_seed() for key in keys}
        assert len(states) == len(keys)


@pytest.mark.parametrize("seed", BAD_SEEDS)
@pytest.mark.parametrize(
    "call",
    [
        check_seed,
        lambda seed: uniform_rows(seed, 0, 1, 1),
        lambda seed: row_rng(seed, 0),
        lambda seed: torch_generator(seed),
    ],
)
def test_a_bad_seed_is_refused(seed, call):
    with pytest.raises(ValueError, match="seed: expected a whole number >= 0, got"):
        call(seed)


@pytest.mark.parametrize("seed", [0, 7, np.int64(7), 2**100])
def test_a_good_seed_is_an_int(seed):
    assert check_seed(seed) == seed and type(check_seed(seed)) is int
