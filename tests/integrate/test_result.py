"""The answer of an integration: what it prints, its ratios against gvar, JSON, and what it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from io import BytesIO

import numpy as np
import pytest
import torch

from sbiflow.integrate.points import UnweightedPoints, WeightedPoints
from sbiflow.integrate.result import IntegralDiagnostics, IntegralResult, Iteration, Ratio

INF, NAN = math.inf, math.nan
DIAGNOSTICS = IntegralDiagnostics(
    n=400_000, n_zero=12, n_nan=0, n_inf=0, ess=231_000.0, efficiency=0.5775, khat=0.21,
    max_weight_share=1e-5, unseen_share=1e-4, missed_share=0.0, tail_error=0.0, ess_growth=1.0,
)  # fmt: skip
ITERATIONS = (
    Iteration("explore", 50_000, 0.91, INF, math.log(0.91), 0.0004, INF, 1.0, 0.31),
    Iteration("anneal", 150_000, NAN, NAN, NAN, 0.11, 0.92, 0.125, 4.0),
    Iteration("flow", 400_000, 0.9938, 0.0041, math.log(0.9938), 0.47, 0.33, 1.0, 21.26),
    Iteration("final", 400_000, 0.99351, 0.00023, math.log(0.99351), 0.5775, 0.21, 1.0, 7.0),
)
SCALAR = IntegralResult(
    mean=0.99351, sdev=0.00023, covariance=np.array([[0.00023**2]]), log_mean=math.log(0.99351),
    log_sdev=0.00023 / 0.99351, chi2=8.14, dof=9, Q=0.5204, n_evals=1_000_000, n_train=600_000,
    diagnostics=DIAGNOSTICS, verdict="Trustworthy: for a test.", reliable=True, warnings=(),
    iterations=ITERATIONS, seconds_integrand=2.04, seconds_flow=30.5, method="flow",
)  # fmt: skip


def vector(means, covariance) -> IntegralResult:
    means, covariance = np.asarray(means, float), np.asarray(covariance, float)
    return replace(SCALAR, mean=means, sdev=np.sqrt(covariance.diagonal()), covariance=covariance)


def correlated(size: int, seed: int = 0) -> IntegralResult:
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(size, size)) * 1e-3
    return vector(rng.uniform(0.5, 2, size), factor @ factor.T)


class Recorder:
    """Stands for the integrator: says what it is asked."""

    def sample(self, n: int, seed: int) -> WeightedPoints:
        zeros = torch.zeros(n, dtype=torch.float64)
        return WeightedPoints(torch.full((n, 1), float(seed)), zeros, zeros, zeros)

    def unweight(self, n: int, seed: int, **options: object) -> UnweightedPoints:
        x = torch.full((n, 1), float(seed))
        return UnweightedPoints(x, x[:, 0], x[:, 0], n, 1.0, float(options["w_max"]), 0.0, 0.0)


# --- what is printed


TABLE = """\
it  phase      evals  integral     ESS %  k-hat   beta     s
 1  explore   50,000  0.91(?)       0.04    inf      1   0.3
 2  anneal   150,000  nan             11   0.92  0.125   4.0
 3  flow     400,000  0.9938(41)      47   0.33      1  21.3
 4  final    400,000  0.99351(23)     58   0.21      1   7.0

