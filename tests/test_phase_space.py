"""Phase space, jets and the antenna of analyses/31_phase_space.py against closed forms and independent programs.

Statistical gates have a stated false-alarm rate for their fixed seed.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from analyses.four_gluons import (
    ALPHA_S,
    CROSS_SECTION,
    CROSS_SECTION_ERROR,
    GEV2_PB,
    SQRT_S,
    GluonScattering,
    antenna,
    invariants,
    randomised_qmc,
    sum_over_rings,
)
from analyses.jets import Cuts, JetCoordinates, pseudorapidities, separations, transverse_momenta
from analyses.phase_space import Chain, Isotropic, PoleMass, UniformRapidity, dot, volume
from analyses.phase_space_methods import methods, unweighting_efficiency, with_channels
from sbiflow.integrate import IntegratorConfig

CHAINS = {
    "RAMBO on diet": Chain(SQRT_S),
    "isotropic, poles": Chain(SQRT_S, mass=PoleMass(6e3)),
    "rapidity": Chain(SQRT_S, angle=UniformRapidity(1.5)),
    "multi-peripheral": Chain(SQRT_S, mass=PoleMass(6e4), angle=UniformRapidity(2.0)),
    "two": Chain(SQRT_S, 2, angle=UniformRapidity(3.0)),
    "three": Chain(SQRT_S, 3, mass=PoleMass(600.0)),
    "six": Chain(SQRT_S, 6),
}
every_chain = pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
WIDE = Cuts(pt=30.0, eta=3.0, dr=0.2)
SIGMAS = 4.5  # two-sided false alarm 7e-6


def cube(rows: int, dim: int, seed: int = 0) -> Tensor:
    return torch.rand(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rambo(n: int, rows: int, seed: int) -> Tensor:
    """Momenta (rows, n, 4) of total energy SQRT_S, uniform in phase space: the democratic algorithm, eq. 3.1-3.3 of
    Kleiss, Stirling & Ellis, Comput. Phys. Commun. 40 (1986) 359."""
    rng = np.random.default_rng(seed)
    cosine, phi = 2 * rng.random((rows, n)) - 1, 2 * np.pi * rng.random((rows, n))
    energy = -np.log(rng.random((rows, n)) * rng.random((rows, n)))
    sine = np.sqrt(1 - cosine**2)
    q = energy[..., None] * np.stack([np.ones_like(sine), sine * np.cos(phi), sine * np.sin(phi), cosine], -1)
    total = q.sum(1)
    mass = np.sqrt(total[:, 0] ** 2 - (total[:, 1:] ** 2).sum(1))
    b, gamma, scale = -total[:, None, 1:] / mass[:, None, None], (total[:, 0] / mass)[:, None], SQRT_S / mass
    along = (b * q[..., 1:]).sum(-1)
    vector = q[..., 1:] + b * (q[..., 0] + along / (1 + gamma))[..., None]
    return torch.from_numpy(
        scale[:, None, None] * np.concatenate([(gamma * q[..., 0] + along)[..., None], vector], -1)
    )


class TestChain:
    @every_chain
    def test_conserves_momentum_and_masses(self, chain: Chain) -> None:
        momenta, weight = chain.forward(cube(20_000, chain.dim))
        total = torch.tensor([SQRT_S, 0.0, 0.0, 0.0], dtype=torch.float64)
        assert momenta.shape == (20_000, chain.n, 4)
        assert (momenta.sum(1) - total).abs().max() < 1e-9 * SQRT_S
        assert dot(*[momenta.permute(2, 0, 1)] * 2).abs().max() < 1e-12 * SQRT_S**2
        assert (momenta[..., 0] > 0).all() and (weight > 0).all()

    @every_chain
    def test_inverse_undoes_forward(self, chain: Chain) -> None:
        u = cube(20_000, chain.dim)
        difference = (chain.inverse(chain.forward(u)[0]) - u).abs()
        difference[:, chain.azimuths] = torch.minimum(
            difference[:, chain.azimuths], 1 - difference[:, chain.azimuths]
        )
        assert difference.max() < 1e-6 and difference.median() < 1e-14

    @every_chain
    def test_mean_weight_is_the_volume(self, chain: Chain) -> None:
        _, weight = chain.forward(cube(400_000, chain.dim, 1))
        error = float(weight.std()) / math.sqrt(len(weight))
        expected = volume(chain.n, SQRT_S)
        assert abs(float(weight.mean()) - expected) < SIGMAS * error + 1e-9 * expected
        assert error < 0.02 * float(weight.mean())

    def test_rambo_on_diet_has_constant_weight(self) -> None:
        for n in range(2, 8):
            _, weight = Chain(SQRT_S, n).forward(cube(5_000, 3 * n - 4))
            assert torch.allclose(weight, torch.full_like(weight, volume(n, SQRT_S)), rtol=1e-9)

    @pytest.mark.parametrize("n", [3, 4, 5])
    def test_rambo_on_diet_is_rambo(self, n: int) -> None:
        """Two samples of the energies, masses and polar angles; false alarm 1e-4 for each n."""
        ours, theirs = Chain(SQRT_S, n).forward(cube(20_000, 3 * n - 4, 3))[0], rambo(n, 20_000, 4)
        pairs = [*map(observables, (ours, theirs))]
        p_values = [stats.ks_2samp(a, b).pvalue for a, b in zip(*pairs, strict=True)]
        assert min(p_values) * len(p_values) > 1e-4

    @pytest.mark.parametrize("name", ["isotropic, poles", "multi-peripheral"])
    def test_weighted_chains_are_rambo(self, name: str) -> None:
        """Means of bounded functions of phase space agree with RAMBO's."""
        momenta, weight = CHAINS[name].forward(cube(400_000, 8, 5))
        flat = rambo(4, 400_000, 6)
        for f in (smallest_mass, hardest, forwardness):
            ours = f(momenta) * weight / volume(4, SQRT_S)
            error = math.hypot(float(ours.std()), float(f(flat).std())) / math.sqrt(400_000)
            assert abs(float(ours.mean() - f(flat).mean())) < SIGMAS * error

    def test_measure_is_lorentz_invariant(self) -> None:
        """d³p/E of boosted decays: the mass of particles 3 and 4 does not depend on which two are last."""
        momenta, weight = CHAINS["multi-peripheral"].forward(cube(400_000, 8, 7))
        samples = [weight * smallest_mass(momenta[:, list(pair)]) for pair in ((0, 1), (2, 3))]
        error = math.hypot(*(float(sample.std()) for sample in samples)) / math.sqrt(400_000)
        assert abs(float(samples[0].mean() - samples[1].mean())) < SIGMAS * error

    def test_isotropic_and_uniform_in_rapidity(self) -> None:
        """Kolmogorov-Smirnov, false alarm 1e-4 in all."""
        momenta, _ = Chain(SQRT_S).forward(cube(50_000, 8, 8))
        cosine = momenta[..., 3] / momenta[..., 0]
        azimuth = torch.atan2(momenta[..., 2], momenta[..., 1])
        p_values = [stats.kstest(cosine[:, i], "uniform", (-1, 2)).pvalue for i in range(4)]
        p_values += [stats.kstest(azimuth[:, i], "uniform", (-math.pi, 2 * math.pi)).pvalue for i in range(4)]
        first, _ = Chain(SQRT_S, angle=UniformRapidity(2.0)).forward(cube(50_000, 8, 9))
        y = torch.atanh(math.tanh(2.0) * first[:, 0, 3] / first[:, 0, 0])
        p_values.append(stats.kstest(y, "uniform", (-2, 4)).pvalue)
        assert min(p_values) * len(p_values) > 1e-4

    def test_cube_of_another_chain(self) -> None:
        """Its Jacobian against autograd; the way there and back is the identity."""
        ours, flat = CHAINS["multi-peripheral"], CHAINS["RAMBO on diet"]
        u = 0.05 + 0.9 * cube(20, 8, 10)
        there, log_jacobian = ours.cube_of(flat, u)

        def one(row: Tensor) -> Tensor:
            return ours.cube_of(flat, row[None])[0][0]

        jacobian = torch.stack([torch.autograd.functional.jacobian(one, row) for row in u])
        assert torch.allclose(torch.linalg.slogdet(jacobian)[1], log_jacobian, atol=1e-7)
        back, opposite = flat.cube_of(ours, there)
        assert torch.allclose(back, u, atol=1e-9) and torch.allclose(opposite, -log_jacobian, atol=1e-8)

    def test_edges_of_the_cube_are_finite(self) -> None:
        corners = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=8)), dtype=torch.float64)
        for chain in (CHAINS["RAMBO on diet"], CHAINS["multi-peripheral"]):
            momenta, weight = chain.forward(corners)
            assert momenta.isfinite().all() and weight.isfinite().all()
            assert GluonScattering(chain)(corners).isfinite().all()

    def test_refuses_what_is_no_chain(self) -> None:
        for make in (
            lambda: Chain(-1.0),
            lambda: Chain(1.0, 1),
            lambda: PoleMass(0.0),
            lambda: UniformRapidity(-1.0),
        ):
            with pytest.raises(ValueError, match="expected"):
                make()
        with pytest.raises(ValueError, match=r"u: expected shape \(rows, 8\)"):
            Chain(SQRT_S).forward(cube(3, 7))
        with pytest.raises(ValueError, match="momenta: expected shape"):
            Chain(SQRT_S).inverse(torch.zeros(3, 5, 4))


