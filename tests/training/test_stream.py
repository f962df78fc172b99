"""Training data from the disk: which rows, in which order, with what memory, and what ends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from sbiflow import EmbeddingConfig, Store, TrainConfig, train
from sbiflow.store_file import write_at
from sbiflow.training.checkpoint import load_tensors
from sbiflow.training.chunks import Epoch
from sbiflow.training.data import TrainingData, held_out, load_training_data
from sbiflow.training.shards import Shards
from sbiflow.training.stream import StreamedData, _Key, training_data
from tests.quick import quick_store, quick_train, same_weights
from tests.test_contract_linear_gaussian import CONFIG, FLOW, STEPS, TOYS, failures
from tests.toys import LinearGaussian
from tests.training.on_disk import drawn_freely, one_after_the_other, sorted_by_first_parameter, written

ROOT = Path(__file__).parents[2]
TOY, CPU = LinearGaussian(), torch.device("cpu")
BUDGET = 40_000  # bytes: a pool of 192 rows of 52 bytes, chunks of 12
MEMORY = 4e-5  # [GB], the same


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return quick_store(tmp_path_factory.mktemp("stream") / "s.h5", TOY, 2000)


@pytest.fixture(scope="module")
def sorted_store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sorted")
    return sorted_by_first_parameter(folder / "sorted.h5", quick_store(folder / "s.h5", TOYS["2-D"], 20_000))


@pytest.fixture(autouse=True)
def few_chunks_in_a_pool(monkeypatch):
    monkeypatch.setattr("sbiflow.training.stream._CHUNKS", 16)


@pytest.fixture(autouse=True)
def no_thread_is_left_behind():
    yield
    assert reading_threads() == []


def reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("sbiflow-reader")]


def streamed(stores, seed=0, validation=0.05, budget=BUDGET, **options) -> StreamedData:
    return StreamedData(Shards.of(stores), TOY.prior, validation, seed, CPU, budget=budget, **options)


def epoch_rows(data, size: int, epoch: int = 0) -> list[torch.Tensor]:
    steps = len(data) // min(size, len(data))
    return [data.batch_rows(epoch * steps + step, size) for step in range(steps)]


# --- which rows


@pytest.mark.parametrize("size", [1, 64, 500, 10**6])
@pytest.mark.parametrize("kind", ["whole", "failed rows", "three stores", "float64"])
def test_the_batches_of_an_epoch_partition_the_training_rows(store, tmp_path, kind, size):
    """A batch of 500 is more than two pools."""
    first = written(
        tmp_path / "0.h5", store, np.arange(700), range(0, 700, 3) if kind == "failed rows" else ()
    )
    stores: Store | list[Store] = first
    if kind == "three stores":
        stores = [first, *(quick_store(tmp_path / f"{seed}.h5", TOY, 50 * seed, seed) for seed in (5, 4))]
    if kind == "float64":
        stores = written(tmp_path / "double.h5", store, np.arange(700), dtype="float64")
    valid = Shards.of(stores).valid_rows()
    with streamed(stores) as data:
        held = data.validation.rows.numpy()
        assert len(data) + len(held) == len(valid) and np.isin(held, valid).all()
        epochs = [torch.cat(epoch_rows(data, size, epoch)) for epoch in range(2)]
        for rows in epochs:
            assert len(rows) == len(data) // min(size, len(data)) * min(size, len(data))
            assert len(rows.unique()) == len(rows)
            assert np.isin(rows, np.setdiff1d(valid, held)).all()
        assert not epochs[0].equal(epochs[1])


def test_a_batch_is_what_the_store_holds_in_the_rows_that_it_says(store, tmp_path):
    part = written(tmp_path / "part.h5", store, np.arange(600), failed=range(7, 600, 11))
    other = quick_store(tmp_path / "other.h5", TOY, 300, seed=1)  # comes first, by its seed
    shards = Shards.of([part, other])
    whole = load_training_data(shards, TOY.prior, 0.05, 0, CPU)
    of_row = {int(row): (z, x) for z, x, row in zip(whole.z, whole.signal, whole.rows, strict=True)}
    with streamed([part, other]) as data:
        for step in range(6):
            z, signal = data.batch(step, 100)
            rows = data.batch_rows(step, 100)
            assert z.dtype == signal.dtype == torch.float32
            assert z.equal(torch.stack([of_row[int(row)][0] for row in rows]))
            assert signal.equal(torch.stack([of_row[int(row)][1] for row in rows]))
            halves = [data.batch(step, 100, own) for own in (slice(0, 50), slice(50, 100))]
            assert z.equal(torch.cat([half[0] for half in halves]))
            assert signal.equal(torch.cat([half[1] for half in halves]))


@pytest.mark.parametrize("more", [0, 300])
def test_the_split_and_the_rows_to_start_from_are_those_of_training_in_memory(store, tmp_path, more):
    """All rows at once: a run of them ends where a store ends."""
    stores = [store, quick_store(tmp_path / "more.h5", TOY, more, seed=1)] if more else store
    memory = load_training_data(Shards.of(stores), TOY.prior, 0.05, 3, CPU, 4)
    with streamed(stores, seed=3, split=4, budget=10**6) as data:
        assert len(data) == len(memory) == (2000 + more) * 0.95
        pairs = (data.validation, memory.validation), (data.some(10**6), memory.some(10**6))
        for from_disk, in_memory in (*pairs, (data.some(77), memory.some(77))):
            assert all(a.equal(b) for a, b in zip(from_disk, in_memory, strict=True))


def test_so_many_rows_that_their_permutation_is_not_made(monkeypatch):
    monkeypatch.setattr("sbiflow.training.data._WHOLE_SPLIT", 10_000)
    few, many = held_out(10**9, 0.5, 1, most=7), held_out(10**9, 0.5, 1)
    assert len(many) == len(many.unique()) == 10_000 and many.max() > 9e8 and many[:7].equal(few)
    assert not many.equal(held_out(10**9, 0.5, 2))


def test_a_sample_of_a_sorted_store_is_spread_over_it(sorted_store, monkeypatch):
    """As many rows from every tenth of the store, within 5 %."""
    monkeypatch.setattr("sbiflow.training.chunks._RUNS", 500)
    with streamed(sorted_store, budget=10**6) as data:
        rows = data.some(2000).rows.numpy()
    assert len(rows) == len(np.unique(rows)) == 2000
    assert np.histogram(rows, 10, (0, 20_000))[0] == pytest.approx(np.full(10, 200), abs=10)


def test_too_few_rows(tmp_path):
    few = quick_store(tmp_path / "s.h5", TOY, 19)
    with pytest.raises(ValueError, match=r"s\.h5: expected at least 20 valid rows to train on, got 19"):
        streamed(few)


# --- in which order


def test_a_batch_depends_on_seed_and_step_and_on_nothing_that_was_read_before(store):
    with streamed(store) as first, streamed(store) as second, streamed(store, seed=1, split=0) as other:
        ahead = [first.batch(step, 100) for step in range(25)]
        for step in (24, 3, 11, 0):
            again = second.batch(step, 100)
            assert all(a.equal(b) for a, b in zip(ahead[step], again, strict=True))
            assert not other.batch_rows(step, 100).equal(first.batch_rows(step, 100))


def test_a_pool_is_read_ahead_and_at_a_new_place_no_others(store, monkeypatch):
    read = []
    real = StreamedData._read_pool
    monkeypatch.setattr(StreamedData, "_read_pool", lambda self, key: read.append(key) or real(self, key))
    with streamed(store) as data:
        per_epoch = len(data) // 100
        data.batch(per_epoch + 9, 100)
        (now, ahead) = sorted(data._pools)
        data._pools[ahead].result()
        assert (
            now.epoch == 1 and ahead == (1, now.number + 1) and set(read) <= {(1, now.number - 1), now, ahead}
        )
        data.batch(2 * per_epoch - 1, 100)
        assert sorted(data._pools)[-1] == (2, 0)
        for step in range(2 * per_epoch, 3 * per_epoch):
            data.batch(step, 100)
            assert len(data._pools) <= 2
    assert len(read) <= 3 + 2 + (data._epoch(2).ends <= len(data)).sum() + 1


def batch_means(data, values: np.ndarray, size: int, epochs: int) -> tuple[float, int]:
    """Sum of squared deviations of batch means in units of full shuffling's variance, and its degrees of freedom."""
    means = np.array(
        [values[rows].mean() for epoch in range(epochs) for rows in epoch_rows(data, size, epoch)]
    )
    squares = float(((means - values.mean()) ** 2).sum() / (values.var() / size))
    return squares, len(means)


