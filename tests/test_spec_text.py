"""The tables of spec/chunkstore-1.md say what the constants of the package say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chunkstore import errors
from chunkstore._format import constants, dtypes

SPEC = Path(__file__).resolve().parent.parent / "spec"
TEXT = (SPEC / "chunkstore-1.md").read_text("utf-8")

Table = list[dict[str, str]]


def part(number: str) -> str:
    """Return the text of a section without its subsections."""
    match = re.search(rf"^#+ {re.escape(number)} .*?(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert match, f"no section {number}"
    return match[0]


def tables(number: str) -> list[Table]:
    """Return the tables of a section, each as a list of rows by column name."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", part(number), re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in block.splitlines()]
        lines = [[cell.strip("| ") for cell in re.split(r"\|", line.strip()[1:-1])] for line in block.splitlines()]
        found.append([dict(zip(lines[0], line, strict=True)) for line in lines[2:]])
    return found


def number(text: str) -> int:
    """Read a number as the text writes it: `65,535`, `2^63 − 1`, `16 MiB`."""
    match = re.match(r"(2\^)?([0-9,]+)(?: − ([0-9]+))?( MiB)?", text)
    assert match, text
    value = int(match[2].replace(",", ""))
    value = 2**value if match[1] else value
    return (value << 20 if match[4] else value) - int(match[3] or 0)


def record_nbytes(table: Table) -> int:
    """Return the size of a record whose fields follow each other without a gap; fields of variable size end it."""
    end = 0
    for row in table:
        assert row["offset"].startswith(str(end)), row
        if not row["nbytes"].isdigit():
            break
        end += int(row["nbytes"])
    return end


def magic(table: Table) -> bytes:
    """Return the bytes that the first row of a record gives in hexadecimal digits."""
    match = re.search(r"`((?:[0-9A-F]{2} ?)+)`", table[0]["what"])
    assert match
    return bytes.fromhex(match[1])


def test_superblock() -> None:
    """Section 4: the record has 4096 bytes, the magic and the versions of the constants."""
    (table,) = tables("4")
    assert record_nbytes(table) == constants.SUPERBLOCK_NBYTES
    assert magic(table) == constants.MAGIC
    versions = [row["what"] for row in table if row["what"].startswith("format")]
    assert versions == [f"format major: {constants.FORMAT_MAJOR}", f"format minor: {constants.FORMAT_MINOR}"]


def test_directory() -> None:
    """Section 5.1: sizes of the head of a directory and of an entry of the section table."""
    head, entry = tables("5.1")
    assert record_nbytes(head) == constants.DIRECTORY_HEADER_NBYTES
    assert magic(head) == constants.DIRECTORY_MAGIC
    assert record_nbytes(entry) == constants.SECTION_ENTRY_NBYTES
    sizes = (constants.DIRECTORY_HEADER_NBYTES, constants.SECTION_ENTRY_NBYTES, constants.EARLIER_ENTRY_NBYTES)
    assert "exactly `{} + {}·S + {}·E` bytes".format(*sizes) in part("5.1")
    assert f"`0x{constants.NO_FIELD:X}` for a section of no field" in part("5.1")


def test_pages() -> None:
    """Section 5.2: pages and alignments."""
    assert f"`[{constants.PAGE_NBYTES}·p," in part("5.2")
    assert f"`ceil(nbytes / {constants.PAGE_NBYTES})` pages" in part("5.2")
    assert f"zeros to a multiple of {constants.SUM_ALIGNMENT} |" in part("5.2")
    assert f"zeros to a multiple of {constants.SECTION_ALIGNMENT}\n" in part("5.2")
    assert f"`pad(end of the last page sums, {constants.PART_ALIGNMENT})`" in part("5.2")


def test_kinds() -> None:
    """Section 5.3: numbers and names of the kinds."""
    (table,) = tables("5.3")
    assert {row["name"]: int(row["kind"]) for row in table} == {kind.name: kind.value for kind in constants.Kind}