def observables(momenta: Tensor) -> list[np.ndarray]:
    """Every energy, every pair's mass, every polar angle."""
    n = momenta.shape[1]
    masses = [dot(*momenta[:, [i, j]].permute(1, 2, 0)) for i, j in itertools.combinations(range(n), 2)]
    cosines = momenta[..., 3] / momenta[..., 0]
    return [column.numpy() for column in (*momenta[..., 0].T, *masses, *cosines.T)]


def smallest_mass(momenta: Tensor) -> Tensor:
    """(2 p_1·p_2)^½ / √s of the first two."""
    return torch.sqrt(2 * dot(*momenta[:, :2].permute(1, 2, 0)).clamp(min=0.0)) / SQRT_S


def hardest(momenta: Tensor) -> Tensor:
    return momenta[..., 0].amax(-1) / SQRT_S


def forwardness(momenta: Tensor) -> Tensor:
    return (momenta[..., 3].abs() / momenta[..., 0]).amin(-1)


class TestVolume:
    def test_two_and_three_bodies_by_quadrature(self) -> None:
        """Φ_2 = 1/8π; Φ_3 is the area of the Dalitz triangle, s²/2, over 128 π³ s."""
        assert volume(2, SQRT_S) == pytest.approx(1 / (8 * math.pi))
        s = SQRT_S**2
        area, _ = integrate.dblquad(lambda a, b: 1.0, 0, s, 0, lambda b: s - b)
        assert volume(3, SQRT_S) == pytest.approx(area / (128 * math.pi**3 * s), rel=1e-10)

    def test_four_bodies_by_the_recursion(self) -> None:
        """Φ_4(s) = ∫ ds'/2π Φ_3(s') (1 - s'/s) / 8π."""
        s = SQRT_S**2
        value, _ = integrate.quad(lambda t: volume(3, t**0.5) * (1 - t / s) / (16 * math.pi**2), 0, s)
        assert volume(4, SQRT_S) == pytest.approx(value, rel=1e-10)


