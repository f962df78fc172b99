"""What all figures share: colours that stay apart for colour-blind readers, and labels with units."""

from __future__ import annotations

BLUE, ORANGE, GREEN, RED, GREY = "#0b559f", "#d95f02", "#1b7837", "#b2182b", "#7f7f7f"
TEXT = "#555555"  # notes on white: contrast 7 to 1
# Okabe & Ito's palette without its yellow, which is too faint for a line; then the dashes change
CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("-", "--", ":")


def axis_label(name: str, unit: str = "") -> str:
    """The name with its unit in brackets.

    >>> axis_label("v_los", "km/s"), axis_label("eta_0")
    ('v_los [km/s]', 'eta_0')
    """
    return f"{name} [{unit}]" if unit else name
