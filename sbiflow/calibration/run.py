"""Calibrate any Proposal against any simulator on fresh simulations."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.progress import Progress
from torch import Generator, Tensor

from sbiflow import provenance
from sbiflow.blocks import AnySimulator
from sbiflow.calibration.contraction import (
    contractions,
    posterior_spread,
    predict_second_half,
    regression_targets,
)
from sbiflow.calibration.coverage import coverage_test, hpd_mass
from sbiflow.calibration.report import CalibrationReport
from sbiflow.calibration.sbc import RankTest, SbcResult, fractional_rank, rank_test, sbc_ranks
from sbiflow.checks import check_count
from sbiflow.contracts import Proposal
from sbiflow.importance import LogLikelihood
from sbiflow.priors import Prior
from sbiflow.seeding import check_seed, torch_generator
from sbiflow.simulate import draw_pairs

_KEY = 7303
_ROWS = 100_000  # draws that the proposal is asked for at once
_LIKELIHOODS = 16_384  # rows per call of the likelihood
_FEW = 100  # draws that the data-dependent quantity and the spread are computed for
_READING = "the draws fit the data {} than the truth does{}"


def _check_draws(theta: Tensor, log_q: Tensor, log_q_star: Tensor, prior: Prior) -> None:
    outside = int((~prior.inside(theta)).sum())
    if outside:
        raise ValueError(f"proposal: expected draws inside the prior's support, got {outside} outside")
    bad = int((~torch.isfinite(log_q)).sum()) + int(log_q_star.isnan().sum())
    if bad:
        raise ValueError(f"proposal: expected finite log-densities, got {bad} NaN or inf")


def log_likelihood_ranks(
    log_likelihood: LogLikelihood,
    theta_star: Tensor,
    x: Tensor,
    draws: Tensor,
    generator: Generator,
    report: Callable[[int], None] = lambda rows: None,
) -> Tensor:
    """Rank of log p(x | theta*) among log p(x | draw), in (0, 1).

    Args:
        log_likelihood: theta (m, D), x (m, *x_shape) -> (m,).
        theta_star: (N, D).
        x: (N, *x_shape).
        draws: (L, N, D).
        generator: breaks ties.
        report: called with the number of observations finished at each step.
    """
    count = len(draws) + 1
    step = max(1, _LIKELIHOODS // count)
    together = torch.cat([theta_star[None], draws])
    values = []
    for part, observed in zip(together.split(step, dim=1), x.split(step), strict=True):
        repeated = observed.expand(count, *observed.shape).reshape(-1, *observed.shape[1:])
        with torch.no_grad():
            value = log_likelihood(part.reshape(-1, part.shape[-1]), repeated)
        values.append(value.detach().double().cpu().reshape(count, -1))
        report(len(observed))
    found = torch.cat(values, dim=1)
    if bool(found.isnan().any()):
        raise ValueError(f"log_likelihood: expected numbers, got {int(found.isnan().sum())} NaN")
    return fractional_rank(found[0], found[1:], generator)


def regression_ranks(
    targets: np.ndarray, predicted: np.ndarray, draws: Tensor, prior: Prior, generator: Generator
) -> Tensor:
    """Rank of the squared distance to the prediction from x, in (0, 1).

    Args:
        targets, predicted: (M, D, 2) of `predict_second_half`; the fit has not seen these pairs.
        draws: (L, M, D).
        prior: of the D parameters.
        generator: breaks ties.
    """
    scale = np.maximum(((targets - predicted) ** 2).sum(-1).mean(0), 1e-300)
    star = (((targets - predicted) ** 2).sum(-1) / scale).sum(-1)
    others = (((regression_targets(draws, prior) - predicted) ** 2).sum(-1) / scale).sum(-1)
    return fractional_rank(torch.from_numpy(star), torch.from_numpy(others), generator)


def _dependent_test(name: str, u: np.ndarray, truth_fits_best_at: float) -> RankTest:
    """A data-dependent rank test; u gathers at `truth_fits_best_at` if the truth fits better than the
    draws."""
    worse = abs(np.mean(u) - truth_fits_best_at) < 0.5
    return rank_test(
        name,
        u,
        _READING.format(
            *(("worse", ": too wide, shifted, or blind to x") if worse else ("better", ": too narrow"))
        ),
    )


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
    """Test a proposal on fresh simulations: rank tests, coverage, a data-dependent test, contraction.

    Args:
        proposal: a flow, an exact posterior, anything with `sample_and_log_prob` and `log_prob`.
        simulator: what made its training data. With a `log_likelihood` the data-dependent test uses it;
            without, half of the pairs train a regression on x and the other half is tested.
        n: fresh pairs; failed simulations are left out and counted.
        draws: posterior draws per pair, at least 100.
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
    log_likelihood = getattr(simulator, "log_likelihood", None)
    generator = torch_generator(seed, _KEY)
    periods = [m.support[1] - m.support[0] if m.periodic else None for m in prior.marginals]
    with Progress(transient=True, disable=not progress) as bar:
        task = bar.add_task("fresh simulations", total=None)
        theta, x, n_failed = draw_pairs(simulator, n, seed=seed)
        bar.update(task, description="posterior draws", total=len(theta), completed=0)
        ranks, mass, few, log_q_star = [], [], [], []
        step = max(1, _ROWS // draws)
        for star, observed in zip(theta.split(step), x.split(step), strict=True):
            drawn, log_q = proposal.sample_and_log_prob(observed, draws, generator)
            log_q_star.append(proposal.log_prob(star, observed))
            _check_draws(drawn, log_q, log_q_star[-1], prior)
            ranks.append(sbc_ranks(star, drawn, generator, periods))
            mass.append(hpd_mass(log_q_star[-1], log_q, generator))
            few.append(drawn[:_FEW])
            bar.advance(task, len(star))
        kept = torch.cat(few, dim=1)
        targets, predicted = predict_second_half(theta, x, prior)
        if log_likelihood is not None:
            bar.update(task, description="likelihoods", completed=0)
            u = log_likelihood_ranks(
                log_likelihood, theta, x, kept, generator, lambda rows: bar.advance(task, rows)
            )
            dependent = _dependent_test("log-likelihood", u.numpy(), 1.0)
        else:
            held_out = kept[:, len(theta) - len(targets) :]
            u = regression_ranks(targets, predicted, held_out, prior, generator)
            dependent = _dependent_test("distance to regression on x", u.numpy(), 0.0)
    all_ranks, density = torch.cat(ranks).numpy(), torch.cat(log_q_star)
    tests = (
        *(rank_test(name, u) for name, u in zip(prior.names, all_ranks.T, strict=True)),
        coverage_test(torch.cat(mass).numpy()),
        dependent,
    )
    return CalibrationReport(
        ranks=SbcResult(tests, alpha),
        contraction=contractions(*posterior_spread(kept, prior), targets, predicted, prior),
        n=len(theta),
        n_failed=n_failed,
        draws=draws,
        seed=seed,
        mean_log_q=float(density.mean()),
        mean_log_q_error=float(density.std() / len(density) ** 0.5),
        seconds=time.perf_counter() - started,
        provenance={
            "simulator": str(getattr(simulator, "name", None) or type(simulator).__name__),
            "simulator version": str(getattr(simulator, "version", "")),
            "simulator source": provenance.source_hash(simulator)[:16],
            "proposal": type(proposal).__name__,
            "sbiflow": provenance.package_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "created": provenance.now(),
        },
    )
