"""What the index alone tells about a container and its rows."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any, Final

import numpy as np

from chunkstore._cli.options import open_container
from chunkstore._cli.output import nbytes_text, one_line, plural, shape_text, table
from chunkstore._format.codec import RAW
from chunkstore._format.constants import ATTRS_RESERVED, FORMAT_MAJOR, HEAD_NBYTES, KEY_KINDS, NO_FIELD, Kind
from chunkstore._format.field_index import FieldIndex
from chunkstore._format.index import Index
from chunkstore._format.schema import Field
from chunkstore._read.many import Containers
from chunkstore._read.reader import Reader

_ROW_KINDS: Final = (Kind.OFFSETS, Kind.SHAPES, Kind.STORED_OFFSETS)
_SHOWN: Final = 8


def container_facts(ds: Reader) -> dict[str, Any]:
    """Everything that `chunkstore info` says, ready for JSON. Costs the same for any number of samples."""
    if isinstance(ds, Containers):
        return _joined_facts(ds)
    index = ds._index
    superblock = index.superblock
    attrs = ds.attrs
    converted = attrs.pop(ATTRS_RESERVED, None)
    return {
        "path": ds.path,
        "format": f"{FORMAT_MAJOR}.{superblock.minor}",
        "num_samples": index.num_samples,
        "has_keys": index.has_keys,
        "fields": [_field_facts(index, number) for number in range(len(index.fields))],
        "num_shards": len(index.shard_starts) - 1,
        "num_segments": len(index.directories),
        "generation": superblock.generation,
        "uuid": str(uuid.UUID(bytes=superblock.uuid)),
        "fingerprint": index.fingerprint,
        "sizes": _sizes(index, ds._source.size),
        "origin": _origin(converted),
        "attrs": attrs,
        "superblock_damage": [{"superblock": which, "message": what} for which, what in index.head.damage],
    }


def _joined_facts(ds: Containers) -> dict[str, Any]:
    """The same of several containers as one, and of each."""
    parts = []
    for path in ds.paths:
        with open_container(path) as part:
            parts.append(container_facts(part))
    fields = [_joined_field(field, [f for part in parts for f in part["fields"]]) for field in ds.fields.values()]
    return {
        "path": ds.path,
        "num_samples": len(ds),
        "has_keys": ds.keys is not None,
        "fields": fields,
        "fingerprint": ds.fingerprint,
        "attrs": ds.attrs,
        "containers": parts,
    }


def _joined_field(field: Field, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The same of a field of several, from what is known of the fields of each."""
    mine = [part for part in parts if part["name"] == field.name]
    nbytes, decoded, extents = (
        sum(part[name] for part in mine) for name in ("nbytes", "decoded_nbytes", "num_extents")
    )
    return _facts_of(field, nbytes, decoded, extents)


def _field_facts(index: Index, number: int) -> dict[str, Any]:
    found = FieldIndex(index, number)
    extents, nbytes = found.extents(), int(index.blocks[:, number]["nbytes"].sum())
    facts = _facts_of(index.fields[number], nbytes, found.decoded_nbytes(), len(extents))
    return {**facts, "offset": extents[0].offset if len(extents) == 1 else None}


def _facts_of(field: Field, nbytes: int, decoded: int, num_extents: int) -> dict[str, Any]:
    return {
        "name": field.name,
        "dtype": field.dtype,
        "shape": list(field.shape),
        "codec": field.codec,
        "row_nbytes": field.row_nbytes,
        "nbytes": nbytes,
        "decoded_nbytes": decoded,
        "ratio": decoded / nbytes if nbytes else 1.0,
        "num_extents": num_extents,
    }


def _sizes(index: Index, file_nbytes: int) -> dict[str, Any]:
    """Where the bytes of the file are; what no line names is padding or superseded."""
    kinds = _section_nbytes(index)
    data = int(index.blocks["nbytes"].sum())
    segments = sum(directory.segment_nbytes for directory in index.directories)
    keys = sum(kinds[kind] for kind in KEY_KINDS)
    text = sum(entry.nbytes for d in index.directories for entry in d.sections() if entry.kind == Kind.KEY_BYTES)
    num = max(index.num_samples, 1)
    end = index.superblock.committed_end
    return {
        "file_nbytes": file_nbytes,
        "committed_nbytes": end,
        "data_nbytes": data,
        "superblocks_nbytes": HEAD_NBYTES,
        "index_nbytes": segments,
        "checksums_nbytes": kinds[Kind.CHUNK_SUMS],
        "row_offsets_nbytes": sum(kinds[kind] for kind in _ROW_KINDS),
        "keys_nbytes": keys,
        "key_text_nbytes": text,
        "key_nbytes_per_sample_beyond_text": (keys - text) / num if index.has_keys else 0.0,
        "superseded_nbytes": _superseded_nbytes(index),
        "padding_nbytes": end - HEAD_NBYTES - data - segments - _superseded_nbytes(index),
        "overhead_nbytes": end - data,
        "overhead_share_of_data": (end - data) / data if data else None,
    }


def _section_nbytes(index: Index) -> Counter[int]:
    """Bytes of each kind of section with its page sums, over all segments."""
    found: Counter[int] = Counter()
    for directory in index.directories:
        for entry in directory.sections():
            found[entry.kind] += entry.end - entry.offset
    return found


def _superseded_nbytes(index: Index) -> int:
    """Bytes of index segments that a later one has taken the place of."""
    newest = index.directories[-1]
    if (Kind.SUPERSEDED, NO_FIELD) not in newest:
        return 0
    entries = np.frombuffer(index.read_section(newest, Kind.SUPERSEDED), "<u8").reshape(-1, 3)  # offset, nbytes, sum
    return int(entries[:, 1].sum())


