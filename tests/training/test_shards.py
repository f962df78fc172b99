from dataclasses import replace

import numpy as np
import pytest

from sbiflow import Store
from sbiflow.training import Member, train_ensemble
from sbiflow.training.shards import Shards
from tests.quick import CONFIG, EMBEDDING, FLOW, quick_store, quick_train, same_weights
from tests.toys import LinearGaussian, normal_prior
from tests.training.on_disk import written

TOY = LinearGaussian()


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[Store]:
    """Seeds 7, 5 and 6; every tenth row of the second failed."""
    folder = tmp_path_factory.mktemp("shards")
    whole = [quick_store(folder / f"{seed}.h5", TOY, 100 + seed, seed) for seed in (7, 5, 6)]
    whole[1] = written(folder / "failed.h5", whole[1], np.arange(105), range(0, 105, 10))
    return whole


def test_rows_are_counted_through_in_the_order_of_the_seeds(stores):
    shards = Shards.of(stores)
    assert [store.meta.seed for store in shards.stores] == [5, 6, 7]
    assert (shards.n, shards.n_done, shards.n_ok, shards.n_failed) == (318, 318, 307, 11)
    assert shards.ends == (105, 211, 318) and shards.x_shape == (3,) and shards.meta.seed == 5
    in_order = [stores[1], stores[2], stores[0]]
    theta = np.concatenate([store.theta(valid=False) for store in in_order])
    signal = np.concatenate([store.signal(valid=False) for store in in_order])
    for rows in (slice(None), np.array([317, 0, 104, 105, 105, 211, 1]), np.array([], np.int64)):
        found = shards.read(rows)
        np.testing.assert_array_equal(found[0], theta[rows])
        np.testing.assert_array_equal(found[1], signal[rows])
    assert np.array_equal(shards.valid_rows(), np.flatnonzero(np.isfinite(signal).all(1)))


def test_one_store_is_itself(stores):
    shards = Shards.of(stores[1])
    assert shards.path == str(stores[1].path) and shards.n_failed == 11
    np.testing.assert_array_equal(shards.read(slice(3, 5))[0], stores[1].read(slice(3, 5))[0])


@pytest.mark.parametrize("memory", [1.0, 1e-5], ids=["in memory", "from disk"])
def test_training_on_several_stores_whatever_their_order(stores, memory):
    posterior = quick_train(stores, TOY, memory=memory)
    assert same_weights(quick_train(stores[::-1], TOY, memory=memory), posterior)
    assert not same_weights(quick_train(stores[:2], TOY, memory=memory), posterior)
    assert (posterior.info.simulations, posterior.info.failed_simulations) == (318, 11)


def test_an_ensemble_on_several_stores_from_the_disk(stores):
    config = replace(CONFIG, steps=5)
    members = [Member(FLOW, EMBEDDING, config), Member(replace(FLOW, family="maf"), EMBEDDING, config)]
    options = {"members": members, "progress": False}
    trained, in_memory = (train_ensemble(stores, TOY, memory=memory, **options) for memory in (1e-5, None))
    assert trained.info.simulations == in_memory.info.simulations == 318
    assert not same_weights(trained.members[0], in_memory.members[0])
    assert sum(trained.weights) == pytest.approx(1)


def test_the_same_rows_twice_are_refused(stores, tmp_path):
    again = quick_store(tmp_path / "again.h5", TOY, 30, seed=7)
    for twice in ([stores[0], stores[2], stores[0]], [stores[0], stores[2], again]):
        with pytest.raises(
            ValueError, match=r"expected another seed than that of .*\.h5, got 7 twice: the same"
        ):
            quick_train(twice, TOY)


@pytest.mark.parametrize(
    "simulator, options, message",
    [
        (LinearGaussian(name="other"), {}, "simulator: expected linear-gaussian, got other"),
        (LinearGaussian(version="2"), {}, "version: expected 1, got 2"),
        (LinearGaussian(prior=normal_prior(sd=(1.0, 3.0))), {}, r"prior\[1\]: expected .*, got .*3\.0"),
        (LinearGaussian(((1.0, 0.0), (0.0, 1.0))), {}, r"x_shape: expected \(3,\), got \(2,\)"),
        (TOY, {"dtype": "float64"}, "dtype: expected float32, got float64"),
    ],
)
def test_stores_of_different_simulations_are_refused(stores, tmp_path, simulator, options, message):
    other = quick_store(tmp_path / "other.h5", simulator, 30, seed=9, **options)
    with pytest.raises(ValueError, match=rf"other\.h5: expected a store like .*5?\.h5, got .*{message}"):
        quick_train([*stores, other], TOY)


@pytest.mark.parametrize("nothing", [[], ["s.h5"]])
def test_something_else_than_stores_is_refused(nothing):
    with pytest.raises(ValueError, match="store: expected one store or several, got"):
        quick_train(nothing, TOY)


def test_every_store_is_compared_with_the_simulator(stores):
    with pytest.raises(ValueError, match=r"failed\.h5: a store of another simulator or prior: version"):
        quick_train(stores, LinearGaussian(version="2"))
