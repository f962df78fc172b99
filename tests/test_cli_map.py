"""`sbiflow map`: from a model and a cube to images, one line for every error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from sbiflow.cli import app
from sbiflow.maps import MapResult
from tests.quick import quick_store, quick_train
from tests.toys import LinearGaussian

TOY = LinearGaussian()
SIMULATOR = "tests.toys:LinearGaussian"


class Toy(LinearGaussian):
    """Says how large its noise is."""

    noise = 0.5


with_noise = Toy()


def sbiflow(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With a model and a cube of 4 x 5 pixels, one of them masked."""
    path = tmp_path_factory.mktemp("cli-map")
    quick_train(quick_store(path / "s.h5", TOY), TOY).save(path / "model")
    theta = TOY.prior.sample(20, torch.Generator().manual_seed(1))
    x = TOY.observe(TOY.signal(theta), torch.Generator().manual_seed(2)).numpy().reshape(4, 5, 3)
    x[1, 2] = np.nan
    np.save(path / "cube.npy", x)
    np.save(path / "last.npy", np.moveaxis(x, -1, 0))
    return path


def test_a_map_is_that_of_the_python_function(folder, tmp_path):
    done = sbiflow(
        "map", folder / "model", folder / "cube.npy", "--out", tmp_path / "m.h5", "--n", 30, "--seed", 4
    )
    assert done.exit_code == 0, done.output
    assert "20 pixels: 19 with a posterior, 1 masked" in done.stdout and "not tested" in done.stdout
    first = MapResult.open(tmp_path / "m.h5")
    assert (first.file.meta.n, first.file.meta.seed) == (30, 4)
    done = sbiflow("map", folder / "model", folder / "last.npy", "--axes", "last", "--out", tmp_path / "l.h5",
                   "--n", 30, "--seed", 4, "--threads", 2)  # fmt: skip
    assert done.exit_code == 0, done.output
    np.testing.assert_allclose(MapResult.open(tmp_path / "l.h5")["t0"].median, first["t0"].median, rtol=1e-4)


def test_fit_fits_and_figures(folder, tmp_path):
    pytest.importorskip("astropy")
    done = sbiflow("map", folder / "model", folder / "cube.npy", "--out", tmp_path / "m.h5", "--chi2", 2,
                   "--simulator", "tests.test_cli_map:with_noise", "--fits", tmp_path / "m.fits",
                   "--figures", tmp_path / "figures")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "misfit at their own posterior" in done.stdout
    assert MapResult.open(tmp_path / "m.h5").counts.signals == 38
    assert (tmp_path / "m.fits").stat().st_size > 0
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "checks.png",
        "medians.png",
        "widths.png",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n", 0], "n: expected a whole number >= 1, got 0"),
        (["--axes", "middle"], "axes: expected"),
        (["--chi2", 1], "pass --simulator package.module:attribute"),
        (["--chi2", 1, "--simulator", SIMULATOR], "noise: expected standard deviations"),
        (["--fits", "no/folder/m.fits"], "expected a file in an existing folder"),
        (["--dataset", "x"], "dataset: expected None for .npy"),
    ],
)
def test_errors_are_one_line(folder, tmp_path, options, message):
    done = sbiflow("map", folder / "model", folder / "cube.npy", "--out", tmp_path / "m.h5", *options)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr
    assert not (tmp_path / "m.h5").exists()


def test_another_map_is_refused(folder, tmp_path):
    arguments = ["map", folder / "model", folder / "cube.npy", "--out", tmp_path / "m.h5", "--n", 10]
    assert sbiflow(*arguments).exit_code == 0
    assert sbiflow(*arguments).exit_code == 0  # finished: nothing to do
    assert "seed: expected 1, got 0" in sbiflow(*arguments, "--seed", 1).stderr
