"""Whether weighted draws may be used, in plain words, from the figures that the weights give."""

from __future__ import annotations

import math

from sbiflow.pareto import khat_limit

MIN_ESS = 100.0  # below it the error of a median exceeds a tenth of the posterior's width
GOOD_ESS = 1_000.0  # the 16 and 84 % quantiles are then good to about 5 % of the width
FINITE_VARIANCE = 0.5  # k̂ above which the variance of the weights, and so every error quoted, is in doubt
LOW_EFFICIENCY = 0.05
MAX_NONFINITE = 0.01  # share of draws whose likelihood is NaN above which the answer is not used
MAX_UNSEEN = 0.3  # share of the evidence expected beyond the largest weight above which nothing is known


def verdict(n: int, ess: float, khat: float, n_nonfinite: int = 0, unseen: float = 0.0) -> tuple[str, bool]:
    """Whether to use weighted draws, in plain words, and as a bool.

    k̂ and the efficiency are judged together because k̂ alone is noisy: 20,000 draws from a Gaussian of half
    the posterior's width pass its limit one time in three, with widths 11 % too small, but their efficiency
    is then near 3 %. With both rules one in twelve passes, and it carries a warning.

    >>> verdict(10_000, 9_000.0, 0.1)[0]
    'Trustworthy: the draws are worth 9,000 independent ones (90.0 %) and Pareto k-hat 0.10 is below 0.70.'
    """
    limit = khat_limit(n)
    if ess == 0:
        return (
            "Do not use: every draw has zero weight; no draw lies where the likelihood and prior do.",
            False,
        )
    if n_nonfinite > MAX_NONFINITE * n:
        return f"Do not use: the log-likelihood is NaN for {n_nonfinite:,} of {n:,} draws.", False
    if not khat < limit:
        text = (
            f"Pareto k-hat {khat:.2f} is not below {limit:.2f}"
            if math.isfinite(khat)
            else ("Pareto k-hat cannot be fitted, for too few draws carry weight")
        )
        return f"Do not use: {text}; a few draws decide the answer and its error is not known.", False
    if ess < MIN_ESS:
        text = f"the draws are worth {ess:.1f} independent ones, fewer than {MIN_ESS:.0f}"
        return f"Do not use: {text}.", False
    if not unseen <= MAX_UNSEEN:
        text = f"{unseen:.0%} of the evidence is expected in weights that the draws have not shown yet"
        return f"Do not use: {text}.", False
    if khat > FINITE_VARIANCE and ess < LOW_EFFICIENCY * n:
        text = f"efficiency {ess / n:.1%} with Pareto k-hat {khat:.2f}"
        return f"Do not use: {text}; the proposal is probably narrower than the posterior.", False
    return (
        f"Trustworthy: the draws are worth {ess:,.0f} independent ones ({100 * ess / n:.1f} %) "
        f"and Pareto k-hat {khat:.2f} is below {limit:.2f}."
    ), True


def further_warnings(n: int, ess: float, khat: float, n_nonfinite: int, reliable: bool) -> tuple[str, ...]:
    """Sentences to be read with the verdict."""
    found = []
    if n_nonfinite:
        found.append(
            f"the log-likelihood is NaN for {n_nonfinite:,} of {n:,} draws; they have weight zero, so the "
            "answer leaves out that part of the parameter space"
        )
    if reliable and ess < GOOD_ESS:
        found.append(
            f"the means carry a Monte Carlo error of {1 / math.sqrt(ess):.1%} of the posterior's width (sd)"
        )
    if reliable and khat > FINITE_VARIANCE:
        found.append(
            f"Pareto k-hat {khat:.2f} is above 0.5: the errors quoted are too small and the tails may be too"
        )
    if reliable and ess < LOW_EFFICIENCY * n:
        found.append(
            "efficiency below 5 %: the proposal is a poor fit here, and only the weights make it right"
        )
    return tuple(found)
