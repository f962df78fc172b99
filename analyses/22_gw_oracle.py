"""Learned posteriors of black-hole binaries against the exact one.

Setup (a), five parameters in one detector, the test case of Green, Simpson & Gair (2020, arXiv 2002.07656): the exact
posterior is known by quadrature (simulators/gravitational_waves/exact.py). For events drawn from the prior: evidence,
every marginal, the mass of the four modes (phi_c and phi_c + π, either body the heavier), and what the importance
weights are worth. Setup (b), eight parameters (--setup b): efficiencies, and emcee for a few events.

Jensen-Shannon divergence of a marginal [mnat]: the draws, weighted or not, are counted in B = round(2 n^(1/3)) cells of
equal probability under the exact marginal, n the effective sample size, and compared with 1 / B; the counts' scatter is
included. The floor is the same number for n exact draws, whose probabilities are uniform.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.progress import track
from scipy.special import xlogy
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from common import Number, options, output_folder, report_numbers, save_figure
from gw_emcee import against_emcee
from gw_networks import loudness, network, setup_of

import sbiflow as sf
from sbiflow.pairs import draw_pairs
from simulators.gravitational_waves.binary import Binary
from simulators.gravitational_waves.exact import NAMES, ExactPosterior, exact_posterior

NAME = {"a": "22_gw_oracle", "b": "22_gw_eight_parameters"}
SAMPLES = 10_000  # whose time is taken


@dataclass(frozen=True)
class Event:
    """One observation of (a); divergences in mnat, in the order of `NAMES`; modes as shares."""

    snr: float
    efficiency: float
    khat: float
    reliable: bool
    log_evidence: float
    log_evidence_error: float
    exact_log_evidence: float
    jsd_raw: list[float]
    jsd_reweighted: list[float]
    floor_raw: float
    floor_reweighted: float
    modes: list[float]

    @property
    def difference(self) -> float:
        """Of ln Z from the exact one."""
        return self.log_evidence - self.exact_log_evidence

    @property
    def pull(self) -> float:
        """The same in errors."""
        return abs(self.difference) / self.log_evidence_error


def exact_of(simulator: Binary, x: Tensor) -> ExactPosterior:
    """The oracle's answer to one observation (*x_shape)."""

    def waveforms(mass_1: Tensor, mass_2: Tensor) -> Tensor:
        theta = torch.zeros(len(mass_1), simulator.prior.dim, dtype=torch.float64)
        theta[:, 0], theta[:, 1] = mass_1, mass_2
        return simulator.waveform(theta)[:, 0]

    return exact_posterior(torch.complex(*simulator.strain(x[None])[0, 0]), waveforms, simulator.frequencies)


def divergence(u: np.ndarray, weights: np.ndarray | None, n: float) -> float:
    """JSD [mnat] of draws at exact cumulative probabilities u, as in the module's docstring."""
    cells = round(2 * n ** (1 / 3))
    p = np.histogram(u, cells, (0.0, 1.0), weights=weights)[0]
    p, q = p / p.sum(), np.full(cells, 1 / cells)
    m = (p + q) / 2
    return 1e3 * float((xlogy(p, p) + xlogy(q, q)).sum() / 2 - xlogy(m, m).sum())


def floor(n: int, repeats: int = 20) -> float:
    """The mean divergence of n exact draws, whose probabilities are uniform."""
    rng = np.random.default_rng(0)
    return float(np.mean([divergence(rng.random(n), None, n) for _ in range(repeats)]))


def mode_masses(theta: np.ndarray, weights: np.ndarray) -> list[float]:
    """Shares of the four quarters (phi_c below or above π, either mass the larger); exactly 1/4 each."""
    quarter = 2 * (theta[:, 2] >= np.pi) + (theta[:, 0] >= theta[:, 1])
    return np.bincount(quarter, weights, 4).tolist()