def _origin(converted: Any) -> dict[str, Any] | None:
    """What the samples were before, in a few words; None for a container that was written by a program."""
    origin = converted.get("origin") if isinstance(converted, dict) else None
    if not isinstance(origin, dict):
        return None
    kept = {name: origin[name] for name in ("layout", "suffix", "label") if isinstance(origin.get(name), str)}
    files = origin.get("files")
    return {**kept, "num_files": len(files)} if isinstance(files, list) else kept


def facts_text(facts: dict[str, Any]) -> str:
    """The same for people."""
    parts = facts.get("containers")
    what = f"chunkstore {facts['format']}" if parts is None else plural(len(parts), "container")
    samples = f"{plural(facts['num_samples'], 'sample')} {'with' if facts['has_keys'] else 'without'} keys"
    size = nbytes_text(sum(part["sizes"]["file_nbytes"] for part in parts or [facts]))
    lines = [
        f"{one_line(facts['path'])}: {what}, {samples}, {size}",
        "",
        _fields_text(facts["fields"]),
        "",
        *(_own_lines(facts) if parts is None else _parts_lines(facts)),
        *_attrs_lines(facts["attrs"]),
    ]
    for damage in facts.get("superblock_damage", ()):
        lines.append(f"DAMAGED      superblock {damage['superblock']}: {one_line(damage['message'])}")
    return "\n".join(lines)


def _own_lines(facts: dict[str, Any]) -> list[str]:
    """What is said of one container."""
    return [
        *_size_lines(facts),
        "",
        f"shards       {facts['num_shards']:,}",
        f"generation   {facts['generation']:,} (index segments: {facts['num_segments']})",
        f"fingerprint  {facts['fingerprint']}",
        f"uuid         {facts['uuid']}",
        *_origin_lines(facts["origin"]),
    ]


def _parts_lines(facts: dict[str, Any]) -> list[str]:
    """What is said of several."""
    rows = [("container", "samples", "bytes", "generation")]
    for part in facts["containers"]:
        nbytes = part["sizes"]["file_nbytes"]
        rows.append((one_line(part["path"]), f"{part['num_samples']:,}", f"{nbytes:,}", f"{part['generation']:,}"))
    return [table(rows, right=(1, 2, 3)), "", f"fingerprint  {facts['fingerprint']} (of all, in this order)"]


def _fields_text(fields: list[dict[str, Any]]) -> str:
    rows = [("field", "dtype", "shape", "codec", "bytes a row", "bytes", "ratio", "extents")]
    for field in fields:
        row = "varies" if field["row_nbytes"] is None else f"{field['row_nbytes']:,}"
        rows.append(
            (
                one_line(field["name"]),
                field["dtype"],
                shape_text(field["shape"]),
                field["codec"],
                row,
                f"{field['nbytes']:,}",
                "" if field["codec"] == RAW else f"{field['ratio']:.2f}",
                f"{field['num_extents']:,}",
            )
        )
    return table(rows, right=(4, 5, 6, 7))


def _size_lines(facts: dict[str, Any]) -> list[str]:
    sizes = facts["sizes"]
    data = sizes["data_nbytes"]
    rows = [
        ("data", data, ""),
        ("superblocks", sizes["superblocks_nbytes"], ""),
        ("index", sizes["index_nbytes"], _index_remark(sizes, facts["has_keys"])),
        ("padding", sizes["padding_nbytes"], ""),
    ]
    if sizes["superseded_nbytes"]:
        rows.append(("superseded", sizes["superseded_nbytes"], "  old index segments; `chunkstore repack` drops them"))
    if sizes["file_nbytes"] > sizes["committed_nbytes"]:
        rest = sizes["file_nbytes"] - sizes["committed_nbytes"]
        rows.append(("uncommitted", rest, "  behind the last commit: an append is under way, or was interrupted"))
    share = sizes["overhead_share_of_data"]
    note = "" if share is None else f" ({share:.2%} of it)" if share < 1 else f" ({share:.1f} times as much)"
    rows.append(("overhead", sizes["overhead_nbytes"], f"  all but the data{note}"))
    return [f"{name:<11}  {nbytes:>16,} bytes{remark}" for name, nbytes, remark in rows]


def _index_remark(sizes: dict[str, Any], has_keys: bool) -> str:
    parts = [f"checksums {sizes['checksums_nbytes']:,}"]
    if sizes["row_offsets_nbytes"]:
        parts.append(f"offsets of rows {sizes['row_offsets_nbytes']:,}")
    if has_keys:
        extra = sizes["key_nbytes_per_sample_beyond_text"]
        parts.append(f"keys {sizes['keys_nbytes']:,}: text and {extra:.1f} bytes a sample")
    return f"  ({'; '.join(parts)})"


def _origin_lines(origin: dict[str, Any] | None) -> list[str]:
    if not origin:
        return []
    files = f", {plural(origin['num_files'], 'file')}" if "num_files" in origin else ""
    kind = f" of {one_line(origin['suffix'])} files" if "suffix" in origin else ""
    return [f"origin       chunkstore convert, layout {one_line(origin.get('layout', '?'))}{kind}{files}"]


def _attrs_lines(attrs: dict[str, Any]) -> list[str]:
    lines = []
    for name, value in list(attrs.items())[:_SHOWN]:
        text = one_line(repr(value))
        lines.append(f"attrs        {one_line(name)}: {text if len(text) <= 90 else text[:87] + '...'}")
    if len(attrs) > _SHOWN:
        lines.append(f"attrs        ... and {len(attrs) - _SHOWN} more, see --json")
    return lines
