"""Calibrate any Proposal against any simulator on fresh simulations."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy
import torch
from rich.progress import Progress
from torch import Generator, Tensor

from sbiflow import provenance
from sbiflow.blocks import AnySimulator
from sbiflow.calibration.contraction import contractions, posterior_spread
from sbiflow.calibration.coverage import coverage_test, hpd_mass
from sbiflow.calibration.pp import pp_plot
from sbiflow.calibration.regression import forward_prediction, regression_ranks, regression_targets
from sbiflow.calibration.report import CalibrationReport
from sbiflow.calibration.sbc import SbcResult, data_test, log_likelihood_ranks, rank_test, sbc_ranks
from sbiflow.calibration.tarp import tarp_ranks, tarp_test
from sbiflow.checks import check_count
from sbiflow.contracts import Proposal
from sbiflow.priors import Prior
from sbiflow.seeding import check_seed, torch_generator
from sbiflow.simulate import draw_pairs

_KEY = 7303
_ROWS = 100_000  # draws that the proposal is asked for at once
_KEPT = 300  # draws for TARP, which ranks two thirds of them
_FEW = 100  # draws for the data-dependent quantities and the spread


def _check_draws(theta: Tensor, log_q: Tensor, log_q_star: Tensor, prior: Prior) -> None:
    outside = int((~prior.inside(theta)).sum())
    if outside:
        raise ValueError(f"proposal: expected draws inside the prior's support, got {outside} outside")
    bad = int((~torch.isfinite(log_q)).sum()) + int(log_q_star.isnan().sum())
    if bad:
        raise ValueError(f"proposal: expected finite log-densities, got {bad} NaN or inf")


class Judged(NamedTuple):
    """What is left of the draws: ranks (N, D), HPD mass (N,), log q(theta* | x) (N,), first draws (L, N, D)."""

    ranks: np.ndarray
    mass: np.ndarray
    log_q_star: Tensor
    kept: Tensor


def _judge_draws(
    proposal: Proposal,
    theta: Tensor,
    x: Tensor,
    draws: int,
    generator: Generator,
    report: Callable[[int], None],
) -> Judged:
    """Draw for every x and rank the truth; only the first `_KEPT` draws of each are kept in memory."""
    prior = proposal.prior
    periods = [m.support[1] - m.support[0] if m.periodic else None for m in prior.marginals]
    ranks, mass, log_q_star, kept = [], [], [], []
    step = max(1, _ROWS // draws)
    for star, observed in zip(theta.split(step), x.split(step), strict=True):
        drawn, log_q = proposal.sample_and_log_prob(observed, draws, generator)
        log_q_star.append(proposal.log_prob(star, observed))
        _check_draws(drawn, log_q, log_q_star[-1], prior)
        ranks.append(sbc_ranks(star, drawn, generator, periods))
        mass.append(hpd_mass(log_q_star[-1], log_q, generator))
        kept.append(drawn[:_KEPT].clone())
        report(len(star))
    return Judged(
        torch.cat(ranks).numpy(), torch.cat(mass).numpy(), torch.cat(log_q_star), torch.cat(kept, dim=1)
    )


def _forward(x: Tensor, targets: np.ndarray) -> np.ndarray:
    """The parameters (N, D, 2) predicted from x, each row by earlier ones."""
    features = x.reshape(len(x), -1).double().numpy()
    return forward_prediction(features, targets.reshape(len(targets), -1)).reshape(targets.shape)


def calibrate(
    proposal: Proposal,
    simulator: AnySimulator,
    *,
    n: int = 1000,
    draws: int = 1000,
    seed: int,
    alpha: float = 0.01,
    progress: bool = True,
) -> CalibrationReport:
    """Test a proposal on fresh simulations: SBC, HPD coverage, TARP, data-dependent tests, contraction.

    Args:
        proposal: a flow, an exact posterior, anything with `sample_and_log_prob` and `log_prob`.
        simulator: what made its training data. With a `log_likelihood` that is one of the data-dependent
            quantities; the distance to a regression on x is always one.
        n: fresh pairs; failed simulations are left out and counted.
        draws: posterior draws per pair, at least 100; independent of each other (thin a Markov chain by its
            autocorrelation time).
        seed: of pairs and draws.
        alpha: false-alarm probability of the whole set of rank tests (Bonferroni over them).
        progress: show a progress bar.

    Raises:
        ValueError: proposal and simulator have different priors; draws outside the support; NaN densities.
    """
    started = time.perf_counter()
    check_seed(seed)
    check_count(n, "n", 50)
    check_count(draws, "draws", _FEW)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: expected a value in (0, 1), got {alpha}")
    prior = simulator.prior
    if proposal.prior != prior:
        raise ValueError(
            f"proposal: expected the simulator's prior,\n{prior}\ngot\n{proposal.prior}\n"
            "A posterior is calibrated only under the prior that it was trained with."
        )
    generator = torch_generator(seed, _KEY)
    with Progress(transient=True, disable=not progress) as bar:
        task = bar.add_task("fresh simulations", total=None)
        theta, x, n_failed = draw_pairs(simulator, n, seed=seed)
        bar.update(task, description="posterior draws", total=len(theta), completed=0)
        found = _judge_draws(proposal, theta, x, draws, generator, lambda rows: bar.advance(task, rows))
        bar.update(task, description="quantities that depend on the data", completed=0)
        few = found.kept[:_FEW]
        targets = regression_targets(theta, prior)
        predicted = _forward(x, targets)
        tests = [
            *(rank_test(name, u) for name, u in zip(prior.names, found.ranks.T, strict=True)),
            coverage_test(found.mass),
            tarp_test(tarp_ranks(theta, x, found.kept, prior, generator).numpy()),
        ]
        if (log_likelihood := getattr(simulator, "log_likelihood", None)) is not None:
            u = log_likelihood_ranks(
                log_likelihood, theta, x, few, generator, lambda rows: bar.advance(task, rows)
            )
            tests.append(data_test("log-likelihood", u.numpy(), 1.0))
        u = regression_ranks(targets, predicted, few, prior, generator)
        tests.append(data_test("distance to regression on x", u.numpy(), 0.0))
    half = len(theta) // 2  # the second half is predicted by one fit to the first
    return CalibrationReport(
        ranks=SbcResult(tuple(tests), alpha),
        pp=pp_plot(prior.names, found.ranks),
        contraction=contractions(*posterior_spread(few, prior), targets[half:], predicted[half:], prior),
        n=len(theta),
        n_failed=n_failed,
        draws=draws,
        seed=seed,
        mean_log_q=float(found.log_q_star.mean()),
        mean_log_q_error=float(found.log_q_star.std() / len(theta) ** 0.5),
        seconds=time.perf_counter() - started,
        provenance=_provenance(proposal, simulator),
    )


def _provenance(proposal: Proposal, simulator: AnySimulator) -> dict[str, str]:
    return {
        "simulator": str(getattr(simulator, "name", None) or type(simulator).__name__),
        "simulator version": str(getattr(simulator, "version", "")),
        "simulator source": provenance.source_hash(simulator)[:16],
        "simulator git revision": provenance.git_revision(simulator)[:16],
        "proposal": type(proposal).__name__,
        "sbiflow": provenance.package_version(),
        "sbiflow git revision": provenance.git_revision(calibrate)[:16],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
        "created": provenance.now(),
    }
