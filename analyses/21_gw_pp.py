"""P-P test of the gravitational-wave networks, as drawn and reweighted: are credible levels what they say?

For injections from the prior, the level of a true parameter is the share of posterior draws below it; reweighted, the
share of the weight, the truth's own not included (with it, ranks would be uniform whatever the network, Tibshirani et
al. 2019, arXiv 1904.06019). Injections whose weights fail stay in, with the weights that they have. Every parameter is
tested by Kolmogorov-Smirnov with the exact law of the statistic.

The combined p-value is Fisher's, -2 sum log p, which is chi-squared only if the p-values of the parameters are
independent. Those of correlated parameters are not (both masses; phase and time), and Fisher's law would then alarm too
often. Here its null distribution is made with the dependence that there is: for every injection one of its posterior
draws takes the truth's place, all parameters together, and the statistic is computed again, `NULLS` times. If the draws
are those of the posterior, truth and draws are exchangeable, so that (1 + number at least as large) / (1 + NULLS) is a
valid p-value whatever the correlations. Bonferroni's, valid under any dependence but conservative, stands beside it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.progress import track
from scipy import stats
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from common import HERE, Number, options, output_folder, report_numbers, save_figure
from gw_networks import network, setup_of

import sbiflow as sf
from sbiflow import plots
from sbiflow.calibration.pp import SIGMAS, PpPlot, pp_plot
from sbiflow.pairs import draw_pairs
from simulators.gravitational_waves.binary import Binary

NAME = {"a": "21_gw_pp", "b": "21_gw_pp-b", "c": "21_gw_pp-c"}
NULLS = 499
LEVEL = 0.01
_TOGETHER = 200_000  # draws at once


@dataclass(frozen=True)
class Levels:
    """Credible levels of truths (N, D), and of draws in their place (N, NULLS, D)."""

    truth: np.ndarray
    null: np.ndarray

    def combined(self) -> tuple[float, float]:
        """Fisher's statistic and its p-value under the dependence that there is."""
        found, null = fisher(self.truth[:, None]), fisher(self.null)
        return float(found[0]), float((1 + (null >= found).sum()) / (1 + len(null)))


def fisher(levels: np.ndarray) -> np.ndarray:
    """-2 sum log p over the parameters, p of Kolmogorov and Smirnov: (N, K, D) -> (K,)."""
    u, n = np.sort(levels, axis=0), len(levels)
    steps = np.arange(1, n + 1)[:, None, None] / n
    statistic = np.maximum((steps - u).max(0), (u - steps + 1 / n).max(0))
    return -2 * np.log(np.maximum(stats.kstwo.sf(statistic, n), np.finfo(float).tiny)).sum(1)


