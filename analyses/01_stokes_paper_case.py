"""The published 5-parameter Stokes benchmark (Díaz Baso et al. 2022, arXiv 2108.07089), measured.

Stokes I of one Fe I line in a Milne-Eddington atmosphere. A flow is trained on 1,000,000 simulations and compared
with the published network's figures, with exact importance sampling, with its own calibration on fresh simulations
and with emcee on the paper's observation.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import Number, options, output_folder, report_numbers, save_figure

import sbiflow as sf
from sbiflow.calibration import compare, emcee_reference
from sbiflow.observing import observe
from sbiflow.pairs import draw_pairs
from simulators.stokes import MilneEddington

NAME = "01_stokes_paper_case"
TRUTH = torch.tensor([[-1.0, 0.15, 2.5, 0.35, 0.7]], dtype=torch.float64)  # the paper's observation
FLOW = sf.FlowConfig(family="spline_coupling", layers=5, hidden=64, start="prior")
EMBEDDING = sf.EmbeddingConfig(kind="residual", hidden=128, blocks=3, features=64)


def efficiencies(posterior: sf.Posterior, simulator: MilneEddington, x: torch.Tensor, n: int) -> np.ndarray:
    """Importance-sampling efficiency of the raw network for every observation."""
    draws = posterior.sample(x, n, seed=3)
    one_by_one = (
        draws.observation(i).reweight(simulator.log_likelihood, progress=False) for i in range(len(x))
    )
    return np.array([weighted.diagnostics.efficiency for weighted in one_by_one])


def draws_per_second(posterior: sf.Posterior, x: torch.Tensor, n: int, repeats: int = 5) -> float:
    """Posterior draws of one observation per second on one CPU thread, median."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        posterior.sample(x, n, seed=repeat)
        seconds.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return n / float(np.median(seconds[1:]))  # the first warms up


def main() -> None:
    arguments = options(__doc__ or "", simulations=1_000_000, steps=11_000)
    fast, seed = arguments.fast, arguments.seed
    n, steps = (20_000, 300) if fast else (arguments.simulations, arguments.steps)
    n_pairs, n_observations, n_calibration = (1000, 10, 200) if fast else (20_000, 200, 1000)
    folder = output_folder(NAME, fast)
    simulator = MilneEddington.paper_case()
    print(f"{simulator.prior}\n")

    store = sf.simulate(simulator, n, folder / f"simulations-{n}-{seed}.h5", seed=seed)
    config = sf.TrainConfig(steps=steps, patience=None, seed=seed)
    checkpoint = folder / f"checkpoint-{n}-{steps}-{seed}.safetensors"
    posterior = sf.train(store, simulator, config, flow=FLOW, embedding=EMBEDDING, checkpoint=checkpoint)
    posterior.save(folder / "model")

    theta, x, _ = draw_pairs(simulator, n_pairs, seed=seed + 1000)
    log_q = posterior.log_prob(theta, x)
    efficiency = efficiencies(posterior, simulator, x[:n_observations], 2000 if fast else 10_000)
    inside = simulator.prior.inside(posterior.sample(x[:100], 1000 if fast else 10_000, seed=4).theta)
    outside = int((~inside).sum())
    report = sf.calibrate(posterior, simulator, n=n_calibration, seed=seed + 2000)
    report.to_html(folder / "calibration.html")

    x_paper = observe(simulator, TRUTH, simulator.signal(TRUTH), torch.Generator().manual_seed(seed))[0]
    draws = posterior.sample(x_paper, 20_000, seed=5)
    weighted = draws.reweight(simulator.log_likelihood)
    reference = emcee_reference(
        simulator.log_likelihood,
        simulator.prior,
        x_paper,
        seed=6,
        max_steps=400 if fast else 20_000,
    )
    raw, corrected = compare(draws.theta, reference), compare(draws.theta, reference, weighted.weights)
    print(
        f"\n{weighted}\n\n{reference}\n\nraw flow against emcee\n{raw}\n\nreweighted against emcee\n{corrected}\n"
    )
    print(report)

    figure = weighted.corner(
        truth=TRUTH[0].numpy(), overlay={"emcee": reference.samples()}, label="flow, reweighted"
    )
    save_figure(figure, folder / "corner.png")
    save_figure(posterior.log.figure(), folder / "training.png")
    save_figure(report.rank_figure(), folder / "ranks.png")
    save_figure(report.coverage_figure(), folder / "coverage.png")

    mean, error = float(log_q.mean()), float(log_q.std()) / len(log_q) ** 0.5
    median, fifth = float(np.median(efficiency)), float(np.quantile(efficiency, 0.05))
    speed, minutes = (
        draws_per_second(posterior, x_paper, 20_000 if fast else 200_000),
        posterior.info.training_seconds / 60,
    )
    numbers = [
        Number("simulator calls, training", f"{posterior.info.simulations:,}"),
        Number("training time, minutes", f"{minutes:.1f}", "10", "", minutes <= 10),
        Number(f"mean log q(θ*|x*), {n_pairs:,} pairs (published 12.537)", f"{mean:.3f} ± {error:.3f}", "12.40", "12.60", mean >= 12.40),
        Number(f"efficiency, median of {n_observations} (published 0.931)", f"{median:.3f}", "0.90", "0.96", median >= 0.90),
        Number("efficiency, 5th percentile (published 0.727)", f"{fifth:.3f}", "0.65", "0.80", fifth >= 0.65),
        Number(f"SBC + HPD coverage, N = {n_calibration}, α = 1e-4", "pass" if report.passed_at(1e-4) else "fail", "pass", "", report.passed_at(1e-4)),
        Number(f"SBC + HPD coverage, N = {n_calibration}, α = 0.05", "pass" if report.passed_at(0.05) else "fail", "", "pass"),
        Number("paper's observation against emcee, raw: worst median shift", f"{raw.worst_shift:.3f} σ", "0.1 σ", "", raw.worst_shift <= 0.1),
        Number("same: worst width difference", f"{raw.worst_width:.1%}", "5%", "", raw.worst_width <= 0.05),
        Number("emcee converged, likelihood calls", f"{reference.converged}, {reference.n_likelihood_calls:,}"),
        Number("draws per second, one thread (published 26,000)", f"{speed:,.0f}", "52,000", "200,000", speed >= 52_000),
        Number(f"draws outside the prior, of {inside.numel():,}", str(outside), "0", "", outside == 0),
    ]  # fmt: skip
    report_numbers(
        "Stokes paper case" + (" (--fast: proves nothing)" if fast else ""), numbers, folder, arguments
    )


if __name__ == "__main__":
    main()
