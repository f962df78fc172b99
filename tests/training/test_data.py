import numpy as np
import pytest
import torch

from sbiflow import simulator_from_function
from sbiflow.priors import Prior, Uniform
from sbiflow.simulate import SimulationWarning
from sbiflow.training.data import load_training_data
from tests.quick import quick_store
from tests.toys import LinearGaussian

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return quick_store(tmp_path_factory.mktemp("data") / "s.h5", LinearGaussian(), 1000)


def load(store, seed=0, validation=0.1):
    return load_training_data(store, LinearGaussian().prior, validation, seed, CPU)


def test_the_split_is_a_partition_of_the_rows_fixed_by_the_seed(store):
    data = load(store)
    assert (len(data), len(data.z_validation)) == (900, 100)
    assert sorted([*data.rows.tolist(), *data.rows_validation.tolist()]) == list(range(1000))
    assert data.rows_validation.equal(load(store).rows_validation)
    assert not data.rows_validation.equal(load(store, seed=1).rows_validation)


def test_a_training_row_is_the_row_of_the_store_that_it_says(store):
    data, prior = load(store), LinearGaussian().prior
    for z, signal, rows in (
        (data.z, data.signal, data.rows),
        (data.z_validation, data.signal_validation, data.rows_validation),
    ):
        theta, expected = store.read(rows.numpy())
        torch.testing.assert_close(prior.constrain(z)[0], torch.from_numpy(theta), rtol=1e-5, atol=1e-5)
        assert np.array_equal(signal.numpy(), expected)
        assert z.dtype == signal.dtype == torch.float32


def test_failed_rows_are_left_out_and_the_others_keep_their_numbers(tmp_path):
    def fails_at_times(theta, rng):
        if theta[0] < 0.3:
            raise ArithmeticError("no solution")
        return theta + 0.1 * rng.normal(size=1)

    simulator = simulator_from_function(fails_at_times, Prior(Uniform("a", 0, 1)), x_shape=(1,))
    with pytest.warns(SimulationWarning, match="no solution"):
        store = quick_store(tmp_path / "s.h5", simulator, 200)
    data = load_training_data(store, simulator.prior, 0.2, 0, CPU)
    rows = np.sort([*data.rows, *data.rows_validation])
    assert np.array_equal(rows, store.valid_rows())
    assert 100 < len(rows) < 180
    assert np.array_equal(data.signal.numpy(), store.signal(valid=False)[data.rows.numpy()])


def test_every_epoch_visits_every_row_once_in_another_order(store):
    data = load(store)
    epochs = [torch.cat([data.indices(9 * epoch + i, 100) for i in range(9)]) for epoch in range(3)]
    for epoch in epochs:
        assert epoch.sort().values.equal(torch.arange(900))
    assert not epochs[0].equal(epochs[1]) and not epochs[1].equal(epochs[2])
    assert data.indices(4, 100).equal(load(store).indices(4, 100))
    assert not data.indices(4, 100).equal(load(store, seed=1).indices(4, 100))


def test_an_incomplete_batch_is_left_out_and_a_large_one_is_all_rows(store):
    data = load(store)
    epoch = torch.cat([data.indices(step, 400) for step in range(2)])
    assert len(epoch) == len(epoch.unique()) == 800
    assert len(data.indices(0, 10_000)) == 900
    assert not data.indices(0, 10_000).equal(data.indices(1, 10_000))


def test_too_few_rows(tmp_path):
    store = quick_store(tmp_path / "s.h5", LinearGaussian(), 19)
    with pytest.raises(ValueError, match=r"s\.h5: expected at least 20 valid rows to train on, got 19"):
        load(store)


@pytest.mark.parametrize("share, held_out", [(1e-9, 1), (0.999, 999)])
def test_both_parts_have_a_row_at_least(store, share, held_out):
    data = load(store, validation=share)
    assert (len(data.z_validation), len(data)) == (held_out, 1000 - held_out)