def judge(simulator: Binary, weighted: sf.WeightedSamples, exact: ExactPosterior, snr: float) -> Event:
    """Compare the draws of one event with the exact posterior."""
    theta, weights, found = weighted.theta.numpy(), weighted.weights.numpy(), weighted.diagnostics
    u = [exact.marginal(name).cdf(column) for name, column in zip(NAMES, theta.T, strict=True)]
    return Event(
        snr, found.efficiency, found.khat, found.reliable, found.log_evidence, found.log_evidence_error,
        exact.log_evidence,
        jsd_raw=[divergence(column, None, len(theta)) for column in u],
        jsd_reweighted=[divergence(column, weights, found.ess) for column in u],
        floor_raw=floor(len(theta)),
        floor_reweighted=floor(int(found.ess)),
        modes=mode_masses(theta, weights),
    )  # fmt: skip


def efficiencies(posterior: sf.Posterior, simulator: Binary, x: Tensor, n: int, seed: int) -> np.ndarray:
    """Of n proposals for every observation (B, *x_shape), without the check for missed modes."""
    found = []
    for i in track(range(len(x)), "efficiencies", transient=True):
        draws = posterior.sample(x[i], n, seed=seed)
        weighted = draws.reweight(simulator.log_likelihood, elsewhere=0, progress=False)
        found.append(weighted.diagnostics.efficiency)
    return np.array(found)


def sampling_seconds(posterior: sf.Posterior, x: Tensor, threads: int, repeats: int) -> float:
    """Time of `SAMPLES` draws of one observation, novelty test included, best of several."""
    before, best = torch.get_num_threads(), np.inf
    torch.set_num_threads(threads)
    for seed in range(repeats):
        start = time.perf_counter()
        posterior.sample(x, SAMPLES, seed=seed)
        best = min(best, time.perf_counter() - start)
    torch.set_num_threads(before)
    return best


