"""Rows of another kind that a density likes better than its own: raw likelihood, typicality and likelihood ratio.

A row is a record of 32 channels. Eight of them hold a pulse, one cycle of a cosine of random phase plus noise of 0.4.
The other 24 hold noise of one gain for all of them, which varies from row to row (log-normal, 0.5 in the logarithm)
and says nothing of what kind of row it is. Rows of another kind have two cycles in place of one, so that every single
channel of the pulse is distributed as before, and a gain that is a third as large on average.

The gain moves log p by 24 nats per unit of its logarithm, 26 nats for a third, about as much as the wrong pulse costs:
quiet rows of another kind get the higher density more often than not. A background density, fitted to the same rows with a share of their entries exchanged
between rows (`sf.perturb`), knows the gain as well, but not the pulse; in the ratio the gain cancels.

The densities are fitted to ordinary rows alone. Both are known in closed form up to a one-dimensional integral each,
and so it can be said that the failure is not one of the fit. AUC: the chance that a row of the other kind scores
higher than an ordinary one, with DeLong's standard error.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from common import Number, options, output_folder, report_numbers, save_figure

import sbiflow as sf
from sbiflow.density.scores import OutlierScores
from sbiflow.plots import BLUE, ORANGE
from sbiflow.plots.style import CYCLE, DASHES

NAME = "42_outliers"
PULSE, NOISY = 8, 24
PULSE_NOISE, GAIN_SPREAD = 0.4, 0.5
QUIETER = math.log(3.0)
RATE = 0.1  # of a background row's entries, from other rows; the better of 0.1 and 0.2 on rows of other seeds
ROWS, TESTED = 20_000, 2_000
FLOW = sf.FlowConfig("spline_autoregressive", layers=3, hidden=64, blocks=1)
CONFIG = sf.TrainConfig(steps=1_200, batch=256, learning_rate=6e-3)
LEVEL = 0.05


def records(n: int, seed: int, cycles: int = 1, log_gain: float = 0.0) -> Tensor:
    """n rows (n, 32): the pulse first."""
    dice = torch.Generator().manual_seed(seed)
    phase = 2 * math.pi * torch.rand(n, 1, generator=dice, dtype=torch.float64)
    pulse = shape(phase, cycles) + PULSE_NOISE * torch.randn(n, PULSE, generator=dice, dtype=torch.float64)
    gain = torch.exp(log_gain + GAIN_SPREAD * torch.randn(n, 1, generator=dice, dtype=torch.float64))
    return torch.cat([pulse, gain * torch.randn(n, NOISY, generator=dice, dtype=torch.float64)], 1)


def shape(phase: Tensor, cycles: int) -> Tensor:
    """Noise-free pulses of phases (..., 1), (..., 8)."""
    return torch.cos(phase + 2 * math.pi * cycles * torch.arange(PULSE) / PULSE)


def exact_log_prob(rows: Tensor) -> Tensor:
    """Log-density of ordinary rows (n, 32), (n,): sums over 64 phases, which is exact, and 400 gains."""
    phases = shape(2 * math.pi * torch.arange(64, dtype=torch.float64)[:, None] / 64, 1)
    pulse = torch.distributions.Normal(phases, PULSE_NOISE).log_prob(rows[:, None, :PULSE]).sum(-1)
    x = torch.linspace(-6, 6, 400, dtype=torch.float64)  # log gain in standard deviations
    weight = -0.5 * x.square() + math.log(float(x[1] - x[0])) - 0.5 * math.log(2 * math.pi)
    square = rows[:, PULSE:].square().sum(-1, keepdim=True)
    log_gain = GAIN_SPREAD * x
    noise = -0.5 * square * torch.exp(-2 * log_gain) - NOISY * (log_gain + 0.5 * math.log(2 * math.pi))
    return torch.logsumexp(pulse, 1) - math.log(64) + torch.logsumexp(noise + weight, 1)


def auc(ordinary: Tensor, other: Tensor) -> tuple[float, float]:
    """Area under the ROC curve and its standard error (DeLong, DeLong & Clarke-Pearson 1988)."""
    low, high = ordinary.numpy(), other.numpy()
    below = (stats.rankdata(np.r_[low, high])[len(low) :] - stats.rankdata(high)) / len(low)
    above = 1 - (stats.rankdata(np.r_[low, high])[: len(low)] - stats.rankdata(low)) / len(high)
    return float(below.mean()), math.sqrt(below.var(ddof=1) / len(high) + above.var(ddof=1) / len(low))


Scored = dict[str, tuple[Tensor, Tensor]]  # name -> scores of ordinary rows, of the other kind


def fitted(arguments: argparse.Namespace) -> tuple[sf.Density, sf.Density]:
    """The density of ordinary rows, and the background: of other ordinary rows, perturbed."""
    rows, flow, config = ROWS, FLOW, CONFIG
    if arguments.fast:
        rows, flow = 1_000, sf.FlowConfig(layers=2, hidden=32, blocks=1)
        config = sf.TrainConfig(steps=40, batch=128, learning_rate=0.02)
    shared = {"flow": flow, "config": config, "seed": arguments.seed, "device": "cpu"}
    seeds = [10 * arguments.seed + i for i in range(3)]
    return (
        sf.fit_density(records(rows, seeds[0]), **shared),
        sf.fit_density(sf.perturb(records(rows, seeds[1]), RATE, seed=seeds[2]), **shared),
    )


def judged(name: str, ordinary: Tensor, other: Tensor, met: tuple[str, bool] | None = None) -> Number:
    """A line of the table."""
    area, error = auc(ordinary, other)
    floor, ok = met or ("", None)
    return Number(f"AUC, {name}", f"{area:.3f} ± {error:.3f}", floor, "", ok)


def numbers_of(own: OutlierScores, strange: OutlierScores, exact: tuple[Tensor, Tensor]) -> list[Number]:
    """Raw likelihood has to fail, and the ratio not to."""
    pairs = scored(own, strange)
    raw, ratio = auc(*pairs["likelihood"])[0], auc(*pairs["likelihood ratio"])[0]
    found = [
        judged("raw likelihood, fitted", *pairs["likelihood"], ("< 0.5: it fails", raw < 0.5)),
        judged("raw likelihood, exact density", -exact[0], -exact[1]),
        judged("typicality", *pairs["typicality"]),
        judged("likelihood ratio", *pairs["likelihood ratio"], (">= 0.9", ratio >= 0.9)),
    ]
    for name, kind in [
        ("likelihood", "likelihood"),
        ("typicality", "typicality"),
        ("ratio", "likelihood ratio"),
    ]:
        right, wrong = (getattr(scores, name).p_value <= LEVEL for scores in (own, strange))
        share = float(right.double().mean())
        most = 4 * math.sqrt(LEVEL * (1 - LEVEL) * (1 / len(right) + 1 / len(getattr(own, name).null)))
        found.append(
            Number(
                f"{kind}: ordinary rows with p <= {LEVEL}; of the other kind",
                f"{share:.3f}; {float(wrong.double().mean()):.3f}",
                f"{LEVEL} ± {most:.3f}; -",
                "",
                abs(share - LEVEL) <= most,
            )
        )
    return found


def scored(own: OutlierScores, strange: OutlierScores) -> Scored:
    """Scores by name, the larger the stranger."""
    if own.ratio is None or strange.ratio is None:
        raise ValueError("background: expected one, got none")
    return {
        "likelihood": (own.likelihood.values, strange.likelihood.values),
        "typicality": (own.typicality.values, strange.typicality.values),
        "likelihood ratio": (own.ratio.values, strange.ratio.values),
    }


LABELS = {
    "likelihood": "-log p [nats]",
    "typicality": "|-log p - entropy| [nats]",
    "likelihood ratio": "log p(background) - log p [nats]",
}


def figure(pairs: Scored) -> Figure:
    """Histograms of the three scores for both kinds of rows, and the ROC curves."""
    made = Figure(figsize=(13, 3.4), layout="constrained")
    *panels, last = made.subplots(1, 4)
    for axes, (name, (ordinary, other)) in zip(panels, pairs.items(), strict=True):
        edges = np.linspace(*np.percentile(torch.cat([ordinary, other]), [0.2, 99.8]), 50)
        axes.hist(ordinary, edges, color=BLUE, alpha=0.6, label="ordinary")
        axes.hist(other, edges, color=ORANGE, alpha=0.6, label="another kind")
        area, error = auc(ordinary, other)
        axes.set(xlabel=LABELS[name], title=f"{name}: AUC {area:.3f} ± {error:.3f}", yticks=[])
    panels[0].legend(frameon=False)
    for index, (name, (ordinary, other)) in enumerate(pairs.items()):
        cuts = torch.cat([ordinary, other]).sort(descending=True).values
        shares = [1 - torch.searchsorted(v.sort().values, cuts) / len(v) for v in (ordinary, other)]
        last.plot(*shares, color=CYCLE[index], linestyle=DASHES[index], label=name)
    last.plot([0, 1], [0, 1], color="grey", linewidth=0.7)
    last.set(
        xlabel="share of ordinary rows above the cut",
        ylabel="share of the other kind",
        title="ROC",
        aspect="equal",
    )
    last.legend(frameon=False, fontsize=8)
    return made


def main() -> None:
    arguments = options(__doc__ or "")
    started = time.perf_counter()
    density, background = fitted(arguments)
    tested = 300 if arguments.fast else TESTED
    ordinary = records(tested, 10 * arguments.seed + 5)
    other = records(tested, 10 * arguments.seed + 6, cycles=2, log_gain=-QUIETER)
    own, strange = (sf.outliers(density, rows, background) for rows in (ordinary, other))
    exact = exact_log_prob(ordinary), exact_log_prob(other)
    gap = exact[0] - own.log_prob
    numbers = [
        *numbers_of(own, strange, exact),
        Number(
            "fitted density: KL to the exact one, nats",
            f"{float(gap.mean()):.2f} ± {float(gap.std()) / tested**0.5:.2f}",
        ),
        Number("fitted density: evidence", str(density.evidence)),
        Number("background: evidence", str(background.evidence)),
        Number("time, minutes", f"{(time.perf_counter() - started) / 60:.1f}"),
    ]
    folder = output_folder(NAME, arguments.fast)
    save_figure(figure(scored(own, strange)), folder / "scores.png")
    title = "Outliers that raw likelihood misses" + (" (--fast: proves nothing)" if arguments.fast else "")
    report_numbers(title, numbers, folder, arguments)


if __name__ == "__main__":
    main()
