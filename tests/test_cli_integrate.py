"""`sbiflow integrate`: what a user names is what is integrated, one line for every error, the verdict as status.

A stand-in for the Integrator (plain Monte Carlo, with a record of how it was called) where only the arguments
matter; the real one at the end, on integrals whose values are known.
"""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from sbiflow.cli import app
from sbiflow.integrate import Integrator
from sbiflow.integrate.result import IntegralDiagnostics, IntegralResult, Iteration

HERE = __name__
NAN = math.nan


# --- what the commands are given


def line(x: np.ndarray) -> np.ndarray:
    """Σ x_i: D/2 on the unit cube."""
    return x.sum(1)


def normal(x: np.ndarray) -> np.ndarray:
    """1 on R^D."""
    return np.exp(-0.5 * (x**2).sum(1)) / (2 * math.pi) ** (x.shape[1] / 2)


def faint(x: np.ndarray) -> np.ndarray:
    """ln of e^-2000 Σ x_i: no double holds the integral."""
    return np.log(x.sum(1)) - 2000


def needle(x: np.ndarray) -> np.ndarray:
    """A peak that no 2,000 points in 8 dimensions can find; 1 in all."""
    return np.exp(-0.5 * ((x - 0.617) ** 2).sum(1) / 1e-6) / (2 * math.pi * 1e-6) ** (x.shape[1] / 2)


@dataclass(frozen=True)
class Known:
    """An integrand that brings its limits and its integral."""

    f: Any
    bounds: Any
    truth: float | None = None
    log: bool = False


known = Known(line, ((0.0, 1.0), (0.0, 2.0)), truth=3.0)
faint_known = Known(faint, ((0.0, 1.0), (0.0, 1.0)), truth=-2000.0, log=True)
number = 3


class Suite:
    inner = known


# --- the stand-in


class StandIn:
    """Uniform points; remembers the limits and the arguments of the call."""

    made: ClassVar[list[StandIn]] = []
    reliable = True

    def __init__(self, bounds: Any, *, device: str) -> None:
        self.bounds, self.device, self.saved = [tuple(pair) for pair in bounds], device, []
        StandIn.made.append(self)

    @classmethod
    def load(cls, folder: Path, *, device: str) -> StandIn:
        return cls([(0.0, 1.0)] * len(folder.read_text()), device=f"loaded to {device}")

    def save(self, folder: Path) -> None:
        self.saved.append(folder)
        folder.write_text("x" * len(self.bounds))

    def __call__(self, f: Any, budget: int, **options: Any) -> IntegralResult:
        self.budget, self.options = budget, options
        low, high = np.array(self.bounds).clip(-9, 9).T
        weights = f(np.random.default_rng(0).uniform(low, high, (1000, len(low)))) * (high - low).prod()
        mean, sdev = float(weights.mean()), float(weights.std() / math.sqrt(1000))
        return IntegralResult(
            mean=mean, sdev=sdev, covariance=np.array([[sdev**2]]), log_mean=math.log(abs(mean)),
            log_sdev=sdev / abs(mean), chi2=0.0, dof=0, Q=NAN, n_evals=1000, n_train=0,
            diagnostics=IntegralDiagnostics(1000, 0, 0, 0, 900.0, 0.9, 0.1, 0.002, 0.0, 0.0, 0.0, 1.0),
            verdict="Trustworthy." if self.reliable else "Do not use: a test.", reliable=self.reliable,
            warnings=(), iterations=(Iteration("final", 1000, mean, sdev, NAN, 0.9, 0.1, 1.0, 0.1),),
            seconds_integrand=0.1, seconds_flow=0.1, method="grid",
        )  # fmt: skip


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr("sbiflow.cli.integrate.Integrator", StandIn)
    monkeypatch.setattr(StandIn, "made", [])
    return StandIn


def integrate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["integrate", *map(str, arguments)])


def succeed(*arguments: object, status: int = 0) -> str:
    result = integrate(*arguments)
    assert result.exit_code == status, result.output
    return result.stdout