class TestJets:
    def test_observables_by_hand(self) -> None:
        def jet(pt: float, eta: float, phi: float) -> list[float]:
            return [pt * math.cosh(eta), pt * math.cos(phi), pt * math.sin(phi), pt * math.sinh(eta)]

        momenta = torch.tensor(
            [[jet(70.0, 0.3, 3.0), jet(65.0, -1.2, -3.1), jet(90.0, 2.4, 0.4)]], dtype=torch.float64
        )
        assert torch.allclose(
            transverse_momenta(momenta), torch.tensor([[70.0, 65.0, 90.0]], dtype=torch.float64)
        )
        assert torch.allclose(
            pseudorapidities(momenta), torch.tensor([[0.3, -1.2, 2.4]], dtype=torch.float64)
        )
        across = math.hypot(1.5, 2 * math.pi - 6.1)  # over the cut of the azimuth at π
        expected = [
            across,
            math.hypot(2.1, 2.6),
            math.hypot(3.6, 2 * math.pi - 3.5 if math.pi < 3.5 else 3.5),
        ]
        assert torch.allclose(separations(momenta), torch.tensor([expected], dtype=torch.float64))
        assert Cuts().passed(momenta).all()
        for cuts in (Cuts(pt=66.0), Cuts(eta=2.3), Cuts(dr=1.6)):
            assert not cuts.passed(momenta).any()

    def test_cross_section_vanishes_exactly_outside(self) -> None:
        f, u = GluonScattering(), cube(20_000, 8)
        passed = f.cuts.passed(f.phase_space.forward(u)[0])
        assert (f(u)[~passed] == 0).all() and (f(u)[passed] > 0).all()
        assert 0.5 < passed.double().mean() < 0.65

    def test_jet_coordinates_are_phase_space(self) -> None:
        momenta, weight = JetCoordinates(SQRT_S).forward(cube(50_000, 8))
        inside = weight > 0
        assert momenta[~inside].isnan().all() and 0.2 < inside.double().mean() < 0.9
        momenta = momenta[inside]
        assert (
            momenta.sum(1) - torch.tensor([SQRT_S, 0, 0, 0], dtype=torch.float64)
        ).abs().max() < 1e-9 * SQRT_S
        assert dot(*[momenta.permute(2, 0, 1)] * 2).abs().max() < 1e-9 * SQRT_S**2
        pt = transverse_momenta(momenta)
        assert (pt[:, :2].amax(-1) < pt[:, 2:].amin(-1)).all() and (pt[:, :2] > 60.0 * (1 - 1e-12)).all()

    @pytest.mark.parametrize(("n", "angle"), [(3, Isotropic()), (4, Isotropic()), (4, UniformRapidity(1.75))])
    def test_jet_coordinates_measure_phase_space(self, n: int, angle: Isotropic | UniformRapidity) -> None:
        """Means of a symmetric function that lives inside the cuts, against RAMBO."""

        def function(momenta: Tensor) -> Tensor:
            soft = (WIDE.pt / transverse_momenta(momenta)).prod(-1)
            return torch.where(WIDE.passed(momenta), soft, 0.0)

        momenta, weight = JetCoordinates(SQRT_S, n, WIDE, angle).forward(cube(400_000, 3 * n - 4, 11))
        ours, theirs = function(momenta) * weight / volume(n, SQRT_S), function(rambo(n, 400_000, 12))
        error = math.hypot(float(ours.std()), float(theirs.std())) / math.sqrt(400_000)
        assert abs(float(ours.mean() - theirs.mean())) < SIGMAS * error
        assert error < 0.02 * float(theirs.mean())


