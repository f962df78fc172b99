"""Has a Markov chain run long enough? Autocorrelation time and rank-normalised split-R-hat.

Sources: Sokal (1997), "Monte Carlo methods in statistical mechanics" (windowed autocorrelation time); Goodman
& Weare (2010), Comm. App. Math. Comp. Sci. 5, 65; Vehtari et al. (2021), arXiv 1903.08008 (R-hat).
"""

from __future__ import annotations

import numpy as np

from sbiflow.optional import deferred

stats = deferred("scipy.stats")

_WINDOW = 5.0  # the sum over lags stops at this many autocorrelation times


def autocorrelation_time(chain: np.ndarray) -> float:
    """Integrated autocorrelation time in steps of the chain: (n steps, W walkers) -> float >= 1.

    Deviations are taken from the mean of all walkers, not from each walker's own: a walker that stays
    elsewhere keeps the autocorrelation above zero at every lag, and the time grows with the chain instead of
    hiding it. A chain that never moved has the time inf.
    """
    n = len(chain)
    deviation = chain - chain.mean()
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.fft.rfft(deviation, size, axis=0)
    covariance = np.fft.irfft((np.abs(spectrum) ** 2).mean(axis=1), size)[:n] / (n - np.arange(n))
    if not covariance[0] > 1e-20 * np.mean(chain**2):
        return float("inf")
    times = 2 * np.cumsum(covariance / covariance[0]) - 1
    inside = np.arange(n) >= _WINDOW * times
    return float(max(times[np.argmax(inside)] if inside.any() else times[-1], 1.0))


def rank_rhat(chains: np.ndarray) -> float:
    """Rank-normalised split-R-hat, the larger of the bulk and the folded one: (m chains, n draws) -> float.

    Bulk R-hat compares locations, folded R-hat (of |draw - median|) compares spreads.
    """
    half = chains.shape[1] // 2
    split = np.concatenate([chains[:, :half], chains[:, chains.shape[1] - half :]])
    return max(_rhat(_rank_normalise(split)), _rhat(_rank_normalise(np.abs(split - np.median(split)))))


def _rank_normalise(chains: np.ndarray) -> np.ndarray:
    ranks = stats.rankdata(chains, axis=None).reshape(chains.shape)
    return stats.norm.ppf((ranks - 0.375) / (chains.size + 0.25))


def _rhat(chains: np.ndarray) -> float:
    n = chains.shape[1]
    within = chains.var(axis=1, ddof=1).mean()
    between = chains.mean(axis=1).var(ddof=1)
    if within == 0:
        return float("inf") if between > 0 else 1.0
    return float(np.sqrt((n - 1) / n + between / within))
