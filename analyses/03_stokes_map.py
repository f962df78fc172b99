"""Posterior maps of a synthetic sunspot: 512 x 512 full-Stokes spectra, nine parameters, 50 draws for every pixel.

The field is made with the simulator (sunspot.py), written to disk, and mapped by `Posterior.map` in bounded memory, with
a simulation per pixel for chi2. A few patches hold spectra that the simulator cannot make, a few pixels hold nothing.
The network is judged where coverage is known to the digit, on a second field whose pixels are draws of the prior:
there, and only there, the 16 to 84 % interval holds the truth in 34 / 51 of all pixels if the posterior is right. The
sunspot's own coverage is reported by region; its truths are no draws of the prior, so nothing follows from it alone.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binom, chi2
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from common import Number, options, output_folder, report_numbers, save_figure
from sunspot import EMBEDDING, FLOW, PENUMBRA, QUIET, UMBRA, sunspot, sunspot_simulator, with_faults

import sbiflow as sf
from sbiflow.maps import MapConfig, MapResult
from sbiflow.novelty import ALARM
from sbiflow.observing import observe
from sbiflow.plots.maps import Panel, map_figure
from simulators.stokes import MilneEddington

NAME = "03_stokes_map"
REGIONS = {UMBRA: "umbra", PENUMBRA: "penumbra", QUIET: "quiet sun"}
SHOWN = ("B", "inclination", "azimuth", "v_los")
DRAWS = 50
NOMINAL = 34 / 51  # Hazen's 16 and 84 % of 50 draws are at ranks 8.5 and 42.5 of 51
FALSE_ALARM = 1e-3  # of the coverage of all parameters together


def trained(simulator: MilneEddington, folder: Path, n: int, steps: int, seed: int) -> sf.Posterior:
    """The network of an earlier run with the same arguments, or a new one."""
    model = folder / f"model-{n}-{steps}-{seed}"
    if model.exists():
        return sf.Posterior.load(model)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        store = sf.simulate(simulator, n, folder / f"simulations-{n}-{seed}.h5", seed=seed, executor=threads)
    config = sf.TrainConfig(steps=steps, patience=None, seed=seed)
    checkpoint = folder / f"checkpoint-{n}-{steps}-{seed}.safetensors"
    posterior = sf.train(store, simulator, config, flow=FLOW, embedding=EMBEDDING, checkpoint=checkpoint)
    posterior.save(model)
    return posterior


def spectra(simulator: MilneEddington, theta: np.ndarray, seed: int) -> Tensor:
    """Noisy observations (pixels, 4, 16) of (..., 9)."""
    rows = torch.from_numpy(theta.reshape(-1, theta.shape[-1]))
    with ThreadPoolExecutor(os.cpu_count()) as threads, torch.no_grad():
        signal = torch.cat(list(threads.map(simulator.signal, rows.split(2048))))
    return observe(simulator, rows, signal, torch.Generator().manual_seed(seed))


def inside(found: MapResult, theta: np.ndarray) -> np.ndarray:
    """Whether the 16 to 84 % interval holds the truth, (9, ny, nx); an angle if any of its copies is in it."""
    held = []
    for name, marginal, truth in zip(
        found.names, found.prior.marginals, np.moveaxis(theta, -1, 0), strict=True
    ):
        images, period = found[name], marginal.support[1] - marginal.support[0]
        turns = (-1, 0, 1) if marginal.periodic else (0,)
        held.append(
            np.any(
                [(images.low <= truth + t * period) & (truth + t * period <= images.high) for t in turns], 0
            )
        )
    return np.stack(held)


def off(found: MapResult, name: str, truth: np.ndarray) -> np.ndarray:
    """Median minus truth, the shorter way round for an angle."""
    marginal = found.prior.marginals[found.names.index(name)]
    difference = found[name].median - truth
    period = marginal.support[1] - marginal.support[0]
    return difference - period * np.round(difference / period) if marginal.periodic else difference


def mended(posterior: sf.Posterior, simulator: MilneEddington, x: np.ndarray, seed: int) -> bool:
    """Whether a posterior draw fits the data x (4, 16) once 2,000 draws are importance weighted."""
    plain = posterior.sample(x, 2000, seed=seed)
    weighted = plain.reweight(simulator.log_likelihood, elsewhere=0, progress=False)
    residual = (torch.from_numpy(x) - simulator.signal(weighted.resample(1, seed).theta)[0]) / simulator.noise
    return float(chi2.sf(float(residual.square().sum()), residual.numel())) > ALARM


def peak_memory() -> float:
    """Largest resident memory [GB] since `forget_peak` (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1e6


def forget_peak() -> None:
    """Start `peak_memory` anew."""
    Path("/proc/self/clear_refs").write_text("5")


def comparison(found: MapResult, theta: np.ndarray) -> list[Panel]:
    """Truth, median and their difference in posterior widths of some parameters."""
    panels = []
    for name in SHOWN:
        k = found.names.index(name)
        m, truth, images = found.prior.marginals[k], theta[..., k], found[name]
        limits = (
            m.support if m.periodic else None if name == "v_los" else tuple(np.percentile(truth, (0.5, 99.5)))
        )
        panels += [Panel(image, f"{name}, {what}", m.unit, limits=limits, cyclic=m.periodic)
                   for what, image in (("truth", truth), ("median", images.median))]  # fmt: skip
        panels.append(
            Panel(off(found, name, truth) / images.sigma, f"({name} - truth) / σ", limits=(-4.0, 4.0))
        )
    return panels


def coverage_table(
    found: MapResult, theta: np.ndarray, region: np.ndarray, usable: np.ndarray
) -> list[Number]:
    """Coverage, bias and error of the sunspot by region, over the pixels that are neither masked nor strays."""
    held, lines = inside(found, theta), []
    for kind, text in REGIONS.items():
        chosen = (region == kind) & usable
        shares = ", ".join(f"{name} {held[k][chosen].mean():.0%}" for k, name in enumerate(found.names))
        lines.append(Number(f"{text}, {chosen.sum():,} pixels: coverage of 16 to 84 %", shares))
        errors = [
            f"{name} {np.median(off(found, name, theta[..., k])[chosen] / found[name].sigma[chosen]):+.2f}"
            for k, name in enumerate(found.names)
        ]
        lines.append(Number(f"{text}: median of (median - truth) / σ", ", ".join(errors)))
    return lines


def main() -> None:
    arguments = options(__doc__ or "", simulations=500_000, steps=8_000, size=512, threads=2)
    fast, seed = arguments.fast, arguments.seed
    n, steps, size, side = (
        (4000, 100, 40, 20) if fast else (arguments.simulations, arguments.steps, arguments.size, 50)
    )
    folder, simulator = output_folder(NAME, fast), sunspot_simulator()
    posterior = trained(simulator, folder, n, steps, seed)

    theta, region = sunspot(size, seed)
    field, patches, masked = with_faults(spectra(simulator, theta, seed), size)
    np.save(folder / "field.npy", field)
    path = folder / "map.h5"
    path.unlink(missing_ok=True)
    forget_peak()
    started, cpu = time.perf_counter(), time.process_time()
    config = MapConfig(threads=arguments.threads)
    found = posterior.map(folder / "field.npy", DRAWS, path, simulator=simulator, seed=seed, config=config)
    seconds, cpu, memory = time.perf_counter() - started, time.process_time() - cpu, peak_memory()
    print(f"\n{found}\n")

    prior_theta = (
        simulator.prior.sample(side**2, torch.Generator().manual_seed(seed + 1))
        .numpy()
        .reshape(side, side, -1)
    )
    fresh = spectra(simulator, prior_theta, seed + 2).reshape(side, side, 4, 16).numpy()
    (folder / "prior.h5").unlink(missing_ok=True)
    known = posterior.map(
        fresh, DRAWS, folder / "prior.h5", simulator=simulator, seed=seed + 3, config=config
    )
    held = inside(known, prior_theta).reshape(len(known.names), -1).sum(1)
    p_values = 2 * np.minimum(binom.cdf(held, side**2, NOMINAL), binom.sf(held - 1, side**2, NOMINAL))
    print(f"prior's field: {known.verdict}\n")

    for name, figure in zip(("medians", "widths", "checks"), found.figures(), strict=True):
        save_figure(figure, folder / f"{name}.png")
    save_figure(
        map_figure(comparison(found, theta), "truth, posterior median, and difference in σ"),
        folder / "truth.png",
    )
    found.to_fits(folder / "map.fits")

    usable, counts = np.isfinite(found["B"].median), found.counts
    for here in patches.values():
        usable[here] = False
    alarms = {
        name: (found.unlike[here].mean(), found.misfit[here].mean(), found.suspect[here].mean())
        for name, here in patches.items()
    }
    rng = np.random.default_rng(seed)
    asked = (
        rng.permutation(np.argwhere(found.misfit & usable))[:12],
        [(here[0].start, here[1].start) for here in patches.values()],
    )
    fitted = [[mended(posterior, simulator, field[y, x], seed) for y, x in places] for places in asked]
    least = min(both for _, _, both in alarms.values())
    elsewhere, minutes = int((found.suspect & usable).sum()), seconds / 60
    expected = counts.unlike_by_chance + (counts.misfit_by_chance or 0)
    worst = float(len(held) * p_values.min())
    numbers = [
        Number(f"map, {size} x {size} pixels x {DRAWS} draws, 9 parameters, with chi2: minutes", f"{minutes:.2f}", "10", "3", minutes <= 10),
        Number(f"same: draws per second, {arguments.threads} threads (seconds of processor)", f"{size**2 * DRAWS / seconds:,.0f} ({cpu:,.0f})"),
        Number("same: largest resident memory, GB", f"{memory:.2f}"),
        Number("simulator calls for chi2", f"{counts.signals:,}"),
        Number("pixels without data, found masked", f"{counts.masked:,} of {masked:,}", f"{masked:,}", "", counts.masked == masked),
        *[Number(f"stray: {name}: unlike / misfit / either", f"{a:.0%} / {b:.0%} / {c:.0%}") for name, (a, b, c) in alarms.items()],
        Number("strays warned of, least of the kinds", f"{least:.0%}", "95%", "100%", bool(least >= 0.95)),
        Number("same, unlike the simulations: lines in emission", f"{alarms['lines in emission'][0]:.0%}", "95%", "100%", bool(alarms["lines in emission"][0] >= 0.95)),
        Number("alarms elsewhere in the sunspot (by chance at most)", f"{elsewhere:,} ({expected:,.0f})"),
        Number("misfits that importance weights mend: elsewhere / strays", " / ".join(f"{sum(group)} of {len(group)}" for group in fitted)),
        Number(f"prior's field, {side**2:,} pixels: coverage of 16 to 84 %, nominal {NOMINAL:.1%}", ", ".join(f"{name} {h / side**2:.1%}" for name, h in zip(known.names, held, strict=True))),
        Number(f"same: smallest p of {len(held)}, Bonferroni (fails a right posterior 1 in {1 / FALSE_ALARM:.0f})", f"{min(worst, 1):.2g}", f"{FALSE_ALARM:g}", "", worst >= FALSE_ALARM),
        *coverage_table(found, theta, region, usable),
    ]  # fmt: skip
    title = "Posterior maps of a synthetic sunspot" + (" (--fast: proves nothing)" if fast else "")
    report_numbers(title, numbers, folder, arguments)


if __name__ == "__main__":
    main()
