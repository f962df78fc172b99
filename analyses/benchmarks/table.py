"""The README's table of speeds, from what speed.py and training.py recorded.

`python analyses/benchmarks/table.py` prints it; `--readme README.md` puts it between the file's two lines
`<!-- benchmark -->`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

MARK = "<!-- benchmark -->"
RESULTS = Path(__file__).parent / "results"
OURS, PEERS = "sbiflow", ("nflows", "zuko")
KINDS = {
    "train": "Training step (forward, backward, clipping, Adam)",
    "density": "Density",
    "draw": "Draws for one observation",
    "many": "Draws for 1,000 observations together",
}
FAMILIES = {"maf": "MAF", "spline": "spline coupling"}


def markdown_table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table; columns after the first are aligned to the right."""
    head = list(header)
    rows = [head, [":--", *["--:"] * (len(head) - 1)], *map(list, lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def targets(document: dict[str, Any]) -> str:
    """The lines of the issue."""
    met = {True: "yes", False: "**no**", None: ""}
    lines = [
        [number["what"], number["measured"], number["floor"], number["reach"], met[number["met"]]]
        for number in document["numbers"]
    ]
    return markdown_table(["what", "measured", "floor", "reach for", "floor met"], lines)


def grid(rows: list[dict[str, Any]], kind: str) -> str:
    """The table of one kind of call: our time, the peers' over ours, ours over the limit, share of the products."""
    lines = []
    for row in rows:
        if row["job"]["kind"] != kind or not set(PEERS) & set(row["ratios"]):
            continue
        case, seconds = row["job"]["case"], median(row["series"][OURS]["clock"])
        ratios = [_ratio(row["ratios"].get(peer)) for peer in PEERS]
        sizes = "/".join(
            f"{row['parameters'][name]:,}" for name in (OURS, *PEERS) if name in row["parameters"]
        )
        lines.append(
            [
                f"{FAMILIES[case['family']]}, {case['dim']}-D, {case['hidden']}",
                f"{row['job']['rows']:,}",
                sizes,
                f"{1e3 * seconds:.3g}",
                *ratios,
                f"{seconds / row['limit']:.1f}",
                f"{row['executed']['product_seconds'] / seconds:.0%}",
            ]
        )
    header = [
        "flow",
        "rows",
        "parameters",
        "ms",
        *(f"{peer} / ours" for peer in PEERS),
        "ours / limit",
        "products",
    ]
    return markdown_table(header, lines)


def _ratio(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    clock = found["clock"]
    return f"{clock['median']:.2f} [{clock['low']:.2f}, {clock['high']:.2f}]"


def others(rows: list[dict[str, Any]]) -> str:
    """Contestants beside the grid: other networks, other activations, BayesFlow, compiled steps."""
    lines = [
        [row["label"].removesuffix(" named"), name, _ratio(ratio)]
        for row in rows
        for name, ratio in row["ratios"].items()
        if name not in PEERS and "density of the draws" not in name
    ]
    return markdown_table(["case", "contestant", "its time / ours"], lines)


def compiled(rows: list[dict[str, Any]]) -> str:
    """What torch.compile made of the training steps; "" if nobody asked."""
    lines = [
        [
            row["label"].removesuffix(" named"),
            name,
            f"{own['seconds']:.0f}",
            str(own["graphs"]),
            str(own["breaks"]),
        ]
        for row in rows
        for name, own in row["compiled"].items()
    ]
    return markdown_table(["case", "compiled", "seconds", "graphs", "breaks"], lines) if lines else ""


def conditions(document: dict[str, Any]) -> str:
    """Where and with what the numbers were measured."""
    rates, load = document["rates"], document["load"]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return (
        f"{document['machine']}, {document['cores']} cores, {document['caches']}; best float32 product "
        f"{rates['flops'] / 1e9:.0f} GFLOP/s, memory {rates['bandwidth'] / 1e9:.0f} GB/s; load average "
        f"{load[0][0]:.1f} before, {load[1][0]:.1f} after; {versions}; revision {document['revision'][:10]}; "
        f"{document['created']}; {document['arguments']['repeats']} repeats by turns, medians and quartiles."
    )


def page(speed: dict[str, Any], training: dict[str, Any] | None = None) -> str:
    """Everything between the markers."""
    parts = [targets(speed)]
    if training is not None:
        parts += ["End-to-end training:", targets(training)]
    inner = [f"{title}:\n\n{grid(speed['rows'], kind)}" for kind, title in KINDS.items()]
    inner += [f"Others:\n\n{others(speed['rows'])}", compiled(speed["rows"])]
    body = "\n\n".join(part for part in inner if part)
    parts += [f"<details><summary>all sizes</summary>\n\n{body}\n\n</details>", conditions(speed)]
    return "\n\n".join(parts)


def replaced(text: str, block: str) -> str:
    """The text with the block between its two markers.

    Raises:
        ValueError: another number of markers.
    """
    parts = text.split(MARK)
    if len(parts) != 3:
        raise ValueError(f"expected two lines {MARK}, got {len(parts) - 1}")
    return f"{parts[0]}{MARK}\n{block}\n{MARK}{parts[2]}"


def read(name: str) -> dict[str, Any] | None:
    """A record, if there is one."""
    path = RESULTS / name
    return json.loads(path.read_text()) if path.exists() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--readme", type=Path, help="file in which to replace the block")
    arguments = parser.parse_args()
    speed = read("speed.json")
    if speed is None:
        raise SystemExit("nothing is recorded: run `python analyses/benchmarks/speed.py --record`")
    block = page(speed, read("training.json"))
    if arguments.readme is None:
        print(block)
    else:
        arguments.readme.write_text(replaced(arguments.readme.read_text(), block))


if __name__ == "__main__":
    main()
