"""What the analyses share: options, output folder, and the table of numbers that each one prints and writes."""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from sbiflow.provenance import now, package_version

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Number:
    """One line of the result: what was measured, and what it is compared with."""

    what: str
    measured: str
    floor: str = ""
    reach: str = ""
    met: bool | None = None


def options(description: str, **further: int | str) -> argparse.Namespace:
    """--fast, --seed, --record and further options of the type of their defaults."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument(
        "--fast", action="store_true", help="a small version that takes seconds; proves nothing"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="also write the table to analyses/results/")
    for name, default in further.items():
        parser.add_argument(
            "--" + name.replace("_", "-"), type=type(default), default=default, help=f"default {default}"
        )
    return parser.parse_args()


def output_folder(name: str, fast: bool = False) -> Path:
    """analyses/output/NAME, or NAME-fast, made if it does not exist."""
    folder = HERE / "output" / (name + ("-fast" if fast else ""))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG and say where."""
    figure.savefig(path, dpi=130, bbox_inches="tight")
    print(f"figure: {path}")


def report_numbers(title: str, numbers: list[Number], folder: Path, arguments: argparse.Namespace) -> None:
    """Print the table; write it as JSON with seeds, machine and versions."""
    table = Table("what", "measured", "floor", "reach for", "floor met", title=title)
    for number in numbers:
        met = {True: "yes", False: "NO", None: ""}[number.met]
        table.add_row(number.what, number.measured, number.floor, number.reach, met)
    Console(width=140).print(table)
    record = {
        "title": title,
        "created": now(),
        "arguments": vars(arguments),
        "sbiflow": package_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{_processor()}, {torch.get_num_threads()} threads",
        "numbers": [asdict(number) for number in numbers],
    }
    targets = [folder / "numbers.json"]
    if arguments.record and not arguments.fast:
        targets.append(HERE / "results" / f"{folder.name}.json")
    for target in targets:
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        print(f"numbers: {target}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
