"""An adapted integrator on disk: the same draws, the same answers, and nothing else is taken for one."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from sbiflow.families import FlowConfig
from sbiflow.integrate import Integrator
from sbiflow.model_file import write_model
from tests.integrate.small import config, cube


def f(x: np.ndarray) -> np.ndarray:
    return np.exp(-20 * ((x - 0.4) ** 2).sum(1) - 30 * (x[:, 0] - x[:, 1]) ** 2)


def adapted(method: str, bounds=None, **options) -> Integrator:
    integrator = Integrator(bounds or cube(2), config=config(method=method, rows=20_000), **options)
    integrator(f, 2000, seed=1, progress=False)
    return integrator


def same_draws(one: Integrator, other: Integrator) -> bool:
    points = torch.rand(500, one.domain.dim + 1, dtype=torch.float64)
    pairs = zip(one.proposal.draw(points), other.proposal.draw(points), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("method", ("grid", "flow"))
def test_the_same_draws_and_the_same_answer(method, tmp_path):
    integrator = adapted(method)
    integrator.save(tmp_path / "saved")
    loaded = Integrator.load(tmp_path / "saved")
    assert same_draws(integrator, loaded)
    assert loaded.domain == integrator.domain and loaded.config == integrator.config
    one, two = (own(f, 1500, seed=7, progress=False) for own in (integrator, loaded))
    assert one.mean == two.mean and one.sdev == two.sdev and one.method == two.method == method
    assert [it.n for it in one.iterations] == [it.n for it in two.iterations]


def test_resumed_in_the_same_sequence(tmp_path):
    """Save between two calls, or not: the second call is the same, other nets included."""
    whole = adapted("grid")
    whole.save(tmp_path / "saved")
    resumed = Integrator.load(tmp_path / "saved")
    fresh = adapted("grid")
    results = [own(f, 1500, seed=1, progress=False).mean for own in (whole, resumed, fresh)]
    assert results[0] == results[1] == results[2]


def test_any_region(tmp_path):
    bounds = [(-math.inf, math.inf), (0.0, math.inf), (0.0, 2 * math.pi)]
    integrator = adapted("flow", bounds, periodic=(2,), scales=(1.0, 2.0, 1.0))
    integrator.save(tmp_path / "saved")
    loaded = Integrator.load(tmp_path / "saved")
    assert loaded.domain == integrator.domain and same_draws(integrator, loaded)
    assert "Infinity" not in (tmp_path / "saved" / "config.json").read_text()


def test_any_flow(tmp_path):
    flow = FlowConfig("spline_coupling", layers=2, hidden=20, blocks=1, bins=6, start="prior")
    for settings in (
        config(method="flow", flow=flow, rows=5000),
        config(method="flow", flow=None, rows=2000),
    ):
        integrator = Integrator(cube(2), config=settings)
        integrator(f, 600, seed=1, progress=False)
        integrator.save(tmp_path / "saved")
        loaded = Integrator.load(tmp_path / "saved")
        assert loaded.config == settings and same_draws(integrator, loaded)


def test_an_integrator_that_has_not_run(tmp_path):
    Integrator(cube(2), config=config(method="grid")).save(tmp_path / "saved")
    loaded = Integrator.load(tmp_path / "saved")
    want = Integrator(cube(2), config=config(method="grid"))(f, 1000, seed=3, progress=False)
    assert loaded(f, 1000, seed=3, progress=False).mean == want.mean


def test_draws_need_the_integrand_again(tmp_path):
    adapted("grid").save(tmp_path / "saved")
    with pytest.raises(ValueError, match="sample: expected an integrator that has been called"):
        Integrator.load(tmp_path / "saved").sample(10, seed=1)


def test_saving_again_replaces(tmp_path):
    integrator = adapted("grid")
    integrator.save(tmp_path / "saved")
    integrator(f, 1500, seed=2, progress=False)
    integrator.save(tmp_path / "saved")
    assert same_draws(Integrator.load(tmp_path / "saved"), integrator)


# --- what is refused


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match=r"expected a model .* got no config\.json"):
        Integrator.load(tmp_path / "nowhere")


def test_another_kind_of_model(tmp_path):
    write_model(tmp_path / "other", {"kind": "posterior"}, {"a": torch.zeros(3)}, None)
    with pytest.raises(ValueError, match="expected an integrator, got another kind"):
        Integrator.load(tmp_path / "other")
    write_model(tmp_path / "none", {}, {"a": torch.zeros(3)}, None)
    with pytest.raises(ValueError, match="expected an integrator, got another kind"):
        Integrator.load(tmp_path / "none")


def test_damaged_files(tmp_path):
    adapted("grid").save(tmp_path / "saved")
    weights = tmp_path / "saved" / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-8] + b"\0" * 8)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        Integrator.load(tmp_path / "saved")
    weights.write_bytes(good)
    path = tmp_path / "saved" / "config.json"
    spec = json.loads(path.read_text())
    path.write_text(json.dumps(spec | {"format_version": 999}))
    with pytest.raises(ValueError, match="format"):
        Integrator.load(tmp_path / "saved")
