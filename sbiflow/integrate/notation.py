"""Numbers with their errors as vegas and gvar print them, 1.2345(67), also where the number is no double.

The two digits in brackets are the error in units of the last digits before them. Where the number itself
under- or overflows (evidences do), it is written as its exponential, e^(-1234.567(12)), the bracket being the
error of the logarithm, i.e. the relative error.
"""

from __future__ import annotations

import math
from decimal import Decimal

TINY = 1e-300  # below it a double loses digits, and the squares of errors vanish
LOG_LARGEST = 709.0  # ln of the largest double, rounded down
ROUNDING = 1e-15  # an error below this share of the value is its rounding
_SMALL, _LARGE = -4, 2  # powers of ten: of the number below, of its error from which an exponent is written


def with_error(value: float, error: float, log_value: float = math.nan, log_error: float = math.nan) -> str:
    """`value` with two significant digits of its `error`.

    Args:
        value: the number; 0 or ±inf where it under- or overflows.
        error: its standard deviation; inf or NaN if unknown, shown as "(?)".
        log_value: ln |value|, used where `value` is below 1e-300 or infinite.
        log_error: the error of `log_value`; NaN: `error` over `value`.

    >>> with_error(0.99351, 0.00023), with_error(-1234.5, 6.7), with_error(3.21e-9, 4.5e-12)
    ('0.99351(23)', '-1234.5(6.7)', '3.2100(45)e-09')
    >>> with_error(0.2, 1.3), with_error(0.5, 0.0), with_error(0.5, math.inf)
    ('0.2(1.3)', '0.5(0)', '0.5(?)')
    >>> with_error(0.0, 0.0, log_value=-1234.567, log_error=0.012)
    'e^(-1234.567(12))'
    """
    if math.isnan(value):
        return "nan"
    if not TINY <= abs(value) < math.inf and math.isfinite(log_value):
        return f"{'-' if value < 0 else ''}e^({with_error(log_value, _log_error(value, error, log_error))})"
    if math.isinf(value):
        return f"{value}"
    if not math.isfinite(error) or error < 0:
        return _suffixed(f"{value:.6g}", "(?)")
    if error <= ROUNDING * abs(value):
        return _suffixed(f"{value + 0.0:.12g}", "(0)")  # + 0.0: no negative zero
    return _rounded(value, error)


def _log_error(value: float, error: float, log_error: float) -> float:
    if math.isnan(log_error) and value and math.isfinite(value):
        return error / abs(value)
    return log_error


def _suffixed(text: str, bracket: str) -> str:
    """The bracket before the exponent: 1.5(0)e-09."""
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}{bracket}{e}{exponent}"


def _rounded(value: float, error: float) -> str:
    last = _exponent(error)
    leading = max(Decimal(value).quantize(Decimal((0, (1,), last - 1))).adjusted(), last)
    shift = leading if leading < _SMALL or last >= _LARGE else 0
    scaled_value, scaled_error = (Decimal(number).scaleb(-shift) for number in (value, error))
    digit = last - shift
    decimals = max(1 - digit, 0)
    bracket = f"{scaled_error:.1f}" if digit == 0 else f"{scaled_error.scaleb(decimals):.0f}"
    return f"{scaled_value:z.{decimals}f}({bracket})" + (f"e{shift:+03d}" if shift else "")


def _exponent(error: float) -> int:
    """Power of ten of the first of two significant digits, after rounding to them."""
    return int(f"{error:.1e}".partition("e")[2])
