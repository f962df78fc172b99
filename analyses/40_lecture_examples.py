"""The lectures' worked examples of normalizing flows, each against its closed form; then flows that learn in the plane.

    python analyses/40_lecture_examples.py

The change of variables is checked on maps that can be done by hand, and the log-determinant of every family against
autograd's Jacobian. Then RealNVP, MAF and IAF learn two moons, a checkerboard, a ring of Gaussians and a pinwheel:
figures of draws, density and the deformation by each layer.
"""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor

import sbiflow as sf
from analyses.common import Number, options, output_folder, report_numbers, save_figure
from analyses.lecture_figures import deformation_figure, lattice, learned_figure
from analyses.lecture_forms import (
    affine_example,
    exponential_example,
    jacobian_example,
    planar_example,
    plane_example,
)
from analyses.targets import PLANE, Target, checkerboard, ring
from analyses.which_flow import is_installed
from sbiflow.density import DensityWarning
from sbiflow.families import FAMILIES
from sbiflow.transforms.autoregressive import MaskedAutoregressive
from sbiflow.transforms.coupling import Coupling
from sbiflow.transforms.inverse import Inverse

NAME = "40_lecture_examples"
LEARNED = {"RealNVP": "realnvp", "MAF": "maf", "IAF": "iaf"}


def learn(target: Target, folder: Path, seed: int, fast: bool) -> list[Number]:
    """RealNVP, MAF and IAF on one target of the plane: figures, and the gap to the truth."""
    generator = torch.Generator().manual_seed(seed)
    rows, test = target.sample(2_000 if fast else 40_000, generator), target.sample(5_000, generator)
    points, drawn, gaps, numbers = lattice(target.half_width), {}, {}, []
    for label, family in LEARNED.items():
        flow = sf.FlowConfig(family, layers=8, hidden=64, start="prior")
        config = sf.TrainConfig(batch=512, steps=20 if fast else 1_500, patience=None, learning_rate=4e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DensityWarning)  # the table says how far each one is
            density = sf.fit_density(rows, ("x1", "x2"), flow=flow, config=config, seed=seed)
        gap = target.log_prob(test) - density.log_prob(test)
        gaps[label] = float(gap.mean())
        drawn[label] = (density.sample(5_000, seed=seed).theta, density.log_prob(points))
        save_figure(
            deformation_figure(f"{label}, {target.name}", *stages(density, seed)),
            folder / f"{file_name(target)}-{family}.png",
        )
        error = float(gap.std()) / math.sqrt(len(gap))
        numbers.append(
            Number(f"{target.name}, {label}: gap to the truth [nats]", f"{gaps[label]:.3f} ± {error:.3f}")
        )
    save_figure(
        learned_figure(target.name, target.half_width, test, drawn, gaps), folder / f"{file_name(target)}.png"
    )
    return numbers


def splines(seed: int, fast: bool) -> list[Number]:
    """Autoregressive spline flows on the checkerboard, whose edges are given, and on the ring, against their entropies."""
    board, modes = checkerboard(), ring()
    edge = {"x1": (-4.0, 4.0), "x2": (-4.0, 4.0)}
    numbers = []
    for target, bounds, layers, hidden in ((board, edge, 2, 96), (modes, None, 3, 64)):
        generator = torch.Generator().manual_seed(seed)
        rows, test = target.sample(2_000 if fast else 400_000, generator), target.sample(20_000, generator)
        flow = sf.FlowConfig("spline_autoregressive", layers=layers, hidden=hidden, bins=16, start="prior")
        config = sf.TrainConfig(batch=512, steps=20 if fast else 3_000, patience=None, learning_rate=1e-2)
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DensityWarning)
            density = sf.fit_density(rows, ("x1", "x2"), bounds=bounds, flow=flow, config=config, seed=seed)
        minutes = (time.process_time() - start) / 60
        mean = float(density.log_prob(test).mean())
        name = f"{target.name}, autoregressive splines, {minutes:.1f} CPU min"
        if target is board:
            numbers.append(
                Number(
                    f"{name}: mean test log-density [nats]",
                    f"{mean:.4f}",
                    ">= -3.55",
                    ">= -3.49",
                    mean >= -3.55,
                )
            )
        else:
            gap = float(target.log_prob(test).mean()) - mean
            numbers.append(
                Number(f"{name}: gap to the truth [nats]", f"{gap:.4f}", "<= 0.05", "<= 0.01", gap <= 0.05)
            )
    return numbers


def file_name(target: Target) -> str:
    return target.name.replace(" ", "-")


@torch.no_grad()
def stages(density: sf.Density, seed: int, shown: int = 6) -> tuple[list[Tensor], list[str]]:
    """3,000 points of the base and where the layers take them, at most `shown` steps of the way."""
    flow = density.posterior.flow
    points = torch.randn(3_000, 2, generator=torch.Generator().manual_seed(seed))
    found, labels = [points], ["base"]
    for layer in reversed(flow.transform.transforms):
        points = layer.inverse(points, flow.embedding(points[:, :0]))[0]
        if isinstance(layer, (Coupling, MaskedAutoregressive, Inverse)):
            found.append(points)
            labels.append(f"layer {len(found) - 1}")
    keep = sorted({round(i * (len(found) - 1) / (shown - 1)) for i in range(shown)})
    return [found[i] for i in keep], [labels[i] for i in keep]


def main() -> None:
    arguments = options(__doc__ or "")
    folder = output_folder(NAME, arguments.fast)
    generator = torch.Generator().manual_seed(arguments.seed)
    numbers = [affine_example(), plane_example(generator), exponential_example(), *planar_example(folder)]
    numbers += [
        jacobian_example(name, generator) for name, family in FAMILIES.items() if is_installed(family)
    ]
    numbers += splines(arguments.seed, arguments.fast)
    for target in PLANE[:1] if arguments.fast else PLANE:
        numbers += learn(target, folder, arguments.seed, arguments.fast)
    report_numbers(
        "The lectures' worked examples" + (" (fast: proves nothing)" if arguments.fast else ""),
        numbers,
        folder,
        arguments,
    )


if __name__ == "__main__":
    main()