@pytest.mark.parametrize(
    "deal, passes", [(Epoch.deal.__func__, True), (one_after_the_other, False), (drawn_freely, False)]
)
def test_batches_of_a_sorted_store_scatter_as_if_it_had_been_shuffled(
    sorted_store, monkeypatch, deal, passes
):
    """False alarm 1e-6 at most: batches of a full permutation follow the chi-square, without replacement below it.

    Sequential reading fails, and so do chunks that were drawn at random but without strata: their pools are off by
    1 / sqrt(256) standard deviations each, the batches of 256 by twice as much in variance.
    """
    monkeypatch.setattr(Epoch, "deal", classmethod(deal))
    monkeypatch.setattr("sbiflow.training.stream._CHUNKS", 256)
    values = sorted_store.theta()[:, 0]
    with streamed(sorted_store, budget=4 * 256 * 4 * 52) as data:
        assert data.order == "from disk, 20 pools of chunks of 4 rows"
        squares, freedom = batch_means(data, values, 256, 3)
    assert (squares < chi2.isf(1e-6, freedom)) == passes
    if passes:  # nor regular beyond chance: what is lost are the means of 20 pools
        assert squares > chi2.ppf(1e-6, freedom - 3 * 20)


def on_sorted(store: Store, budget: float):
    toy = TOYS["2-D"]
    config = replace(CONFIG, steps=STEPS["2-D"])
    options = {"flow": FLOW, "embedding": EmbeddingConfig("none"), "progress": False}
    return train(store, toy, config, memory=budget, **options)


