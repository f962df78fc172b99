"""What an integration answers: the value with its error, how it came about, and whether to believe it.

The names are those of vegas: `mean`, `sdev`, `chi2`, `dof`, `Q`. chi2 compares the estimate with those of the
training draws, which came from other proposals; mass that all of them missed does not show in it, so `reliable` and
`verdict` come from the weights as well (`IntegralDiagnostics`).
"""

from __future__ import annotations

import math
from dataclasses import InitVar, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sbiflow import plots
from sbiflow.checks import check_shape
from sbiflow.integrate.iterations import IntegralDiagnostics, Iteration, iteration_rows, number
from sbiflow.integrate.notation import LOG_LARGEST, TINY, with_error
from sbiflow.integrate.points import UnweightedPoints, WeightedPoints

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["IntegralDiagnostics", "IntegralResult", "Iteration", "Ratio", "Sampler"]

_LISTED = 10  # components of a vector-valued integral that are printed


@dataclass(frozen=True)
class Ratio:
    """A ratio of two integrals with its error.

    >>> str(Ratio(0.51234, 0.00021))
    '0.51234(21)'
    """

    value: float
    sdev: float

    def __str__(self) -> str:
        return with_error(self.value, self.sdev)


class Sampler(Protocol):
    """What draws from the proposal that was trained for the integral: the Integrator."""

    def sample(self, n: int, seed: int = 0) -> WeightedPoints:
        """n weighted points."""
        ...

    def unweight(self, n: int, seed: int = 0, **options: Any) -> UnweightedPoints:
        """n unweighted points."""
        ...


