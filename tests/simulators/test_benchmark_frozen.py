"""Frozen simulations: drawn once for each theta, whatever the batch, and in the form that a network takes."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from scipy import stats

import sbiflow as sf
from sbiflow.contracts import Simulator
from sbiflow.provenance import source_hash
from simulators.benchmark import TASKS, Frozen, frozen, task
from simulators.registry import BUILT_IN


@pytest.mark.parametrize("name", TASKS)
def test_frozen(name):
    subject = task(name)
    simulator = frozen(subject)
    assert isinstance(simulator, Simulator)
    theta = subject.prior.sample(6, torch.Generator().manual_seed(1))
    x = simulator.signal(theta)
    assert x.dtype == torch.float64
    assert x.isfinite().all()
    assert torch.equal(simulator.observe(x, None), x)
    backwards = simulator.signal(theta.flip(0)[:3]).flip(0)
    torch.testing.assert_close(backwards, x[3:], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pickle.loads(pickle.dumps(simulator)).signal(theta), x)
    raw = subject.raw(x)
    torch.testing.assert_close(simulator.x_of(raw), x)
    torch.testing.assert_close(simulator.log_likelihood(theta, x), subject.log_likelihood(theta, raw))
    torch.testing.assert_close(simulator.published(theta), subject.published(theta))
    assert source_hash(simulator) == source_hash(subject) != ""
    assert not torch.equal(frozen(subject, seed=1).signal(theta), x)
    assert frozen(subject, seed=1).version != simulator.version
    assert (simulator.prior, simulator.x_shape, simulator.x_names) == (
        subject.prior,
        subject.x_shape,
        subject.x_names,
    )


@pytest.mark.parametrize("name", TASKS)
def test_features_survive_single_precision(name):
    subject = task(name)
    theta = subject.prior.sample(200, torch.Generator().manual_seed(2))
    x = subject.observe(subject.signal(theta), torch.Generator().manual_seed(3))
    again = subject.raw(subject.features(x).float().double())
    torch.testing.assert_close(again, x, rtol=2e-5, atol=1e-5)
    if name in ("sir", "bernoulli_glm_raw"):
        assert torch.equal(again, x)
    np.testing.assert_allclose(subject.features(x).isfinite(), True)


def test_all_counts_of_sir_come_back_exactly():
    subject = task("sir")
    counts = torch.arange(1001.0, dtype=torch.float64)
    assert torch.equal(subject.raw(subject.features(counts).float()).double(), counts)


def test_noise_of_frozen_rows_is_independent_and_of_the_right_law():
    # Kolmogorov-Smirnov against N(0, 1), and the largest of 300 correlations: alarm 1e-3 each, by the seed
    simulator = frozen(task("gaussian_linear"))
    theta = simulator.prior.sample(2000, torch.Generator().manual_seed(4))
    noise = ((simulator.signal(theta) - theta) / math.sqrt(0.1)).numpy()
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    assert stats.kstest(1.06 * noise.ravel(), "norm").pvalue < 1e-3
    together = np.corrcoef(np.hstack([noise, noise[np.roll(np.arange(2000), 1)], theta.numpy()]).T)
    limit = stats.norm.isf(1e-3 / 900) / math.sqrt(2000)
    assert np.abs(together[:10] - np.eye(10, 30)).max() < limit


def test_a_store_continues_to_the_same_rows(tmp_path):
    simulator = frozen(task("lotka_volterra"))
    once = sf.simulate(simulator, 60, tmp_path / "once.h5", seed=1, block=20, progress=False)
    sf.simulate(simulator, 30, tmp_path / "twice.h5", seed=1, block=20, progress=False)
    twice = sf.simulate(simulator, 60, tmp_path / "twice.h5", seed=1, block=20, progress=False)
    rows = np.arange(60)
    for first, second in zip(once.read(rows), twice.read(rows), strict=True):
        np.testing.assert_array_equal(first, second)
    with pytest.raises(ValueError, match="version"):
        sf.simulate(Frozen(simulator.task, seed=2), 60, tmp_path / "once.h5", seed=1, progress=False)


def test_seed_is_checked():
    with pytest.raises(ValueError, match="seed: expected a whole number >= 0, got -1"):
        frozen(task("sir"), seed=-1)


def test_the_command_line_knows_every_task():
    assert set(TASKS) < set(BUILT_IN)
    for name in TASKS:
        assert BUILT_IN[name].make().name == BUILT_IN[name].recorded == name
