"""The posterior of a real solar spectrum: SST/CRISP, Fe I 6301.5 and 6302.5 Å, full Stokes, eleven parameters.

A flow is trained on simulations of a Milne-Eddington atmosphere, applied to the observation, corrected by importance
sampling, checked for calibration, compared with emcee on the same likelihood, and asked whether the observation
lies within what the simulator produces: at the bare noise it must say no, with the stated allowance for what a
Milne-Eddington atmosphere cannot do, yes. Without the data file, a synthetic observation takes its place.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from common import Number, options, output_folder, report_numbers, save_figure
from page import Section, Verdict, write_page

import sbiflow as sf
from sbiflow import datasets, plots
from sbiflow.calibration import PredictiveCheck, Reference
from sbiflow.observing import observe
from simulators.crisp import BEST_FIT, CONTINUUM_FACTOR, NOISE, crisp_simulator, load_crisp
from simulators.stokes import MilneEddington

NAME = "02_stokes_crisp"
FLOW = sf.FlowConfig(family="spline_coupling", layers=5, hidden=64, start="prior")
EMBEDDING = sf.EmbeddingConfig(kind="residual", hidden=128, blocks=3, features=64)


def observation() -> tuple[MilneEddington, Tensor, str]:
    """Simulator, observed Stokes parameters (4, 16) and what they are."""
    try:
        crisp = load_crisp(datasets.find("crisp/feobs.fits"))
    except FileNotFoundError as error:
        print(f"{error}\nusing a synthetic observation instead")
        simulator = crisp_simulator()
        theta = torch.tensor([BEST_FIT], dtype=torch.float64)
        x = observe(simulator, theta, simulator.signal(theta).double(), torch.Generator().manual_seed(0))[0]
        return simulator, x, "synthetic spectrum at the wavelengths of SST/CRISP"
    print(
        f"continuum: {CONTINUUM_FACTOR} x the largest intensity = {crisp.continuum:.4e} erg s-1 cm-2 Hz-1 sr-1"
    )
    print(f"polarimetric noise in the far wings: {crisp.polarimetric_noise:.1e} of the continuum")
    print(f"noise of I, Q, U, V with the allowance for the model: {NOISE}\n")
    return crisp_simulator(crisp), crisp.stokes, "SST/CRISP spectrum crisp/feobs.fits"


def predicted_bands(weighted: sf.WeightedSamples, simulator: MilneEddington) -> Tensor:
    """Posterior-predictive quantiles (5, 4, 16), noise included."""
    draws = weighted.resample(4000, seed=7).theta
    signal = simulator.signal(draws).double()
    replicated = observe(simulator, draws, signal, torch.Generator().manual_seed(8))
    levels = torch.tensor([0.025, 0.16, 0.5, 0.84, 0.975], dtype=torch.float64)
    return torch.quantile(replicated, levels, dim=0)


def bare_noise_check(x: Tensor, reference: Reference, seed: int, fast: bool) -> PredictiveCheck:
    """The same test without the allowance, on emcee's posterior of the bare-noise likelihood.

    A chain too short to have converged is enough to say whether anything near the best fit explains the data; --fast
    takes the draws with the allowance.
    """
    bare, theta = crisp_simulator(noise_i=1e-2, noise_pol=2e-3), reference.theta
    if not fast:
        theta = sf.emcee_reference(
            bare.log_likelihood, bare.prior, x, seed=seed, start=theta, max_steps=1000
        ).theta
    return sf.predictive_check(theta, None, bare, x, seed=seed)


def main() -> None:
    started = time.monotonic()
    arguments = options(__doc__ or "", simulations=300_000, steps=5_000)
    fast, seed = arguments.fast, arguments.seed
    n, steps = (20_000, 300) if fast else (arguments.simulations, arguments.steps)
    folder = output_folder(NAME, fast)
    simulator, x, what = observation()
    print(f"{simulator.prior}\n")

    path = folder / f"simulations-{n}-{seed}.h5"
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        store = sf.simulate(simulator, n, path, seed=seed, executor=threads)
    config = sf.TrainConfig(steps=steps, patience=None, seed=seed)
    checkpoint = folder / f"checkpoint-{n}-{steps}-{seed}.safetensors"
    posterior = sf.train(store, simulator, config, flow=FLOW, embedding=EMBEDDING, checkpoint=checkpoint)
    posterior.save(folder / "model")

    draws = posterior.sample(x, 20_000 if fast else 100_000, seed=seed)
    weighted = draws.reweight(simulator.log_likelihood)
    weighted.save(folder / "posterior.h5")
    print(f"\n{weighted}\n")
    within = sf.predictive_check(weighted.theta, weighted.weights, simulator, x, seed=seed)
    reference = sf.emcee_reference(
        simulator.log_likelihood,
        simulator.prior,
        x,
        seed=seed,
        start=draws.theta[:5000],
        walkers=26 if fast else None,
        max_steps=400 if fast else 20_000,
    )
    print(f"{reference}\n")
    raw, corrected = sf.compare(draws.theta, reference), sf.compare(draws.theta, reference, weighted.weights)
    print(f"raw flow against emcee\n{raw}\n\nreweighted against emcee\n{corrected}\n")
    bare = bare_noise_check(x, reference, seed, fast)
    report = sf.calibrate(posterior, simulator, n=200 if fast else 1000, seed=seed + 2000)
    print(f"{report}\n\nwith the allowance: {within}\nbare noise: {bare}\n")
    report.to_html(folder / "calibration.html")

    fit = plots.fit_residuals(
        simulator.wavelengths.numpy(), x.numpy(), simulator.noise[:, 0].numpy(),
        predicted_bands(weighted, simulator).numpy(), ["I", "Q", "U", "V"], ("Å", "continuum"),
    )  # fmt: skip
    corner = weighted.corner(overlay={"emcee": reference.samples()}, label="flow, reweighted")
    save_figure(fit, folder / "fit.png")
    save_figure(corner, folder / "corner.png")
    quality, minutes = weighted.diagnostics, (time.monotonic() - started) / 60
    p_novel = float(posterior.novelty_p_value(x)[0])
    numbers = [
        Number("simulator calls, training", f"{posterior.info.simulations:,}"),
        Number("training time, minutes", f"{posterior.info.training_seconds / 60:.1f}"),
        Number("everything, minutes", f"{minutes:.1f}", "15", "6", minutes <= 15),
        Number("importance-sampling efficiency", f"{quality.efficiency:.1%}", "reported", "10%"),
        Number("Pareto k̂ (limit 0.7)", f"{quality.khat:.2f}"),
        Number("log-evidence", f"{quality.log_evidence:.3f} ± {quality.log_evidence_error:.3f}"),
        Number("emcee converged, likelihood calls", f"{reference.converged}, {reference.n_likelihood_calls:,}"),
        Number("reweighted against emcee: worst median shift", f"{corrected.worst_shift:.3f} σ", "0.3 σ", "",
               corrected.worst_shift <= 0.3),
        Number("raw against emcee: worst median shift", f"{raw.worst_shift:.3f} σ"),
        Number("observation inside, with allowance (must be)", f"{within.inside}, p = {within.p_value:.3f}", "True", "", within.inside),
        Number("observation inside, bare noise (real data: must not)", f"{bare.inside}, p = {bare.p_value:.3f}", "False", "", not bare.inside),
        Number("observation against simulations (novelty p-value)", f"{p_novel:.3f}"),
        Number("calibration at α = 0.01", "pass" if report.passed else "fail"),
    ]  # fmt: skip
    title = f"Posterior of a {what}" + (" (--fast: proves nothing)" if fast else "")
    report_numbers(title, numbers, folder, arguments)
    verdicts = [
        Verdict("Importance weights", quality.reliable, quality.verdict),
        Verdict("Model and noise, allowance included", within.inside, within.verdict),
        Verdict("Calibration", report.passed, report.verdict),
        Verdict(
            "Against emcee",
            corrected.within(0.3, 0.2),
            f"Medians agree within {corrected.worst_shift:.2f} σ.",
        ),
    ]
    sections = [
        Section("Posterior", f"{simulator.noise[:, 0].tolist()}: noise of I, Q, U, V in units of the continuum.", str(weighted)),
        Section("Observation, prediction and residuals", "Posterior-predictive median, 68 and 95 % bands.", figure=fit),
        Section("Posterior and emcee", figure=corner),
        Section("Reweighted draws against emcee", "Shift of the medians in σ, ratio of the widths.", f"{corrected}\n\n{reference}"),
        Section("At the bare noise (1e-2 in I, 2e-3 in Q, U, V)", "Without the allowance for the model.", bare.verdict),
        Section("Calibration on fresh simulations", text=str(report), figure=report.rank_figure()),
        Section("Training", "Loss in the prior's base space.", figure=posterior.log.figure()),
    ]  # fmt: skip
    print(f"\nreport: {write_page(folder / 'report.html', title, verdicts, sections)}")


if __name__ == "__main__":
    main()