def two_to_two(t: float) -> float:
    """dσ/dt [pb/GeV²] of gg → gg, for identical gluons in all of t: Ellis, Stirling & Webber, table 7.1."""
    s = SQRT_S**2
    u = -s - t
    squared = 9 / 2 * (4 * math.pi * ALPHA_S) ** 2 * (3 - t * u / s**2 - s * u / t**2 - s * t / u**2)
    return GEV2_PB * squared / (16 * math.pi * s**2) / 2


class TestAntenna:
    def test_rings_by_listing_them(self) -> None:
        n, generator = 6, np.random.default_rng(0)
        link = {(i, j): torch.tensor([generator.random()]) for i, j in itertools.combinations(range(n), 2)}
        rings = {min(p, p[::-1]) for p in itertools.permutations(range(1, n))}
        assert len(rings) == 60
        edges = [zip((0, *ring), (*ring, 0), strict=True) for ring in rings]
        expected = sum(math.prod(float(link[min(e), max(e)]) for e in ring) for ring in edges)
        assert float(sum_over_rings(link)) == pytest.approx(expected)

    def test_is_symmetric_and_scales(self) -> None:
        momenta = rambo(4, 100, 0)
        value = antenna(invariants(momenta, SQRT_S))
        assert torch.allclose(antenna(invariants(momenta[:, [2, 0, 3, 1]], SQRT_S)), value, rtol=1e-9)
        assert torch.allclose(antenna(invariants(2 * momenta, 2 * SQRT_S)), value * 2.0**-4, rtol=1e-9)

    def test_invariants_of_a_row_add_to_zero(self) -> None:
        """Σ_j s_aj = 2 p_a·(p_b - Σ out) changes sign between incoming and outgoing."""
        s = invariants(rambo(4, 100, 1), SQRT_S)
        out = sum(s[0, j] for j in range(2, 6))
        assert torch.allclose(out, s[0, 1]) and torch.allclose(s[0, 1], torch.full_like(out, SQRT_S**2))

    def test_two_gluons_are_exact(self) -> None:
        cuts = Cuts(pt=60.0, eta=10.0, dr=0.0)
        f = GluonScattering(Chain(SQRT_S, 2, angle=UniformRapidity(4.0)), cuts)
        r = (np.arange(200_000) + 0.5) / 200_000
        ours = f(np.stack([r, np.full_like(r, 0.3)], 1)).mean()
        cosine = math.sqrt(1 - (2 * cuts.pt / SQRT_S) ** 2)
        limits = (-(SQRT_S**2) * (1 + cosine) / 2, -(SQRT_S**2) * (1 - cosine) / 2)
        assert ours == pytest.approx(integrate.quad(two_to_two, *limits)[0], rel=1e-4)

    @pytest.mark.parametrize(("n", "conjugate"), [(4, 1), (5, 2), (6, 2)])
    def test_each_ring_is_a_colour_ordered_amplitude(self, n: int, conjugate: int) -> None:
        """Σ over helicities of |A(1, …, n)|², by Feynman's rules, for the helicities that the antenna has."""
        momenta = rambo(n - 2, 3, n)
        s = invariants(momenta, SQRT_S)
        for row, p in enumerate(momenta.numpy()):
            ring = np.random.default_rng(row).permutation(n)
            amplitudes = colour_ordered(p, ring)
            minus = {h: sum(x < 0 for x in h) for h in amplitudes}
            expected = conjugate * float(sum(v[row] ** 4 for v in s.values()))
            expected /= math.prod(
                float(s[min(i, j), max(i, j)][row]) for i, j in zip(ring, np.roll(ring, 1), strict=True)
            )
            assert sum(a for h, a in amplitudes.items() if minus[h] in (2, n - 2)) == pytest.approx(
                expected, rel=1e-7
            )
            assert sum(a for h, a in amplitudes.items() if minus[h] in (0, 1, n - 1, n)) < 1e-12 * expected


