"""Effective sample sizes and the power of |f| that they allow, against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sbiflow.integrate.tempering import ess, highest_beta, normalised, tempered

INF = math.inf


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def brute_ess(log_f: np.ndarray, log_q: np.ndarray, beta: float) -> float:
    kept = log_f > -INF
    log_w = beta * log_f[kept] - log_q[kept]
    w = np.exp(log_w - log_w.max())
    return float(w.sum() ** 2 / (w * w).sum())


def gaussian(sigma: float, n: int = 2000, zeros: float = 0.0, seed: int = 1):
    """log f and log q of uniform draws in 3-D; a share of the rows is cut away."""
    rng = np.random.default_rng(seed)
    y = rng.uniform(size=(n, 3))
    log_f = -0.5 * (((y - 0.5) / sigma) ** 2).sum(1)
    log_f[rng.uniform(size=n) < zeros] = -INF
    return log_f, np.zeros(n)


def test_zero_stays_zero():
    log_f, log_q = tensor([-INF, 0.0, 3.0]), tensor([0.5, 1.0, 2.0])
    assert tempered(log_f, log_q, 0.0).tolist() == [-INF, -1.0, -2.0]
    assert tempered(log_f, log_q, 0.5).tolist() == [-INF, -1.0, -0.5]
    assert tempered(log_f, log_q, 1.0).tolist() == [-INF, -1.0, 1.0]


@pytest.mark.parametrize("offset", (0.0, -3000.0, 3000.0))
def test_normalised(offset):
    assert normalised(tensor([0.0, math.log(0.25), -INF]) + offset).tolist() == [
        1.0,
        pytest.approx(0.25),
        0.0,
    ]


def test_normalised_without_weights():
    assert normalised(tensor([-INF, -INF])).tolist() == [0.0, 0.0]
    assert normalised(tensor([])).tolist() == []


@pytest.mark.parametrize("beta", (0.0, 0.1, 1.0))
@pytest.mark.parametrize("zeros", (0.0, 0.7))
def test_ess_by_brute_force(beta, zeros):
    log_f, log_q = gaussian(0.2, zeros=zeros)
    log_q = log_q + 0.3 * np.random.default_rng(2).normal(size=len(log_q))
    found = ess(tempered(tensor(log_f), tensor(log_q), beta))
    assert found == pytest.approx(brute_ess(log_f, log_q, beta), rel=1e-12)


def test_ess_of_extremes():
    assert ess(tensor([])) == 0.0 and ess(tensor([-INF] * 5)) == 0.0
    assert ess(tensor([1e5] + [-1e5] * 9)) == 1.0
    assert ess(tensor([-1e5] * 7 + [-INF])) == pytest.approx(7.0)


@pytest.mark.parametrize("sigma", (1e-6, 1e-3, 0.1, 0.5))
@pytest.mark.parametrize("share", (0.05, 0.2))
@pytest.mark.parametrize("zeros", (0.0, 0.9))
def test_highest_beta_by_brute_force(sigma, share, zeros):
    """From uniform draws the ESS falls steadily with beta: the answer is within a step of the largest."""
    log_f, log_q = gaussian(sigma, zeros=zeros)
    found = highest_beta(tensor(log_f), tensor(log_q), share)
    wanted = share * (log_f > -INF).sum()
    largest = max(b for b in np.geomspace(1e-16, 1.0, 600) if brute_ess(log_f, log_q, b) >= wanted)
    assert largest * 0.8 < found <= largest * 1.07  # steps of 13 % here, of 6 % there
    assert brute_ess(log_f, log_q, found) >= wanted


def test_one_where_the_draws_follow_the_target():
    log_f = gaussian(0.1)[0]
    assert highest_beta(tensor(log_f), tensor(log_f) + 5.0, 0.99) == 1.0


def test_maximum_where_the_share_cannot_be_reached():
    """q is wider than f and has no ripples: the weights are flattest at some beta below one."""
    rng = np.random.default_rng(5)
    y = rng.normal(size=(2000, 4))
    log_q, log_f = -0.5 * (y**2).sum(1), -2.0 * (y**2).sum(1) + 0.8 * np.sin(9 * y).sum(1)
    found = highest_beta(tensor(log_f), tensor(log_q), 0.999)
    betas = np.geomspace(1e-4, 1.0, 600)
    sizes = [brute_ess(log_f, log_q, b) for b in betas]
    assert max(sizes) < 0.999 * 2000 and 0.1 < found < 1.0
    assert brute_ess(log_f, log_q, found) > 0.97 * max(sizes)


def test_all_zero():
    nothing = tensor([-INF] * 10)
    assert highest_beta(nothing, tensor([0.0] * 10), 0.2) == 1.0


def test_rows_that_are_zero_do_not_count():
    log_f, log_q = gaussian(0.1)
    with_zeros = np.concatenate([log_f, np.full(9000, -INF)]), np.concatenate([log_q, np.zeros(9000)])
    assert highest_beta(tensor(log_f), tensor(log_q), 0.2) == highest_beta(*map(tensor, with_zeros), 0.2)


def test_units_do_not_matter():
    log_f, log_q = gaussian(0.05)
    found = [highest_beta(tensor(log_f) + offset, tensor(log_q), 0.2) for offset in (0.0, -5000.0, 5000.0)]
    assert len(set(found)) == 1
