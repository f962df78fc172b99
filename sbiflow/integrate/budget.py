"""The evaluations that the user has granted."""

from __future__ import annotations

from typing import Any

from sbiflow.checks import check_count


class BudgetExceeded(ValueError):
    """An evaluation would have gone over the budget; it was not made."""


class Budget:
    """Counts evaluations, training and probing included, and refuses the first that is too many.

    Args:
        total: a whole number >= 1, as an int or a float such as 1e6.

    >>> budget = Budget(1e3)
    >>> budget.charge(999)
    >>> budget.remaining
    1
    """

    def __init__(self, total: Any) -> None:
        whole = isinstance(total, float) and total.is_integer()
        self.total = check_count(int(total) if whole else total, "budget")
        self.used = 0

    @property
    def remaining(self) -> int:
        """Evaluations left."""
        return self.total - self.used

    def charge(self, n: int) -> None:
        """Count n evaluations that are about to be made.

        Raises:
            BudgetExceeded: fewer are left; nothing is counted.
        """
        if n > self.remaining:
            raise BudgetExceeded(
                f"budget: expected at most {self.remaining} more evaluations (of {self.total}), got {n}"
            )
        self.used += n