def test_a_sorted_store_trains_to_the_exact_posterior_and_read_in_sequence_it_does_not(
    sorted_store, monkeypatch
):
    """The gates of test_contract_linear_gaussian.py: false alarm below 1e-4."""
    toy = TOYS["2-D"]
    assert failures(on_sorted(sorted_store, 6e-4), toy) == []
    monkeypatch.setattr(Epoch, "deal", classmethod(one_after_the_other))
    assert failures(on_sorted(sorted_store, 6e-4), toy) != []


# --- how it ends and goes on


def test_killed_at_any_moment_and_resumed_the_weights_are_the_same_to_the_bit(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "tests.training.killed_on_disk", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    steps = json.loads(run.stdout)["steps"]
    assert len(steps) == 5 and steps == sorted(steps) and 0 < steps[0] < steps[-1] < 100
    assert load_tensors(tmp_path / "whole")[1]["identity"]["order"].startswith("from disk, ")
    whole, killed = (tmp_path / f"{name}.model" / "model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()


@contextmanager
def interrupted(monkeypatch, step: int):
    """SIGINT while a batch is read."""
    real = StreamedData.batch

    def batch(self, now, *arguments):
        if now == step:
            os.kill(os.getpid(), 2)
        return real(self, now, *arguments)

    monkeypatch.setattr(StreamedData, "batch", batch)
    yield
    monkeypatch.setattr(StreamedData, "batch", real)


def test_ctrl_c_and_on_again(store, tmp_path, monkeypatch):
    whole = quick_train(store, TOY, memory=MEMORY)
    with interrupted(monkeypatch, 13), pytest.raises(KeyboardInterrupt, match="stopped at step 14 of 40"):
        quick_train(store, TOY, memory=MEMORY, checkpoint=tmp_path / "c")
    assert reading_threads() == []
    assert same_weights(quick_train(store, TOY, memory=MEMORY, checkpoint=tmp_path / "c"), whole)
    assert not same_weights(quick_train(store, TOY), whole)


def test_an_error_of_the_simulator_ends_the_threads(store):
    class Broken(LinearGaussian):
        def observe(self, signal, generator=None):
            if len(signal) == 64:
                raise ArithmeticError("no noise today")
            return super().observe(signal, generator)

    with pytest.raises(ArithmeticError, match="no noise today"):
        quick_train(store, Broken(), memory=MEMORY)
    assert reading_threads() == []


def test_the_end_does_not_wait_for_what_is_being_read(store, monkeypatch):
    """The reader looks between two chunks whether anyone still wants them."""
    begun, go_on, read = threading.Event(), threading.Event(), []
    with streamed(store) as data:
        real = data._reader._fill

        def slow(*arguments):
            read.append(arguments)
            begun.set()
            assert go_on.wait(60)
            real(*arguments)

        monkeypatch.setattr(data._reader, "_fill", slow)
        data._scheduled(_Key(0, 0))
        assert begun.wait(60)
        threading.Timer(0.1, go_on.set).start()
    assert len(read) <= 4


def put(store: Store, name: str, row: int, value: float) -> None:
    region = store.layout[name]
    before = store.path.stat()
    with store.path.open("r+b") as file:
        array = np.full((1, *region.shape[1:]), value)
        write_at(file.fileno(), array, region.dtype, region.offset + row * region.row_bytes)
    os.utime(store.path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("dtype, value", [("float32", np.nan), ("float64", 1e300), ("float32", -np.inf)])
def test_a_signal_that_is_not_finite_stops_training_with_its_file_and_row(store, tmp_path, dtype, value):
    first = quick_store(tmp_path / "first.h5", TOY, 100, seed=0, dtype=dtype)
    broken = written(tmp_path / "broken.h5", store, np.arange(1000), dtype=dtype)
    put(broken, "signal", 500, value)
    message = r"broken\.h5: expected finite signals, got NaN or inf in 1 rows: \[500\]"
    with pytest.raises(ValueError, match=message):
        quick_train([broken, first], TOY, memory=1e-4)


def extended(store: Store) -> None:
    store.grow(store.n + 1)


def truncated(store: Store) -> None:
    os.truncate(store.path, store.path.stat().st_size // 2)


def rewritten(store: Store) -> None:
    put(store, "signal", 3, 1.0)
    os.utime(store.path, ns=(0, 1))


def removed(store: Store) -> None:
    store.path.unlink()


@pytest.mark.parametrize("change", [extended, truncated, rewritten, removed])
def test_a_store_that_changes_stops_training(store, tmp_path, change):
    mine = written(tmp_path / "mine.h5", store, np.arange(1000))
    expected = (
        (ValueError, "the store that training began with") if change is not removed else (OSError, "mine")
    )
    with streamed(mine) as data:
        data.batch(0, 64)
        change(mine)
        with pytest.raises(expected[0], match=expected[1]):
            for step in range(100):
                data.batch(step, 64)


def test_an_unfinished_store_that_is_extended_stops_training(store, tmp_path):
    half = unfinished(tmp_path / "half.h5", store)
    with streamed(half) as data:
        half.grow(4000)
        with pytest.raises(
            ValueError, match=r"half\.h5: expected the store .*, got one that was extended or"
        ):
            data.batch(0, 64)


def unfinished(path: Path, like: Store) -> Store:
    """1,024 of 2,000 rows."""
    half = Store.create(path, n=2000, x_shape=(3,), meta=like.meta)
    theta, signal = like.read(slice(0, 1024))
    with half.writer() as writer:
        writer.write(0, theta, signal, np.ones(1024, np.uint8), {})
    return half


def test_a_store_that_is_being_filled_may_go_on(store, tmp_path):
    """Rows that were pending are not used, though they are there by the time that their chunk is read."""
    half, (theta, signal) = unfinished(tmp_path / "half.h5", store), store.read(slice(0, 976))
    with streamed(half) as data:
        with half.writer() as writer:
            writer.write(1024, theta, signal, np.ones(976, np.uint8), {})
        rows = torch.cat(epoch_rows(data, 10))
    assert half.n_ok == 2000 and int(rows.max()) < 1024 and len(rows) > 900


# --- with what memory


def test_memory_is_bounded_by_the_budget_and_not_by_the_store(tmp_path):
    """A store of 200 MB with 30 MB; in memory it shows that the measurement sees what it is to see."""
    grown = []
    for gigabytes in (0.03, 10):
        command = [sys.executable, "-m", "tests.training.peak_memory", str(tmp_path / f"{gigabytes}.h5")]
        run = subprocess.run(
            [*command, str(gigabytes)], cwd=ROOT, capture_output=True, text=True, timeout=240
        )
        assert run.returncode == 0, run.stderr
        (tmp_path / f"{gigabytes}.h5").unlink()
        grown.append(float(run.stdout))
    assert grown[0] < 60 and grown[1] > 200


@pytest.mark.parametrize(
    "available, memory, from_disk",
    [(10**9, None, False), (10**5, None, True), (10**9, MEMORY, True), (10**5, 1, False)],
)
def test_what_does_not_fit_comes_from_the_disk(store, monkeypatch, available, memory, from_disk):
    monkeypatch.setattr("sbiflow.training.stream.available_memory", lambda device: available)
    with training_data(Shards.of(store), TOY.prior, 0.05, 0, CPU, memory=memory) as data:
        assert isinstance(data, StreamedData if from_disk else TrainingData)


@pytest.mark.parametrize("memory", [0, -1.0, float("nan")])
def test_memory_has_to_be_positive(store, memory):
    with pytest.raises(ValueError, match="memory: expected a value > 0"):
        quick_train(store, TOY, memory=memory)


def test_a_run_that_began_from_the_disk_goes_on_from_there_whatever_is_free(store, tmp_path, monkeypatch):
    """Its order would be another one in memory; for the same reason another size of the pools is refused."""
    available = "sbiflow.training.stream.available_memory"
    monkeypatch.setattr(available, lambda device: 1000)
    whole, config = quick_train(store, TOY), TrainConfig(steps=40, batch=64, validate_every=10, patience=None)
    with interrupted(monkeypatch, 5), pytest.raises(KeyboardInterrupt):
        quick_train(store, TOY, config, checkpoint=tmp_path / "c")
    monkeypatch.setattr(available, lambda device: 10**9)
    with pytest.raises(
        ValueError, match=r"another run.*order: expected from disk, .*, got from disk, 1 pools"
    ):
        quick_train(store, TOY, config, checkpoint=tmp_path / "c", memory=MEMORY)
    with pytest.raises(ValueError, match=r"another run.*order: expected None, got from disk, 1 pools"):
        quick_train(store, TOY, config, checkpoint=tmp_path / "c", memory=1)
    assert same_weights(quick_train(store, TOY, config, checkpoint=tmp_path / "c"), whole)


# --- the whole of it


def test_training_from_the_disk_starts_where_training_in_memory_starts(store, monkeypatch):
    """The same rows held out, the same fit of what is not trained: the same weights before the first step."""
    still = TrainConfig(steps=1, batch=64, learning_rate=1e-30, patience=None)
    in_memory = quick_train(store, TOY, still)
    monkeypatch.setattr("sbiflow.training.run.training_data", lambda *given: StreamedData(*given[:6], 10**6))
    from_disk = quick_train(store, TOY, still)
    assert same_weights(from_disk, in_memory)
    assert from_disk.log.validation_loss == in_memory.log.validation_loss
    assert (from_disk.info.simulations, from_disk.info.failed_simulations) == (2000, 0)
