"""Reader of the one Python literal that stands in an `.npy` header: no eval, bounded depth.

The grammar is what `repr` makes of dicts, tuples, lists, strings, integers, booleans and None; besides, Python 2's
`2L` and `u'...'`.
"""

from __future__ import annotations

import re
from typing import Final

Literal = dict["Literal", "Literal"] | list["Literal"] | tuple["Literal", ...] | str | int | None

MAX_DEPTH: Final = 32
_MAX_DIGITS: Final = 20  # 2^64 has 20 digits; no dimension is longer, and int() is quadratic
_SPACE: Final = re.compile(r"[ \t\r\n\f]*")
_TOKEN: Final = re.compile(
    r"(?P<number>-?[0-9]+)[lL]?|(?P<word>True|False|None)\b|(?P<quote>u?['\"])|(?P<mark>[][(){},:])"
)
_WORDS: Final[dict[str, bool | None]] = {"True": True, "False": False, "None": None}
_ESCAPE: Final = re.compile(
    r"\\(?:(?P<plain>[\\'\"nrtabfv0])|x(?P<x>[0-9a-fA-F]{2})|u(?P<u>[0-9a-fA-F]{4})|U(?P<U>[0-9a-fA-F]{8}))"
)
_PLAIN: Final = {"n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "0": "\0"}
_TEXT: Final = {"'": re.compile(r"(?:[^'\\\n]|\\.)*"), '"': re.compile(r'(?:[^"\\\n]|\\.)*')}


def parse_literal(text: str) -> Literal:
    """Value of the literal; only white space may follow it.

    Raises:
        ValueError: anything else, with the position.
    """
    parser = _Parser(text)
    value = parser.value(0)
    parser.skip_space()
    if parser.position != len(text):
        raise ValueError(f"text behind the header at character {parser.position}: {parser.rest()}")
    return value


class _Parser:
    """Recursive descent over one text; `position` is the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def rest(self) -> str:
        return repr(self.text[self.position : self.position + 24]) if self.position < len(self.text) else "the end"

    def skip_space(self) -> None:
        match = _SPACE.match(self.text, self.position)
        self.position = match.end() if match else self.position

    def token(self) -> re.Match[str]:
        self.skip_space()
        match = _TOKEN.match(self.text, self.position)
        if match is None:
            raise ValueError(f"expected a value at character {self.position}, found {self.rest()}")
        self.position = match.end()
        return match

    def take(self, mark: str) -> bool:
        """Consume `mark` if it comes next."""
        self.skip_space()
        if not self.text.startswith(mark, self.position):
            return False
        self.position += 1
        return True

    def expect(self, mark: str) -> None:
        if not self.take(mark):
            raise ValueError(f"expected {mark!r} at character {self.position}, found {self.rest()}")

    def value(self, depth: int) -> Literal:
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        match = self.token()
        if match["number"] is not None:
            return self.number(match["number"])
        if match["word"] is not None:
            return _WORDS[match["word"]]
        if match["quote"] is not None:
            return self.string(match["quote"][-1])
        if match["mark"] == "{":
            return self.dictionary(depth)
        if match["mark"] == "[":
            return self.items("]", depth)[0]
        if match["mark"] == "(":
            items, comma = self.items(")", depth)
            return tuple(items) if comma or not items else items[0]
        raise ValueError(f"expected a value at character {match.start()}, found {match['mark']!r}")

    def number(self, digits: str) -> int:
        if len(digits) > _MAX_DIGITS:
            raise ValueError(f"a number of {len(digits)} digits at character {self.position}")
        return int(digits)

    def string(self, quote: str) -> str:
        match = _TEXT[quote].match(self.text, self.position)
        assert match is not None
        self.position = match.end()
        self_text = match[0]
        if not self.text.startswith(quote, self.position):
            raise ValueError(f"a string that does not end at character {match.start()}")
        self.position += 1
        if "\\" not in self_text:
            return self_text
        pairs = re.findall(r"\\(?:\\|[^\\])?", self_text)
        if len(pairs) != len(_ESCAPE.findall(self_text)):
            raise ValueError(f"an unknown escape in a string at character {match.start()}")
        return _ESCAPE.sub(_unescape, self_text)

    def items(self, end: str, depth: int) -> tuple[list[Literal], bool]:
        """Items up to `end`, and whether there was a comma."""
        found: list[Literal] = []
        comma = False
        while not self.take(end):
            if found and not comma:
                self.expect(",")  # fails: says what stands here
            found.append(self.value(depth + 1))
            if not self.take(","):
                self.expect(end)
                return found, len(found) > 1
            comma = True
        return found, comma

    def dictionary(self, depth: int) -> dict[Literal, Literal]:
        found: dict[Literal, Literal] = {}
        while not self.take("}"):
            key = self.value(depth + 1)
            if not isinstance(key, str):
                raise ValueError(f"a key that is no string at character {self.position}")
            if key in found:
                raise ValueError(f"the key {key!r} stands twice")
            self.expect(":")
            found[key] = self.value(depth + 1)
            if not self.take(","):
                self.expect("}")
                break
        return found


def _unescape(match: re.Match[str]) -> str:
    if match["plain"] is not None:
        return _PLAIN.get(match["plain"], match["plain"])
    code = int(match["x"] or match["u"] or match["U"], 16)
    if code > 0x10FFFF:
        raise ValueError(f"no such character: {match[0]}")
    return chr(code)