def efficiency_figure(snr: np.ndarray, efficiency: np.ndarray) -> Figure:
    """Every event a point."""
    figure = Figure(figsize=(5.0, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(snr, efficiency, ".", color="C0")
    axes.axhline(
        np.median(efficiency), color="black", linewidth=0.7, label=f"median {np.median(efficiency):.2f}"
    )
    axes.set(xlabel="optimal signal-to-noise ratio", ylabel="efficiency of the raw network", ylim=(0, 1))
    axes.legend(frameon=False)
    return figure


def oracle(posterior: sf.Posterior, simulator: Binary, seed: int, fast: bool, folder: Path) -> list[Number]:
    """Every event of (a) against the exact posterior; the corner of the first."""
    count, n = (1, 4000) if fast else (20, 100_000)
    theta, x, _ = draw_pairs(simulator, count, seed=seed + 1000)
    events, started = [], time.perf_counter()
    for i, snr in enumerate(loudness(simulator, theta).tolist()):
        exact = exact_of(simulator, x[i])
        weighted = posterior.sample(x[i], n, seed=seed + i).reweight(simulator.log_likelihood, progress=False)
        events.append(event := judge(simulator, weighted, exact, snr))
        print(
            f"event {i:>2}: SNR {snr:4.1f}, efficiency {event.efficiency:.3f}, k-hat {event.khat:5.2f}, "
            f"Δ ln Z {event.difference:+.4f} ± {event.log_evidence_error:.4f}, JSD raw {np.mean(event.jsd_raw):.3f}, "
            f"reweighted {np.mean(event.jsd_reweighted):.3f} mnat, modes {np.round(event.modes, 4).tolist()}",
            flush=True,
        )
        if i == 0:
            draws = exact.sample(500 if fast else 20_000, seed)
            other = sf.PosteriorSamples(draws, torch.full((len(draws),), torch.nan), x[0], simulator.prior)
            corner = weighted.corner(theta[0].numpy(), {"exact": other}, "flow, reweighted")
            save_figure(corner, folder / "corner.png")
    (folder / "events.json").write_text(json.dumps([asdict(event) for event in events], indent=1))
    minutes = (time.perf_counter() - started) / 60
    return [*event_numbers(events, n), Number("time of these comparisons, minutes", f"{minutes:.1f}")]


def event_numbers(events: list[Event], n: int) -> list[Number]:
    """The table's lines about single events."""
    raw, corrected = (np.array([getattr(e, f"jsd_{kind}") for e in events]) for kind in ("raw", "reweighted"))
    floors = [np.mean([getattr(e, f"floor_{kind}") for e in events]) for kind in ("raw", "reweighted")]
    worst_name = NAMES[int(corrected.mean(0).argmax())]
    pull, off = max(e.pull for e in events), max(abs(e.difference) for e in events)
    modes = float(np.abs(4 * np.array([e.modes for e in events]) - 1).max())
    bad = sum(not e.reliable for e in events)
    return [
        Number("events, proposals for each", f"{len(events)}, {n:,}"),
        Number("JSD raw, mean of all marginals, mnat", f"{raw.mean():.3f}", "10", "3", bool(raw.mean() <= 10)),
        Number("  worst single one; exact draws have", f"{raw.max():.3f}; {floors[0]:.3f}"),
        Number("JSD reweighted, mean of all marginals, mnat", f"{corrected.mean():.3f}", "2", "1", bool(corrected.mean() <= 2)),
        Number("  worst single one; worst parameter; exact draws have", f"{corrected.max():.3f}; {worst_name} {corrected.mean(0).max():.3f}; {floors[1]:.3f}"),
        Number("ln Z against exact: largest difference, nats", f"{off:.4f}", "0.1", "0.02", off <= 0.1),
        Number("ln Z against exact: largest difference in errors", f"{pull:.2f}", "3", "", pull <= 3),
        Number("mass of the four modes against 1/4: worst", f"{modes:.2%}", "5%", "", modes <= 0.05),
        Number("k-hat: largest; answers not trustworthy", f"{max(e.khat for e in events):.2f}; {bad}"),
    ]  # fmt: skip


def shared_numbers(
    posterior: sf.Posterior, efficiency: np.ndarray, n: int, seconds: list[float], setup: str
) -> list[Number]:
    """Training, efficiency over many events, speed."""
    median, decile = float(np.median(efficiency)), float(np.quantile(efficiency, 0.1))
    floors: dict[str, Any] = {"a": (0.25, "0.60"), "b": (0.02, "0.15")}
    least, reach = floors[setup]
    minutes = posterior.info.training_seconds / 60
    return [
        Number("simulations, training steps", f"{posterior.info.simulations:,}, {posterior.info.steps:,}"),
        Number("training time, minutes", f"{minutes:.1f}", "60", "15", minutes <= 60),
        Number(f"efficiency, median of {len(efficiency)} events, {n:,} proposals each", f"{median:.3f}", str(least), reach, median >= least),
        Number("efficiency, worst decile", f"{decile:.3f}", "0.05" if setup == "a" else "", "0.25" if setup == "a" else "", decile >= 0.05 if setup == "a" else None),
        Number(f"seconds for {SAMPLES:,} posterior samples, one and two threads", ", ".join(f"{s:.3f}" for s in seconds), "2", "0.2", min(seconds) <= 2),
    ]  # fmt: skip


def main() -> None:
    arguments = options(__doc__ or "", setup="a", model="")
    fast, seed = arguments.fast, arguments.seed
    setup, folder = setup_of(arguments, "ab"), output_folder(NAME[arguments.setup], fast)
    simulator = setup.simulator()
    print(f"{simulator.prior}\n")
    posterior = network(setup, simulator, arguments, folder)
    compare = oracle if arguments.setup == "a" else against_emcee
    numbers = compare(posterior, simulator, seed, fast, folder)
    count, n = (5, 500) if fast else (200 if arguments.setup == "a" else 100, 10_000)
    theta, x, _ = draw_pairs(simulator, count, seed=seed + 2000)
    efficiency = efficiencies(posterior, simulator, x, n, seed)
    save_figure(efficiency_figure(loudness(simulator, theta).numpy(), efficiency), folder / "efficiency.png")
    threads = (1,) if fast else (1, 2)
    seconds = [sampling_seconds(posterior, x[0], count, 1 if fast else 9) for count in threads]
    numbers = shared_numbers(posterior, efficiency, n, seconds, arguments.setup) + numbers
    title = f"Gravitational waves, setup ({arguments.setup})" + (" (--fast: proves nothing)" if fast else "")
    report_numbers(title, numbers, folder, arguments)


if __name__ == "__main__":
    main()