def test_block_entry() -> None:
    """Section 7: the size of an entry of BLOCKS."""
    (table,) = tables("7")
    assert record_nbytes(table) == constants.BLOCK_ENTRY_NBYTES
    assert f"| {constants.BLOCK_ENTRY_NBYTES} bytes [s][F] " in part("5.3")
    assert f"`{constants.HEAD_NBYTES} ≤ offset`" in part("7")


def test_generations() -> None:
    """Section 12: the sizes of the entries of earlier segments and of superseded regions."""
    earlier, superseded = tables("12")
    assert record_nbytes(earlier) == constants.EARLIER_ENTRY_NBYTES
    assert record_nbytes(superseded) == constants.SUPERSEDED_ENTRY_NBYTES
    assert f"| {constants.SUPERSEDED_ENTRY_NBYTES} bytes per region " in part("5.3")


def test_dtypes() -> None:
    """Section 6.1: names and element sizes are those of the package, and the package knows no others."""
    (table,) = tables("6.1")
    names = set()
    for row in table:
        sizes = row["nbytes of an element"].split()
        row_names = re.findall(r"`([^`]+)`", row["name"])
        for k, name in enumerate(row_names):
            names.add(name)
            concrete = name.replace("[U]", "[25s]").replace("[W]", "[7]")
            size = sizes[k] if len(sizes) == len(row_names) else sizes[0]
            factor = {"W": 7, "4·W": 28}.get(size) or int(size)
            assert dtypes.is_known(concrete)
            assert dtypes.to_numpy(concrete).itemsize == factor, name
    families = {"datetime64[U]", "timedelta64[U]", "bytes[W]", "utf32[W]", dtypes.STRING}
    assert names == set(dtypes.PLAIN) | set(dtypes.EXTENDED) | families


def test_dtype_parameters() -> None:
    """Section 6.1: units, factors and widths, at their bounds."""
    match = re.search(r"is one of `([^`]+)`", part("6.1"))
    assert match
    for unit in match[1].split():
        assert dtypes.is_known(f"datetime64[{unit}]")
        assert dtypes.is_known(f"timedelta64[{2**31 - 1}{unit}]")
        assert not dtypes.is_known(f"timedelta64[{2**31}{unit}]")
        assert not dtypes.is_known(f"datetime64[1{unit}]")
    assert dtypes.is_known(f"utf32[{2**29 - 1}]")
    assert not dtypes.is_known(f"utf32[{2**29}]")
    assert not dtypes.is_known("bytes[0]")


LIMITS = {
    "file": "MAX_FILE_NBYTES",
    "samples, shards, items of a ragged field": "MAX_INT",
    "fields": "MAX_FIELDS",
    "dimensions of a row": "MAX_DIMENSIONS",
    "each dimension": "MAX_INT",
    "directory": "MAX_DIRECTORY_NBYTES",
    "SCHEMA, ATTRS": "MAX_JSON_NBYTES",
    "live segments": "MAX_SEGMENTS",
    "name of a field": "MAX_NAME_NBYTES",
    "key": "MAX_KEY_NBYTES",
    "nested levels of JSON": "MAX_JSON_LEVELS",
    "bytes `,`, `[` and `{` in a text of JSON, strings included": "MAX_JSON_VALUES",
    "DICTIONARY": "MAX_DICTIONARY_NBYTES",
}


def test_limits() -> None:
    """Section 15: each limit is a constant, and each constant MAX_... is a limit."""
    (table,) = tables("15")
    written = {row["what"]: number(row["at most"]) for row in table}
    products = [name for name in written if name.startswith("product of ")]
    assert [written.pop(name) for name in products] == [constants.MAX_INT]
    assert written == {name: getattr(constants, constant) for name, constant in LIMITS.items()}
    assert set(LIMITS.values()) == {name for name in vars(constants) if name.startswith("MAX_")}


def test_codecs() -> None:
    """Section 11: the names of the codecs."""
    from chunkstore._format import codec

    table, _ = tables("11")
    assert {row["name"].strip("`") for row in table} == {codec.RAW, *codec.CODECS}


