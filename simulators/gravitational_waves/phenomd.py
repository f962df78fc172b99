"""Parameters of IMRPhenomD: the binary in units of its mass, the fits of Khan et al. Table V, the remnant.

Sources: Husa et al. (arXiv 1508.07250) for the remnant, Khan et al. (arXiv 1508.07253) for the fits; the digits are
those of LALSuite (LALSimIMRPhenomD_internals.c). Frequencies are y = M f, G = c = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from simulators.gravitational_waves.qnm import ringdown_frequencies

# Columns: 1, eta, then xi (1, eta, eta^2), xi^2 (1, eta, eta^2), xi^3 (1, eta, eta^2), with xi = chi_PN - 1.
TABLE_V = (
    # rho_1, rho_2, rho_3: inspiral amplitude
    (3931.8979897196696, -17395.758706812805, 3132.375545898835, 343965.86092361377, -1216256.5819981997,
     -70698.00600428853, 1383907.177859705, -3966276.1890979446,
     -60017.52423652596, 803515.1181825735, -2091710.365941658),
    (-40105.47653771657, 112253.0169706701, 23561.696065836168, -3476180.699403351, 11375936.70849482,
     754313.1127166454, -13084760.44625268, 36444584.853928134,
     596226.612472288, -7427790.1143564405, 18928977.514040343),
    (83208.35471266537, -191237.7264145924, -210916.2454782992, 8717975.08352568, -26914942.420669552,
     -1988980.6527362722, 30888029.960154563, -83908702.79256162,
     -1453503.1953446497, 17063528.990822166, -42748659.731120914),
    # v_2: intermediate amplitude at the middle collocation point
    (0.8149838730507785, 2.5747553517454658, 1.1610198035496786, -2.3627771785551537, 6.771038707057573,
     0.7570782938606834, -2.7256896890432474, 7.1140380397149965,
     0.1766934149293479, -0.7978690983168183, 2.1162391502005153),
    # gamma_1, gamma_2, gamma_3: merger-ringdown amplitude
    (0.006927402739328343, 0.03020474290328911, 0.006308024337706171, -0.12074130661131138, 0.26271598905781324,
     0.0034151773647198794, -0.10779338611188374, 0.27098966966891747,
     0.0007374185938559283, -0.02749621038376281, 0.0733150789135702),
    (1.010344404799477, 0.0008993122007234548, 0.283949116804459, -4.049752962958005, 13.207828172665366,
     0.10396278486805426, -7.025059158961947, 24.784892370130475,
     0.03093202475605892, -2.6924023896851663, 9.609374464684983),
    (1.3081615607036106, -0.005537729694807678, -0.06782917938621007, -0.6689834970767117, 3.403147966134083,
     -0.05296577374411866, -0.9923793203111362, 4.820681208409587,
     -0.006134139870393713, -0.38429253308696365, 1.7561754421985984),
    # sigma_1 to sigma_4: inspiral phase
    (2096.551999295543, 1463.7493168261553, 1312.5493286098522, 18307.330017082117, -43534.1440746107,
     -833.2889543511114, 32047.31997183187, -108609.45037520859,
     452.25136398112204, 8353.439546391714, -44531.3250037322),
    (-10114.056472621156, -44631.01109458185, -6541.308761668722, -266959.23419307504, 686328.3229317984,
     3405.6372187679685, -437507.7208209015, 1631817.1307344697,
     -7462.648563007646, -114585.25177153319, 674402.4689098676),
    (22933.658273436497, 230960.00814979506, 14961.083974183695, 1194018.1342318142, -3104223.9693052764,
     -3038.166617199259, 1872032.2849093592, -7309145.012085539,
     42738.22871475411, 467502.018616601, -3064853.498512499),
    (-14621.71522218357, -377812.8579387104, -9608.682631509726, -1710892.5257214056, 4332924.601416521,
     -22366.683262266528, -2501971.6386377467, 10274495.902259542,
     -85360.30079034246, -570025.3441737515, 4396844.346849777),
    # beta_1, beta_2, beta_3: intermediate phase
    (97.89747327985583, -42.659730877489224, 153.48421037904913, -1417.0620760768954, 2752.8614143665027,
     138.7406469558649, -1433.6585075135881, 2857.7418952430758,
     41.025109467376126, -423.680737974639, 850.3594335657173),
    (-3.282701958759534, -9.051384468245866, -12.415449742258042, 55.4716447709787, -106.05109938966335,
     -11.953044553690658, 76.80704618365418, -155.33172948098394,
     -3.4129261592393263, 25.572377569952536, -54.408036707740465),
    (-2.5156429818799565e-05, 1.9750256942201327e-05,
     -1.8370671469295915e-05, 2.1886317041311973e-05, 8.250240316860033e-05,
     7.157371250566708e-06, -5.5780000112270685e-05, 0.00019142082884072178,
     5.447166261464217e-06, -3.220610095021982e-05, 7.974016714984341e-05),
    # alpha_1 to alpha_5: merger-ringdown phase
    (43.31514709695348, 638.6332679188081, -32.85768747216059, 2415.8938269370315, -5766.875169379177,
     -61.85459307173841, 2953.967762459948, -8986.29057591497,
     -21.571435779762044, 981.2158224673428, -3239.5664895930286),
    (-0.07020209449091723, -0.16269798450687084, -0.1872514685185499, 1.138313650449945, -2.8334196304430046,
     -0.17137955686840617, 1.7197549338119527, -4.539717148261272,
     -0.049983437357548705, 0.6062072055948309, -1.682769616644546),
    (9.5988072383479, -397.05438595557433, 16.202126189517813, -1574.8286986717037, 3600.3410843831093,
     27.092429659075467, -1786.482357315139, 5152.919378666511,
     11.175710130033895, -577.7999423177481, 1808.730762932043),
    (-0.02989487384493607, 1.4022106448583738, -0.07356049468633846, 0.8337006542278661, 0.2240008282397391,
     -0.055202870001177226, 0.5667186343606578, 0.7186931973380503,
     -0.015507437354325743, 0.15750322779277187, 0.21076815715176228),
    (0.9974408278363099, -0.007884449714907203, -0.059046901195591035, 1.3958712396764088, -4.516631601676276,
     -0.05585343136869692, 1.7516580039343603, -5.990208965347804,
     -0.017945336522161195, 0.5965097794825992, -2.0608879367971804),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Binary:
    """Two black holes with aligned spins, 1 the heavier; float64."""

    total_mass: Tensor  # (n,), of the same unit as the masses given
    fraction: Tensor  # (2, n): m_1 / M >= 1/2, m_2 / M
    chi: Tensor  # (2, n)
    eta: Tensor  # (n,): symmetric mass ratio m_1 m_2 / M^2

    @classmethod
    def sorted(cls, mass_1: Tensor, mass_2: Tensor, chi_1: Tensor, chi_2: Tensor) -> Binary:
        """From masses in either order; the spins follow their masses."""
        total = mass_1 + mass_2
        given, turned = (
            torch.stack([mass_1, mass_2, chi_1, chi_2]),
            torch.stack([mass_2, mass_1, chi_2, chi_1]),
        )
        body = torch.where(mass_2 > mass_1, turned, given)
        fraction = body[:2] / total
        return cls(total, fraction, body[2:], fraction.prod(0))

    @property
    def delta(self) -> Tensor:
        """(m_1 - m_2) / M; sqrt(1 - 4 eta) would lose digits, and its gradient, at equal masses."""
        return self.fraction[0] - self.fraction[1]

    @property
    def chi_pn(self) -> Tensor:
        """The effective spin of the fits, Khan et al. Eq. 4."""
        return (self.fraction * self.chi).sum(0) - 38 / 113 * self.eta * self.chi.sum(0)


@lru_cache(maxsize=8)
def _table(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(TABLE_V, dtype=torch.float64, device=device).T


@dataclass(frozen=True, eq=False)
class Fits:
    """Khan et al. Eq. 31 with Table V; each entry a tuple of (n,)."""

    rho: tuple[Tensor, ...]
    v_2: Tensor
    gamma: tuple[Tensor, ...]
    sigma: tuple[Tensor, ...]
    beta: tuple[Tensor, ...]
    alpha: tuple[Tensor, ...]

    @classmethod
    def of(cls, binary: Binary) -> Fits:
        eta, xi = binary.eta, binary.chi_pn - 1
        row = torch.stack([torch.ones_like(eta), eta, eta**2], dim=-1)
        terms = torch.cat([row[:, :2], *(row * xi.unsqueeze(-1) ** k for k in (1, 2, 3))], dim=-1)
        v = (terms @ _table(eta.device)).unbind(-1)
        return cls(v[:3], v[3], v[4:7], v[7:11], v[11:14], v[14:19])


@dataclass(frozen=True, eq=False)
class Remnant:
    """Frequencies (n,) of the final black hole in units of 1 / M, M the mass of the binary before the merger."""

    ring: Tensor
    damp: Tensor

    @classmethod
    def of(cls, binary: Binary) -> Remnant:
        ring, damp = ringdown_frequencies(final_spin(binary))
        mass = 1 - radiated_energy(binary)
        return cls(ring / mass, damp / mass)


def final_spin(binary: Binary) -> Tensor:
    """Dimensionless spin (n,) of the remnant, Husa et al. Eq. 3.6."""
    eta = binary.eta
    s = (binary.fraction**2 * binary.chi).sum(0)
    orbital = eta * (
        3.4641016151377544 + eta * (-4.399247300629289 + eta * (9.397292189321194 - 13.180949901606242 * eta))
    )
    linear = 1 + eta * (-0.0850917821418767 - 5.837029316602263 * eta)
    square = eta * (0.1014665242971878 - 2.0967746996832157 * eta)
    cubic = eta * (-1.3546806617824356 + 4.108962025369336 * eta)
    quartic = eta * (-0.8676969352555539 + 2.064046835273906 * eta)
    return orbital + s * (linear + s * (square + s * (cubic + s * quartic)))


def radiated_energy(binary: Binary) -> Tensor:
    """Fraction (n,) of the mass that is radiated, Husa et al. Eqs. 3.7, 3.8."""
    eta = binary.eta
    squares = binary.fraction**2
    s = (squares * binary.chi).sum(0) / squares.sum(0)
    unspun = eta * (
        0.055974469826360077
        + eta * (0.5809510763115132 + eta * (-0.9606726679372312 + 3.352411249771192 * eta))
    )
    above = 1 + (-0.0030302335878845507 + eta * (-2.0066110851351073 + 7.7050567802399215 * eta)) * s
    below = 1 + (-0.6714403054720589 + eta * (-1.4756929437702908 + 7.304676214885011 * eta)) * s
    return unspun * above / below
