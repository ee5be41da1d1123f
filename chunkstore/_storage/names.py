"""File names in natural order: 2 before 10."""

from __future__ import annotations

import re
from typing import Final

_ANY_DIGIT: Final = dict.fromkeys(range(ord("0"), ord("9") + 1), "0")
_DIGITS: Final = re.compile(r"[0-9]+")


def natural_key(name: str) -> str:
    """Text that sorts as `name` does in natural order: each run of digits is preceded by a character that grows with
    its length.
    """
    return _DIGITS.sub(_number_key, name)


def _number_key(match: re.Match[str]) -> str:
    digits = match[0].lstrip("0") or "0"
    return chr(47 + len(digits)) + digits


def natural_sort(names: list[str]) -> list[str]:
    """Sorted in natural order, ties by code point."""
    names.sort()  # for the ties: the second sort is stable
    # Where digits stand at the same places in all names (0001, 0002, ...), both orders are one. No name has a NUL.
    alike = "\0".join(names[:1] * len(names)).translate(_ANY_DIGIT)
    if "\0".join(names).translate(_ANY_DIGIT) != alike:
        names.sort(key=natural_key)
    return names
