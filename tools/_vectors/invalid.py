"""The invalid vectors: one thing is wrong in each, and the checksums above it are right unless they are the thing.

`where` is the step that must fail: `open`; `read` (rows of every field, keys, attributes); `verify` (a reader may never
notice). `a|b` where the specification leaves the choice. What fails to open or to be read is damage to a verifier too.
"""

from __future__ import annotations

from collections.abc import Iterator

from _vectors import invalid_index, invalid_rows
from _vectors.damage import Case

# Near relatives of others. The tests run them too, but the repository holds no file of them: all would be 4 MB.
# fmt: off
VARIANTS = frozenset({
    "attrs-empty", "attrs-integer", "attrs-levels-broken", "attrs-levels-many", "attrs-nan", "attrs-not-utf8",
    "attrs-values",
    "block-first-group",
    "block-first-group-second", "block-nbytes-huge", "block-offset-behind-end", "block-offset-overflow",
    "block-offset-unaligned", "block-rows-per-group", "chunk-sum-of-nothing", "directory-behind-end",
    "directory-in-superblock", "directory-nbytes-63", "directory-offset-overflow", "earlier-flip", "earlier-nbytes",
    "earlier-num-samples", "earlier-offset-behind-end", "earlier-offset-unaligned", "end-0", "end-huge",
    "end-too-low", "first-shard", "incompatible-flag-63", "key-hashes-unsorted", "key-limit", "key-offsets-behind",
    "key-offsets-first", "key-order-same", "key-surrogate", "key-zero", "length-chunk-sums-long",
    "length-key-offsets-short", "length-key-order-long", "length-offsets-short", "length-shapes-short",
    "length-shard-starts-long", "length-stored-offsets-long", "length-superseded", "major-0", "missing-attrs",
    "missing-blocks", "missing-key-hashes", "missing-offsets", "missing-schema", "missing-shapes",
    "missing-shard-starts", "missing-stored-offsets", "num-earlier", "num-fields", "num-fields-0",
    "num-samples-huge", "num-sections", "num-sections-huge", "num-shards-huge", "offsets-block-nbytes",
    "offsets-huge", "offsets-negative", "offsets-wrapped", "padding-directory", "padding-page-sums", "page-attrs",
    "page-blocks", "page-key-hashes", "page-second", "page-shard-starts", "page-sum-chunk-sums",
    "page-sum-chunk-sums-sealed", "page-sum-schema", "page-sum-schema-sealed", "page-unknown-section",
    "schema-array", "schema-codec-number", "schema-dtype-bytes-0", "schema-dtype-factor-huge",
    "schema-dtype-leading-zero", "schema-dtype-newline", "schema-dtype-no-unit", "schema-dtype-numpy",
    "schema-dtype-unit", "schema-fields-empty", "schema-fields-object", "schema-infinity", "schema-name-control",
    "schema-name-delete", "schema-name-empty", "schema-name-number", "schema-name-surrogate", "schema-no-fields",
    "schema-repeated-member", "schema-same-names", "schema-shape-fraction", "schema-shape-negative",
    "schema-shape-number", "schema-shape-true", "schema-trailing", "schema-values", "section-field",
    "section-offset-overflow",
    "segment-behind-end", "segment-first-shard", "segment-nbytes", "segment-nbytes-0", "segment-nbytes-unaligned",
    "shapes-product", "shapes-wrapped", "shard-starts-descending", "shard-starts-huge", "shard-starts-last",
    "stored-offsets-descending", "stored-offsets-huge", "superblock-b-flip", "superseded-descending",
    "superseded-nbytes", "superseded-unaligned", "table-sum-chunk-sums", "table-sum-schema", "truncated-to-5",
    "truncated-to-8191", "uncalled-dictionary-zlib", "uncalled-field-1", "uncalled-shapes",
    "uncalled-stored-offsets", "zeros", "zlib-adler", "zlib-bomb", "zlib-garbage", "zlib-short", "zlib-truncated",
    "zstd-garbage", "zstd-long", "zstd-truncated", "zstd-two-frames",
})
# fmt: on


def cases() -> Iterator[Case]:
    """Build every invalid vector."""
    for group in (*invalid_index.GROUPS, *invalid_rows.GROUPS):
        for row in group():
            yield Case(*row)