def fail(*arguments: object) -> str:
    """The one line on stderr of a command that has to fail."""
    result = integrate(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr.strip()


# --- limits and options


@pytest.mark.parametrize(
    ("arguments", "bounds"),
    [
        (["line", "--dim", 3], [(0.0, 1.0)] * 3),
        (["line", "--bounds", "0,1;-1,1.5"], [(0.0, 1.0), (-1.0, 1.5)]),
        (["line", "--bounds", "-6,6", "--dim", 5], [(-6.0, 6.0)] * 5),
        (["line", "--bounds=-inf,inf; 0,inf;", "--dim", 2], [(-math.inf, math.inf), (0.0, math.inf)]),
        (["known"], [(0.0, 1.0), (0.0, 2.0)]),
        (["Suite.inner"], [(0.0, 1.0), (0.0, 2.0)]),
        (["known", "--dim", 1], [(0.0, 1.0)]),  # what is said beats what the integrand brings
        (["known", "--bounds", "2,3"], [(2.0, 3.0)]),
    ],
)
def test_limits(stand_in, arguments, bounds):
    succeed(f"{HERE}:{arguments[0]}", *arguments[1:])
    assert stand_in.made[0].bounds == bounds


def test_defaults_and_options_reach_the_call(stand_in):
    succeed(f"{HERE}:line", "--dim", 2)
    assert stand_in.made[0].budget == 1_000_000
    assert stand_in.made[0].options == {"rtol": 0.0, "atol": 0.0, "seed": 0, "log": False, "calls": "auto"}
    options = ["--rtol", "1e-3", "--atol", 0.5, "--seed", 7, "--log", "--calls", "numpy", "--device", "cpu"]
    succeed(f"{HERE}:line", "--dim", 2, "--budget", "2.5e4", *options)
    assert (stand_in.made[1].budget, stand_in.made[1].device) == (25_000, "cpu")
    assert stand_in.made[1].options == {"rtol": 1e-3, "atol": 0.5, "seed": 7, "log": True, "calls": "numpy"}


def test_it_prints_the_result_and_where_the_truth_is(stand_in):
    text = succeed(f"{HERE}:known")
    assert text.startswith("Trustworthy.\n") and "\nintegral = " in text
    off = re.search(r"truth = 3: the estimate is off by ([+-]\d\.\d\d) sd\n$", text)
    estimate = re.search(r"integral = (\d\.\d+)\((\d+)\)", text)
    mean, sdev = float(estimate[1]), float(estimate[2]) * 10.0 ** -len(estimate[1].partition(".")[2])
    assert float(off[1]) == pytest.approx((mean - 3) / sdev, abs=0.1)  # the error is printed with two digits
    assert "truth" not in succeed(f"{HERE}:line", "--dim", 2)


def test_an_estimate_that_is_not_reliable_has_status_1_and_is_still_written(stand_in, monkeypatch, tmp_path):
    monkeypatch.setattr(stand_in, "reliable", False)
    out = tmp_path / "result.json"
    assert succeed(f"{HERE}:known", "--out", out, status=1).startswith("Do not use: a test.")
    assert json.loads(out.read_text())["reliable"] is False


def test_json_and_figure(stand_in, tmp_path):
    out, figure = tmp_path / "result.json", tmp_path / "figure.png"
    text = succeed(f"{HERE}:known", "--seed", 5, "--budget", 3000, "--out", out, "--figure", figure)
    assert f"result: {out}" in text and f"figure: {figure}" in text
    read = json.loads(out.read_text())
    assert (read["integrand"], read["seed"], read["budget"]) == (f"{HERE}:known", 5, 3000)
    assert abs(read["mean"] - 3.0) < 5 * read["sdev"] and read["Q"] is None and read["sbiflow_version"]
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_save_and_resume(stand_in, tmp_path):
    folder = tmp_path / "proposal"
    assert f"proposal: {folder}" in succeed(f"{HERE}:line", "--dim", 3, "--save", folder)
    succeed(f"{HERE}:line", "--resume", folder)
    assert stand_in.made[1].device.startswith("loaded to c") and len(stand_in.made[1].bounds) == 3


# --- names


FILE = """
from __future__ import annotations
from dataclasses import dataclass
from neighbour import HALF

@dataclass(frozen=True)
class Box:
    bounds: tuple = ((0.0, 1.0),)
    truth: float = HALF
    def f(self, x):
        return x[:, 0]

box = Box()
def twice(x):
    return 2 * x[:, 0]
"""


def test_a_file_is_named_by_its_path_and_finds_its_neighbours(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    folder = tmp_path / "some: folder"
    folder.mkdir()
    (folder / "math.py").write_text(FILE)  # the name of another module
    (folder / "neighbour.py").write_text("HALF = 0.5")
    assert "truth = 0.5" in succeed(f"{folder / 'math.py'}:box")
    assert "integral = 1.0" in succeed(f"{folder / 'math.py'}:twice", "--dim", 1)
    assert math.sqrt(4) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("line", "expected package.module:name or path/to/file.py:name, got 'line'"),
        (":line", "expected package.module:name"),
        (f"{HERE}:", "expected package.module:name"),
        ("tests.nothing:line", "ModuleNotFoundError: No module named 'tests.nothing'"),
        ("/no/such/file.py:line", "no such file: /no/such/file.py"),
        (f"{HERE}:nothing", "AttributeError: module"),
        (f"{HERE}:number", "expected a function or an object with f and bounds, got int"),
        (f"{HERE}:Known", "got the class Known"),
    ],
)
def test_names_that_are_no_integrand(stand_in, name, message):
    assert message in fail(name, "--dim", 2)
    assert not stand_in.made