def test_blosc2_head() -> None:
    """Section 11: what the head of a Blosc2 chunk must be is what the package lets pass."""
    from chunkstore._format import codec

    _, table = tables("11")
    rows = {int(row["offset"]): row["what it must be"] for row in table}
    assert f"its head of {codec.BLOSC_HEAD_NBYTES} bytes" in part("11")
    assert tuple(map(int, re.findall(r"(\d) \([A-Z]", rows[2]))) == codec.BLOSC_FORMATS
    assert f"bits {' and '.join(bits(codec.BLOSC_EXTENDED))} set" in rows[2]
    assert f"where bit {''.join(bits(codec.BLOSC_COPIED))} of the flags" in rows[8]
    assert f"each from 0 to {codec.BLOSC_LAST_FILTER}" in rows[16]
    refused = sum(1 << int(bit) for bit in re.findall(r"\d", rows[31].partition(" are 0;")[0]))
    assert tuple(bool(x & refused) or x >> 4 & 7 > 3 for x in range(256)) == codec.BLOSC_REFUSED


def bits(flags: int) -> list[str]:
    """Return the numbers of the bits that are set, as texts."""
    return [str(bit) for bit in range(8) if flags >> bit & 1]


def test_writer_numbers() -> None:
    """Sections 9 and 17: bytes of a group, size of a shard."""
    assert f"`min(m, max(1, ceil({constants.GROUP_NBYTES} · m / x)))`" in part("9")
    assert f"({constants.SHARD_NBYTES >> 20} MiB by default)" in part("17")
    assert f"{constants.SHARD_SAMPLES:,}th sample" in part("17")
    assert f"the member `{constants.ATTRS_RESERVED}` is reserved" in part("6")


def test_errors() -> None:
    """Section 14: the errors that it names are those of the package, as format errors."""
    names = set(re.findall(r"`([A-Z][A-Za-z]+Error)`", TEXT))
    assert names == {cls.__name__ for cls in descendants(errors.FormatError)}


def descendants(cls: type) -> set[type]:
    """Return all subclasses, theirs too."""
    return {below for child in cls.__subclasses__() for below in {child, *descendants(child)}}


def test_flags() -> None:
    """Section 16: no flag is defined in version 1.0."""
    assert "no bit is defined" in part("16")
    flags = (constants.KNOWN_INCOMPATIBLE, constants.KNOWN_READ_ONLY_COMPATIBLE, constants.KNOWN_COMPATIBLE)
    assert flags == (0, 0, 0)


def anchor(heading: str) -> str:
    """Return the anchor that Markdown viewers give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_contents_and_references() -> None:
    """The links of the contents lead to headings, and so does each `section 5.3` in the text."""
    headings = re.findall(r"^##+ (.+)$", TEXT, re.MULTILINE)
    assert {f"#{anchor(heading)}" for heading in headings} >= set(re.findall(r"\]\((#[^)]+)\)", TEXT))
    numbers = {heading.split()[0] for heading in headings}
    assert set(re.findall(r"\bsections? ([0-9]+(?:\.[0-9]+)?)", TEXT)) <= numbers


@pytest.mark.parametrize(
    "name",
    ["read_chunkstore.py", "verify_chunkstore.py", "chunkstore.ksy", "CHANGELOG.md", "errata.md", "vectors/README.md"],
)
def test_companions(name: str) -> None:
    """What belongs to the specification is there."""
    assert (SPEC / name).stat().st_size > 0


def test_kaitai_kinds() -> None:
    """The kinds of sections in chunkstore.ksy are those of the text."""
    text = (SPEC / "chunkstore.ksy").read_text("utf-8").split("section_kind:\n")[-1]
    kinds = {int(value): name.upper() for value, name in re.findall(r"^    (\d+): (\w+)$", text, re.MULTILINE)}
    assert kinds == {kind.value: kind.name for kind in constants.Kind}


def test_sources_cite_sections() -> None:
    """Every `spec 5.2` or `section 5.2` in the package names a section of the text."""
    numbers = set(re.findall(r"^##+ ([0-9.]+) ", TEXT, re.MULTILINE))
    for path in sorted((SPEC.parent / "chunkstore" / "_format").glob("*.py")):
        cited = re.findall(r"\b(?:[Ss]ection|spec) ([0-9]+(?:\.[0-9]+)?)", path.read_text("utf-8"))
        assert set(cited) <= numbers, path.name