def levels_of(
    star: np.ndarray, theta: np.ndarray, weights: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Share of the weight below: truth (D,) among draws (n, D) of weights (n,), sum 1 -> (D,), (NULLS, D)."""
    chosen = rng.choice(len(theta), NULLS, p=weights)
    own = weights[chosen]
    truth, null = np.empty(len(star)), np.empty((NULLS, len(star)))
    for d, column in enumerate(theta.T):
        order = np.argsort(column)
        below = np.empty(len(column))
        below[order] = np.cumsum(weights[order]) - weights[order]
        truth[d] = weights[column < star[d]].sum()
        null[:, d] = below[chosen] + own * rng.random(NULLS)
    return truth.clip(0, 1), null.clip(0, 1)


@dataclass(frozen=True)
class Found:
    """Of all injections: levels of the plain and the weighted draws, efficiencies, verdicts, novelty alarms."""

    raw: Levels
    reweighted: Levels
    efficiency: np.ndarray
    khat: np.ndarray
    reliable: np.ndarray
    alarms: int
    minutes: float


def inject(posterior: sf.Posterior, simulator: Binary, n: int, draws: int, seed: int) -> Found:
    """Draw for every injection, weigh, rank."""
    theta, x, _ = draw_pairs(simulator, n, seed=seed + 3000)
    started = time.perf_counter()
    simulator.log_likelihood(theta[:1].expand(draws, -1), x[0])
    each = time.perf_counter() - started
    print(f"{n:,} injections x {draws:,} likelihoods: about {n * each / 60:.0f} minutes")
    rng, size = np.random.default_rng([seed, 21]), max(_TOGETHER // draws, 1)
    kept: dict[str, list[np.ndarray]] = {name: [] for name in ("raw", "raw null", "own", "own null")}
    diagnostics, alarms = [], 0
    for start in track(range(0, n, size), "injections"):
        block = posterior.sample(x[start : start + size], draws, seed=seed + start)
        alarms += int(block.novelty.alarm.sum()) if block.novelty is not None else 0
        for i, star in enumerate(theta[start : start + size].numpy()):
            one = block.observation(i).reweight(simulator.log_likelihood, elsewhere=0, progress=False)
            diagnostics.append(one.diagnostics)
            values, equal = one.theta.numpy(), np.full(draws, 1 / draws)
            weights = _normalised(one.log_weights)
            for name, chosen in (("raw", equal), ("own", weights)):
                truth, null = levels_of(star, values, chosen, rng)
                kept[name].append(truth)
                kept[f"{name} null"].append(null)
    raw, own = (Levels(np.stack(kept[name]), np.stack(kept[f"{name} null"])) for name in ("raw", "own"))
    return Found(
        raw,
        own,
        efficiency=np.array([found.efficiency for found in diagnostics]),
        khat=np.array([found.khat for found in diagnostics]),
        reliable=np.array([found.reliable for found in diagnostics]),
        alarms=alarms,
        minutes=(time.perf_counter() - started) / 60,
    )


def _normalised(log_weights: Tensor) -> np.ndarray:
    weights = torch.softmax(log_weights, 0).numpy()
    return weights / weights.sum()


def figure_of(pp: PpPlot, labels: list[str]) -> Figure:
    """Curves in simultaneous bands of 1, 2 and 3 sigma."""
    bands = [
        (f"{sigma}σ", np.r_[0, band.low, 1], np.r_[0, band.high, 1])
        for sigma, band in zip(SIGMAS, pp.bands(), strict=True)
    ]
    texts = [f"{label} (p = {p:.2g})" for label, p in zip(labels, pp.p_values, strict=True)]
    return plots.pp_curves(pp.grid, pp.curves, texts, bands)


def numbers_of(kind: str, levels: Levels, pp: PpPlot) -> list[Number]:
    """Every parameter's p-value and the combined ones."""
    statistic, p = levels.combined()
    each = ", ".join(f"{name} {value:.2g}" for name, value in pp.p_by_name.items())
    return [
        Number(f"{kind}: Kolmogorov-Smirnov p", each),
        Number(f"{kind}: combined p (Fisher {statistic:.1f}, null with the correlations)", f"{p:.3f}", f"{LEVEL}", "", p >= LEVEL),
        Number(f"{kind}: combined p by Bonferroni; by Fisher if independent", f"{pp.bonferroni:.3g}; {pp.fisher:.3g}"),
    ]  # fmt: skip


def main() -> None:
    arguments = options(__doc__ or "", setup="a", model="", injections=1000, draws=5000)
    fast, seed = arguments.fast, arguments.seed
    setup, folder = setup_of(arguments), output_folder(NAME[arguments.setup], fast)
    n, draws = (40, 500) if fast else (arguments.injections, arguments.draws)
    simulator = setup.simulator()
    posterior = network(setup, simulator, arguments, folder)
    found = inject(posterior, simulator, n, draws, seed)

    numbers = [Number("injections, draws for each", f"{n:,}, {draws:,}")]
    for kind, levels in (("raw", found.raw), ("reweighted", found.reweighted)):
        pp = pp_plot(simulator.prior.names, levels.truth)
        numbers += numbers_of(kind, levels, pp)
        figure = figure_of(pp, list(simulator.prior.labels))
        save_figure(figure, folder / f"pp-{kind}.png")
        if arguments.record and not fast:
            save_figure(figure, HERE / "results" / f"{folder.name}-{kind}.png")
    quantiles = ", ".join(f"{q:.3f}" for q in np.quantile(found.efficiency, [0.5, 0.1, 0.01, 0.0]))
    numbers += [
        Number("efficiency: median, worst decile, worst percentile, worst", quantiles),
        Number("injections whose weights fail (they stay in)", f"{int((~found.reliable).sum())} of {n}"),
        Number("k-hat: largest", f"{found.khat.max():.2f}"),
        Number("injections called unlike the simulations", f"{found.alarms} of {n}"),
        Number("time, minutes", f"{found.minutes:.1f}"),
    ]
    title = f"P-P test, setup ({arguments.setup})" + (" (--fast: proves nothing)" if fast else "")
    report_numbers(title, numbers, folder, arguments)


if __name__ == "__main__":
    main()