integral = 0.99351(23)
chi2/dof = 8.1/9   Q = 0.52   method: flow
1,000,000 evaluations, 600,000 of them training; 32.5 s: 2.0 s in the integrand, 30.5 s in the proposal"""


def test_the_table():
    assert SCALAR.table() == TABLE


def test_the_first_line_is_the_verdict_and_warnings_follow():
    doubtful = replace(SCALAR, verdict="Do not use: k-hat.", reliable=False, warnings=("a", "b"))
    lines = str(doubtful).splitlines()
    assert lines[:4] == ["Do not use: k-hat.", "warning: a", "warning: b", ""]
    assert "\n".join(lines[4:]) == TABLE
    assert str(SCALAR) == f"Trustworthy: for a test.\n\n{TABLE}"


def test_an_evidence_that_underflows_is_printed_as_its_exponential():
    steps = tuple(
        replace(it, mean=0.0, sdev=0.0, log_mean=-1234.5, log_sdev=error)
        for it, error in zip(ITERATIONS, (INF, NAN, 0.0041, 0.00023), strict=True)
    )
    text = replace(
        SCALAR, mean=0.0, sdev=0.0, log_mean=-1234.5678, log_sdev=0.00023, iterations=steps
    ).table()
    assert "integral = e^(-1234.56780(23))" in text
    assert [line.split()[3] for line in text.splitlines()[1:5]] == [
        "e^(-1234.5(?))", "e^(-1234.5(?))", "e^(-1234.5000(41))", "e^(-1234.50000(23))",
    ]  # fmt: skip


def test_no_chi2_without_a_second_iteration():
    text = replace(SCALAR, chi2=0.0, dof=0, Q=NAN, iterations=()).table()
    assert "chi2/dof = 0.0/0   Q = -" in text and text.splitlines()[1] == ""


def test_ten_components_are_listed_and_the_rest_is_counted():
    lines = correlated(12).table().splitlines()
    assert [line.split(" = ")[0] for line in lines[6:16]] == [f"integral[{i}]" for i in range(10)]
    assert lines[16] == "and 2 further components"
    assert not any("further" in line for line in correlated(10).table().splitlines())
    assert "\nintegral = 0.99351(23)\n" in vector([0.99351], [[0.00023**2]]).table()


# --- numbers


def test_float_is_the_mean_of_the_only_component():
    assert float(SCALAR) == 0.99351
    assert float(vector([2.5], [[1.0]])) == 2.5
    with pytest.raises(ValueError, match="expected an integral of one component, got 3"):
        float(correlated(3))


def test_a_ratio_is_that_of_gvar():
    """gvar propagates the covariance by itself."""
    gvar = pytest.importorskip("gvar")
    for seed in range(5):
        result = correlated(4, seed)
        values = gvar.gvar(result.mean, result.covariance)
        for i in range(4):
            for j in range(4):
                expected, found = values[i] / values[j], result.ratio(i, j)
                assert found.value == pytest.approx(expected.mean, rel=1e-12)
                assert found.sdev == pytest.approx(expected.sdev, rel=1e-9, abs=1e-11)


def test_ratios_of_what_is_equal_opposite_or_zero():
    equal = vector([2.0, 2.0, 0.0, -2.0], np.full((4, 4), 0.01))
    assert equal.ratio(0, 1) == Ratio(1.0, 0.0)  # fully correlated
    assert equal.ratio(2, 0) == Ratio(0.0, pytest.approx(0.05))
    assert equal.ratio(3, 0) == Ratio(-1.0, pytest.approx(0.1))  # the errors add
    assert str(Ratio(0.5, 0.01)) == "0.500(10)"


def test_a_ratio_of_tiny_integrals_is_that_of_their_multiples():
    result = correlated(2)
    scale = 1e-140
    small = vector(result.mean * scale, result.covariance * scale**2)
    assert small.ratio(0, 1).value == pytest.approx(result.ratio(0, 1).value, rel=1e-12)
    assert small.ratio(0, 1).sdev == pytest.approx(result.ratio(0, 1).sdev, rel=1e-9)


def test_ratios_that_are_refused():
    result = vector([1.0, 0.0], np.eye(2))
    with pytest.raises(ValueError, match=r"mean\[1\] not zero, got 1.0, 0.0"):
        result.ratio(0, 1)
    for i, j, name in ((2, 0, "i"), (0, -1, "j")):
        with pytest.raises(ValueError, match=f"{name}: expected a component 0 to 1"):
            result.ratio(i, j)
    with pytest.raises(ValueError, match="expected finite means"):
        vector([INF, 1.0], np.eye(2)).ratio(0, 1)
    lost = replace(result, mean=np.full(2, 1e-200), sdev=np.full(2, 1e-203), covariance=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="rescale the integrand"):
        lost.ratio(0, 1)
    huge = replace(result, mean=np.full(2, 1e200), sdev=np.full(2, 1e190), covariance=np.full((2, 2), INF))
    with pytest.raises(ValueError, match="rescale the integrand"):
        huge.ratio(0, 1)


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError, match=r"covariance: expected shape \(1, 1\)"):
        replace(SCALAR, covariance=np.eye(2))
    with pytest.raises(ValueError, match=r"sdev: expected shape \(2,\)"):
        replace(SCALAR, mean=np.ones(2), covariance=np.eye(2))


# --- export, sampler, figure


def test_json_has_every_number():
    result = replace(correlated(3), Q=NAN, log_sdev=INF)
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    np.testing.assert_array_equal(read["mean"], result.mean)
    np.testing.assert_array_equal(read["covariance"], result.covariance)
    assert read["Q"] is None and read["log_sdev"] is None
    assert read["iterations"][2]["sdev"] == 0.0041 and read["iterations"][0]["khat"] is None
    assert read["diagnostics"] == asdict(DIAGNOSTICS)
    assert read["warnings"] == [] and read["reliable"] is True
    assert read.keys() == asdict(result).keys()


def test_the_sampler_is_asked_and_is_no_field():
    result = replace(SCALAR, sampler=Recorder())
    assert len(result.sample(7, seed=3)) == 7 and result.sample(7, seed=3).x[0] == 3
    unweighted = result.unweight(5, seed=2, w_max=1.5)
    assert (len(unweighted), unweighted.w_max, float(unweighted.x[0])) == (5, 1.5, 2.0)
    assert "sampler" not in result.to_dict() and "Recorder" not in repr(result)
    assert len(replace(result, verdict="other").sample(2, seed=0)) == 2
    with pytest.raises(ValueError, match="expected a result that an Integrator returned"):
        SCALAR.sample(3, seed=0)


def test_the_figure_shows_the_iterations():
    figure = SCALAR.figure(truth=0.9935)
    figure.savefig(BytesIO(), dpi=40)
    drawn = {c.get_label(): c.lines[0].get_xydata().tolist() for c in figure.axes[0].containers}
    assert drawn["final"] == [[1_000_000, 0.99351]] and drawn["anneal"] == []
    assert figure.axes[0].get_ylabel() == "integral"


def test_the_figure_of_an_evidence_that_underflows_shows_logarithms():
    steps = tuple(replace(it, mean=0.0, sdev=0.0, log_mean=-1234.5, log_sdev=0.1) for it in ITERATIONS)
    result = replace(SCALAR, mean=0.0, sdev=0.0, log_mean=-1234.4, log_sdev=0.05, iterations=steps)
    axes = result.figure(log_truth=-1234.45).axes[0]
    assert -1234.45 in [line.get_ydata()[0] for line in axes.lines]
    assert axes.get_ylabel() == "ln |integral|"
    low, high = axes.get_ylim()
    assert -1236 < low < -1234.5 and -1234.4 < high < -1233


@pytest.mark.parametrize(
    ("truths", "drawn"),
    [((0.99, None), 0.99), ((None, -0.01), math.exp(-0.01)), ((0.0, None), 0.0), ((None, 800.0), None)],
)
def test_a_truth_or_its_logarithm(truths, drawn):
    lines = [line for line in SCALAR.figure(*truths).axes[0].lines if line.get_label() == "truth"]
    assert [line.get_ydata()[0] for line in lines] == ([] if drawn is None else [drawn])