def colour_ordered(momenta: np.ndarray, ring: np.ndarray) -> dict[tuple[int, ...], float]:
    """|A|² of every helicity (by gluon, all outgoing) in the order of `ring` of two beams and `momenta` (n - 2, 4).

    By the recursion of Berends & Giele, Nucl. Phys. B 306 (1988) 759, with matrices normalised to tr(T^a T^b) = δ^ab.
    """
    beams = SQRT_S / 2 * np.array([[1.0, 0, 0, 1], [1, 0, 0, -1]])
    physical = np.concatenate([beams, momenta])
    outgoing = np.concatenate([-beams, momenta])[ring]
    found = {}
    for helicities in itertools.product((-1, 1), repeat=len(ring)):
        states = [polarisation(physical[g], helicities[g]) for g in ring]
        value = product(amputated(states[:-1], outgoing[:-1]), states[-1]) / 2 ** (len(ring) / 2 - 1)
        found[helicities] = abs(value) ** 2
    return found


def product(a: np.ndarray, b: np.ndarray) -> complex:
    return a[0] * b[0] - a[1:] @ b[1:]


def polarisation(p: np.ndarray, helicity: int) -> np.ndarray:
    """ε(p) of a real momentum in a gauge without time component."""
    direction = p[1:] / p[0]
    first = np.cross(direction, [0.3, 0.5, -0.8])
    first /= np.linalg.norm(first)
    return np.concatenate([[0], (first + 1j * helicity * np.cross(direction, first)) / 2**0.5])