def test_a_file_that_fails_is_one_line(stand_in, tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0")
    assert "ZeroDivisionError: division by zero" in fail(f"{tmp_path / 'broken.py'}:f", "--dim", 1)
    (tmp_path / "worse.py").write_text("def f(:")
    assert "SyntaxError" in fail(f"{tmp_path / 'worse.py'}:f", "--dim", 1)


# --- bad input, before any work


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected --dim or --bounds, for it has no bounds"),
        (["--bounds", "0,1;2"], "--bounds: expected pairs as in \"0,1;-1,1;0,inf\", got '2'"),
        (["--bounds", "a,b"], "got 'a,b'"),
        (["--bounds", ""], "--bounds: expected pairs"),
        (["--bounds", "0,1;0,1", "--dim", 3], "--bounds: expected one pair or 3 (--dim), got 2"),
        (["--dim", 1, "--budget", "many"], "--budget: expected a whole number >= 1, such as 1e6, got 'many'"),
        (["--dim", 1, "--budget", "0"], "got '0'"),
        (["--dim", 1, "--budget", "1.5"], "got '1.5'"),
        (["--dim", 1, "--budget", "inf"], "got 'inf'"),
        (["--dim", 1, "--device", "abacus"], "device: expected auto, cpu or cuda"),
        (["--dim", 1, "--resume", "folder"], "--resume: expected neither --dim nor --bounds"),
        (["--dim", 1, "--out", "/no/such/folder/r.json"], "expected a file in an existing folder"),
        (["--dim", 1, "--figure", "/no/such/folder/f.png"], "expected a file in an existing folder"),
        (["--dim", 1, "--save", "/no/such/folder/p"], "got no folder /no/such/folder"),
        (["--dim", 1, "--save", __file__], "expected a folder, got a file"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_integrated(stand_in, arguments, message):
    assert message in fail(f"{HERE}:line", *arguments)
    assert not any(hasattr(made, "budget") for made in stand_in.made)


def test_help_has_an_example():
    assert "Example: sbiflow integrate" in " ".join(succeed("--help").split())


# --- the real thing


def test_the_integral_of_a_gaussian_over_the_plane(tmp_path):
    out = tmp_path / "result.json"
    arguments = ["--bounds", "-inf,inf", "--dim", 2, "--budget", 10_000, "--seed", 1, "--out", out]
    text = succeed(f"{HERE}:normal", *arguments)
    read = json.loads(out.read_text())
    assert read["n_evals"] <= 10_000 and read["reliable"]
    assert abs(read["mean"] - 1) < 5 * read["sdev"] < 0.1  # false alarms below 1e-6
    assert f"{read['n_evals']:,} evaluations" in text


def test_the_logarithm_of_an_integral_that_underflows():
    text = succeed(f"{HERE}:faint", "--dim", 2, "--log", "--budget", 5_000)
    assert "integral = e^(-2000.0" in text or "integral = e^(-1999.9" in text


def test_an_integrand_that_says_that_it_is_a_logarithm(tmp_path):
    text = succeed(f"{HERE}:faint_known", "--budget", 5_000, "--figure", tmp_path / "f.png")
    off = re.search(r"ln truth = -2000: the estimate is off by ([+-]\d+\.\d\d) sd", text)
    assert abs(float(off[1])) < 5 and (tmp_path / "f.png").exists()


def test_a_peak_that_was_not_found_is_not_reliable():
    text = succeed(f"{HERE}:needle", "--dim", 8, "--budget", 2000, status=1)
    assert "integral = " in text  # an answer, not a fault of ours, which has status 1 as well


def test_a_saved_proposal_is_gone_on_from(tmp_path):
    folder = tmp_path / "proposal"
    succeed(f"{HERE}:line", "--dim", 2, "--budget", 5_000, "--save", folder)
    assert isinstance(Integrator.load(folder), Integrator)
    text = succeed(f"{HERE}:line", "--resume", folder, "--budget", 5_000, "--seed", 1)
    assert "integral = 1.0" in text or "integral = 0.99" in text


def test_errors_of_the_integrator_are_one_line(tmp_path):
    assert "expected" in fail(f"{HERE}:line", "--bounds", "1,0", "--budget", 1000)
    assert "expected" in fail(f"{HERE}:line", "--dim", 2, "--calls", "telepathy", "--budget", 1000)
    assert "nothing" in fail(f"{HERE}:line", "--resume", tmp_path / "nothing")
