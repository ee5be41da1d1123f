"""Reader of the one Python literal that stands in an `.npy` header: no eval, bounded depth.

The grammar is what `repr` makes of dicts, tuples, lists, strings, integers, booleans and None; besides, Python 2's
`2L` and `u'...'`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

Literal = dict["Literal", "Literal"] | list["Literal"] | tuple["Literal", ...] | str | int | None

MAX_DEPTH: Final = 32
_MAX_DIGITS: Final = 20  # 2^64 has 20 digits; no dimension is longer, and int() is quadratic
_SPACE: Final = " \t\r\n\f"
_TOKEN: Final = re.compile(
    r"(?:(?P<number>-?[0-9]+)[lL]?|(?P<word>True|False|None)\b|(?P<mark>[][(){},:])"
    r"|u?(?P<text>'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"))[ \t\r\n\f]*"
)
_QUOTES: Final = ("'", '"', "u'", 'u"')
_WORDS: Final[dict[str, bool | None]] = {"True": True, "False": False, "None": None}
_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))")
_PLAIN: Final = dict(zip("\\'\"nrtabfv0", "\\'\"\n\r\t\a\b\f\v\0", strict=True))


def parse_literal(text: str) -> Literal:
    """Value of the literal; only white space may follow it.

    Raises:
        ValueError: anything else, with the position.
    """
    parser = _Parser(text)
    value = parser.value(0)
    if parser.position != len(text):
        raise ValueError(f"text behind the header at character {parser.position}: {parser.rest()}")
    return value


class _Parser:
    """Recursive descent over one text; `position` is the next character that is no space."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = len(text) - len(text.lstrip(_SPACE))

    def rest(self) -> str:
        return repr(self.text[self.position : self.position + 24]) if self.position < len(self.text) else "the end"

    def token(self) -> re.Match[str]:
        match = _TOKEN.match(self.text, self.position)
        if match is None:
            if self.text.startswith(_QUOTES, self.position):
                raise ValueError(f"a string that does not end at character {self.position}")
            raise ValueError(f"expected a value at character {self.position}, found {self.rest()}")
        self.position = match.end()
        return match

    def take(self, mark: str) -> bool:
        """Consume `mark` if it comes next."""
        return self.text.startswith(mark, self.position) and bool(self.token())

    def expect(self, mark: str) -> None:
        if not self.take(mark):
            raise ValueError(f"expected {mark!r} at character {self.position}, found {self.rest()}")

    def value(self, depth: int) -> Literal:
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        match = self.token()
        if match["number"] is not None:
            if len(match["number"]) > _MAX_DIGITS:
                raise ValueError(f"a number of {len(match['number'])} digits at character {match.start()}")
            return int(match["number"])
        if match["word"] is not None:
            return _WORDS[match["word"]]
        if match["text"] is not None:
            return _ESCAPE.sub(_unescape, match["text"][1:-1])
        if match["mark"] == "{":
            return self.dictionary(depth)
        if match["mark"] == "[":
            return self.items("]", self.value, depth)[0]
        if match["mark"] == "(":
            items, comma = self.items(")", self.value, depth)
            return tuple(items) if comma or not items else items[0]
        raise ValueError(f"expected a value at character {match.start()}, found {match['mark']!r}")

    def items(self, end: str, item: Callable[[int], Any], depth: int) -> tuple[list[Any], bool]:
        """Items up to `end`, and whether there was a comma."""
        found: list[Any] = []
        while not self.take(end):
            found.append(item(depth + 1))
            if not self.take(","):
                self.expect(end)
                return found, len(found) > 1
        return found, bool(found)

    def dictionary(self, depth: int) -> dict[Literal, Literal]:
        found: dict[Literal, Literal] = {}
        for key, value in self.items("}", self.entry, depth)[0]:
            if key in found:
                raise ValueError(f"the key {key!r} stands twice")
            found[key] = value
        return found

    def entry(self, depth: int) -> tuple[str, Literal]:
        key = self.value(depth)
        if not isinstance(key, str):
            raise ValueError(f"a key that is no string at character {self.position}")
        self.expect(":")
        return key, self.value(depth)


def _unescape(match: re.Match[str]) -> str:
    if match[4] is not None:
        if match[4] not in _PLAIN:
            raise ValueError(f"an unknown escape in a string: {match[0]}")
        return _PLAIN[match[4]]
    code = int(match[1] or match[2] or match[3], 16)
    if code > 0x10FFFF:
        raise ValueError(f"no such character: {match[0]}")
    return chr(code)