def amputated(states: list[np.ndarray], p: np.ndarray) -> np.ndarray:
    """P² J of gluons in this order: the sums over three- and four-gluon vertices."""
    n = len(states)
    j = [current(states[:i], p[:i]) for i in range(n)]  # from the left
    total = np.zeros(4, complex)
    for i in range(1, n):
        a, b, right, left = j[i], current(states[i:], p[i:]), p[i:].sum(0), p[:i].sum(0)
        total += 2 * product(right, a) * b - 2 * product(left, b) * a + (left - right) * product(a, b)
        for k in range(i + 1, n):
            b, c = current(states[i:k], p[i:k]), current(states[k:], p[k:])
            total += 2 * product(a, c) * b - product(a, b) * c - product(b, c) * a
    return total


def current(states: list[np.ndarray], p: np.ndarray) -> np.ndarray:
    if len(states) < 2:
        return states[0] if states else np.zeros(4, complex)
    total = p.sum(0)
    return amputated(states, p) / product(total, total)


class TestCrossSection:
    def test_arrays_and_tensors_of_any_type(self) -> None:
        f, u = GluonScattering(), cube(20_000, 8)
        value = f(u)
        assert value.dtype == torch.float64 and value.shape == (20_000,)
        assert isinstance(f(u.numpy()), np.ndarray) and np.array_equal(f(u.numpy()), value.numpy())
        assert f(u.float()).dtype == torch.float32 and f(u.float().numpy()).dtype == np.float32
        assert torch.equal(f(u[5:9]), value[5:9])

    def test_maps_agree_with_the_reference(self) -> None:
        """Three coordinate systems at 10^6 points each, against 10^8 elsewhere."""
        maps = (Chain(SQRT_S, angle=UniformRapidity(1.5)), CHAINS["multi-peripheral"], JetCoordinates(SQRT_S))
        for phase_space in maps:
            value, error = randomised_qmc(GluonScattering(phase_space), 15, 32, seed=13)
            assert abs(value - CROSS_SECTION) < SIGMAS * math.hypot(error, CROSS_SECTION_ERROR)
            assert error < 0.01 * value

    def test_randomised_qmc_of_a_polynomial(self) -> None:
        value, error = randomised_qmc(Polynomial(), 10, 16, seed=0)
        assert error < 1e-4 and abs(value - 0.5**8) < 6 * error


class TestMethods:
    """The adapters of the three integrators: a hard budget, an unbiased estimate, events of the right weight."""

    @pytest.mark.parametrize("name", ["sbiflow", "sbiflow-channels", "vegas", "madnis"])
    def test_estimate_and_events(self, name: str) -> None:
        if name in ("vegas", "madnis"):
            pytest.importorskip(name)
        f = GluonScattering(Chain(SQRT_S, 3, angle=UniformRapidity(2.0)))
        truth, truth_error = randomised_qmc(f, 14, 16, seed=20)
        run = methods(IntegratorConfig(rows=20_000))[name](f, 20_000, 30_000, 21)
        assert run.training < run.calls <= 20_000
        assert abs(run.pull(truth, truth_error)) < SIGMAS and run.sdev < 0.1 * truth
        mean, error = float(run.weights.mean()), float(run.weights.std()) / math.sqrt(len(run.weights))
        assert abs(mean - truth) < SIGMAS * math.hypot(error, truth_error) and error < 0.1 * truth
        assert len(run.u) >= 30_000 and torch.equal(f(run.u) > 0, run.weights > 0)

    def test_channels_need_an_inverse(self) -> None:
        with pytest.raises(ValueError, match="expected a Chain, got JetCoordinates"):
            with_channels(GluonScattering(JetCoordinates(SQRT_S)), 20_000, 100, 0)

    def test_unweighting_efficiency(self) -> None:
        weights = torch.tensor([0.0, 1.0, 1.0, 2.0, 0.0], dtype=torch.float64)
        assert unweighting_efficiency(weights, 0.0) == pytest.approx(4 / 2 / 5)
        assert unweighting_efficiency(weights, 0.5) == pytest.approx(3 / 5)
        assert unweighting_efficiency(torch.ones(7)) == 1.0


class Polynomial:
    """Π x_i."""

    dim = 8

    def __call__(self, u: Tensor) -> Tensor:
        return u.prod(1)