@dataclass(frozen=True, eq=False)
class IntegralResult:
    """The integral of f, (K,) values if f is vector-valued; printing it gives verdict, value and iterations.

    Attributes:
        mean: estimate, float or (K,); 0 (or inf) where it is no double: see `log_mean`.
        sdev: its standard deviation, float or (K,).
        covariance: of the K means, (K, K).
        log_mean: ln |mean| of component 0.
        log_sdev: error of `log_mean`, i.e. the relative error of component 0.
        chi2, dof, Q: consistency with the dof training draws that knew the integrand; Q is the probability of a larger
            chi2, NaN if dof = 0.
        n_evals: evaluations of f in all, training included.
        n_train: those of them that trained the proposal and do not enter the estimate.
        diagnostics: figures of the weights.
        verdict: a sentence that says whether to use the estimate, and why.
        reliable: the same as a bool.
        warnings: further sentences, also with a reliable result.
        iterations: in the order in which they ran.
        seconds_integrand: time inside f [s].
        seconds_flow: the rest of the time: drawing, densities, training [s].
        method: proposal of the estimate, "grid" or "flow".
        break_even: time per evaluation above which the flow reaches this error sooner than the grid alone [s]; 0 if
            it always does, inf if never, NaN if only one of them was measured.
        sampler: what `sample` and `unweight` delegate to.

    Raises:
        ValueError: the shapes of mean, sdev and covariance disagree.
    """

    mean: float | NDArray[np.float64]
    sdev: float | NDArray[np.float64]
    covariance: NDArray[np.float64]
    log_mean: float
    log_sdev: float
    chi2: float
    dof: int
    Q: float
    n_evals: int
    n_train: int
    diagnostics: IntegralDiagnostics
    verdict: str
    reliable: bool
    warnings: tuple[str, ...]
    iterations: tuple[Iteration, ...]
    seconds_integrand: float
    seconds_flow: float
    method: str
    break_even: float = math.nan
    sampler: InitVar[Sampler | None] = None

    def __post_init__(self, sampler: Sampler | None) -> None:
        size = self.components
        if size != 1 or np.ndim(self.mean):
            check_shape(np.asarray(self.mean), "mean", (size,))
            check_shape(np.asarray(self.sdev), "sdev", (size,))
        check_shape(self.covariance, "covariance", (size, size))
        object.__setattr__(self, "sampler", sampler)  # no field: it is no part of the answer, nor of `asdict`

    @property
    def components(self) -> int:
        """K."""
        return int(np.size(self.mean))

    def __float__(self) -> float:
        if self.components != 1:
            raise ValueError(f"float: expected an integral of one component, got {self.components}")
        return float(np.ravel(self.mean)[0])

    def __str__(self) -> str:
        lines = [self.verdict, *(f"warning: {text}" for text in self.warnings)]
        return "\n".join([*lines, "", self.table()])

    def table(self) -> str:
        """One row per iteration, then the estimate with chi2, the evaluations and the time, as vegas' summary."""
        return "\n".join([*iteration_rows(self.iterations), "", *self._estimates(), *self._totals()])

    def ratio(self, i: int, j: int) -> Ratio:
        """mean[i] / mean[j] with its error from the covariance, to first order.

        r = m_i / m_j, var r = (C_ii − 2 r C_ij + r² C_jj) / m_j² (the delta method).

        Raises:
            ValueError: no such component, mean[j] is zero or not finite, or the covariance is no double.
        """
        for name, index in (("i", i), ("j", j)):
            if not 0 <= index < self.components:
                raise ValueError(f"{name}: expected a component 0 to {self.components - 1}, got {index}")
        means, pair = np.ravel(self.mean), np.ix_([i, j], [i, j])
        if not (means[j] != 0 and np.isfinite(means[j]) and np.isfinite(means[i])):
            raise ValueError(
                f"ratio: expected finite means and mean[{j}] not zero, got {means[i]}, {means[j]}"
            )
        scale = abs(means[j])
        covariance = self.covariance[pair] / scale / scale
        lost = (np.ravel(self.sdev)[[i, j]] > 0) & ~(self.covariance[pair].diagonal() > TINY)
        if lost.any() or not np.isfinite(covariance).all():
            raise ValueError("ratio: expected a covariance within doubles; rescale the integrand")
        r = float(means[i] / means[j])
        slope = np.array([1.0, -r])
        return Ratio(r, math.sqrt(max(float(slope @ covariance @ slope), 0.0)))

    def sample(self, n: int, seed: int = 0) -> WeightedPoints:
        """n points from the trained proposal with their weights f/q: `Integrator.sample`."""
        return self._sampler().sample(n, seed)

    def unweight(self, n: int, seed: int = 0, **options: Any) -> UnweightedPoints:
        """n points distributed as |f|: `Integrator.unweight`."""
        return self._sampler().unweight(n, seed, **options)

    def figure(self, truth: float | None = None, log_truth: float | None = None) -> Figure:
        """The integral by iteration with its error, and the estimate as a band (component 0).

        Where the integral is no double, its logarithm.

        Args:
            truth: known value, drawn as a line.
            log_truth: ln of it, instead.
        """
        value, error = float(np.ravel(self.mean)[0]), float(np.ravel(self.sdev)[0])
        logs = not TINY <= abs(value) < math.inf and math.isfinite(self.log_mean)
        rows = [(it.log_mean, it.log_sdev) if logs else (it.mean, it.sdev) for it in self.iterations]
        return plots.convergence(
            [it.phase for it in self.iterations],
            np.cumsum([it.n for it in self.iterations]),
            [row[0] for row in rows],
            [row[1] for row in rows],
            (self.log_mean, self.log_sdev) if logs else (value, error),
            _in_units(truth, log_truth, logs),
            "ln |integral|" if logs else "integral",
        )

    def to_dict(self) -> dict[str, Any]:
        """Every field as plain numbers, strings and lists, for JSON; a NaN or infinite number becomes None."""
        kept = {field.name: getattr(self, field.name) for field in fields(self)}
        kept |= {"diagnostics": asdict(self.diagnostics), "iterations": [asdict(i) for i in self.iterations]}
        return {name: _plain(value) for name, value in kept.items()}

    def _sampler(self) -> Sampler:
        found: Sampler | None = self.__dict__.get("sampler")
        if found is None:
            raise ValueError(
                "sample: expected a result that an Integrator returned, got one without its proposal"
            )
        return found

    def _estimates(self) -> list[str]:
        log = self.log_mean, self.log_sdev
        if self.components == 1:
            return [f"integral = {with_error(float(self), float(np.ravel(self.sdev)[0]), *log)}"]
        pairs = list(zip(np.ravel(self.mean).tolist(), np.ravel(self.sdev).tolist(), strict=True))[:_LISTED]
        texts = [with_error(*pair, *(log if i == 0 else ())) for i, pair in enumerate(pairs)]
        lines = [f"integral[{i}] = {text}" for i, text in enumerate(texts)]
        hidden = self.components - len(lines)
        return [*lines, f"and {hidden:,} further components"] if hidden else lines

    def _totals(self) -> list[str]:
        seconds = self.seconds_integrand + self.seconds_flow
        return [
            f"chi2/dof = {self.chi2:.1f}/{self.dof}   Q = {number(self.Q, '.2f')}   method: {self.method}",
            f"{self.n_evals:,} evaluations, {self.n_train:,} of them training; {seconds:.1f} s: "
            f"{self.seconds_integrand:.1f} s in the integrand, {self.seconds_flow:.1f} s in the proposal",
            *self._break_even(),
        ]

    def _break_even(self) -> list[str]:
        if math.isnan(self.break_even):
            return []
        if math.isinf(self.break_even):
            return ["the grid alone needs fewer evaluations than the flow"]
        return [f"the flow pays where an evaluation costs more than {1e6 * self.break_even:.3g} µs"]


def _in_units(truth: float | None, log_truth: float | None, logs: bool) -> float | None:
    """The truth, or its logarithm, from the one that is given; None if neither is, or it cannot be shown."""
    if log_truth is None and truth:
        log_truth = math.log(abs(truth))
    if truth is None and log_truth is not None and log_truth < LOG_LARGEST:
        truth = math.exp(log_truth)
    return log_truth if logs else truth


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
