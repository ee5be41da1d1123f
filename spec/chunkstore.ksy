meta:
  id: chunkstore
  title: chunkstore container, format version 1
  file-extension: cks
  license: Apache-2.0
  ks-version: 0.9
  encoding: UTF-8
  endian: le
doc: |
  One file of arrays with an index and checksums. The layout of chunkstore-1.md for machines; section numbers are of that
  text, which is the law. Checksums and the rules between numbers are not expressed here.

  `superblock_a` is shown as the current one. A reader chooses the valid one with the higher generation (section 4).
doc-ref: chunkstore-1.md
seq:
  - id: superblock_a
    type: superblock
    size: 4096
  - id: superblock_b
    type: superblock
    size: 4096
instances:
  newest:
    pos: superblock_a.ofs_directory
    type: directory
    size: superblock_a.len_directory
    doc: The directory of the newest index segment.
types:
  superblock:
    doc: Section 4.
    seq:
      - id: magic
        contents: [0x89, CKS, 0x0d, 0x0a, 0x1a, 0x0a]
      - id: major
        type: u2
        valid: 1
      - id: minor
        type: u2
      - id: reserved_1
        size: 4
      - id: incompatible_flags
        type: u8
      - id: read_only_compatible_flags
        type: u8
      - id: compatible_flags
        type: u8
      - id: uuid
        size: 16
      - id: generation
        type: u8
        valid:
          min: 1
      - id: committed_end
        type: u8
        doc: A multiple of 4096.
      - id: ofs_directory
        type: u8
        valid:
          min: 8192
        doc: Offset of the newest segment, which begins with its directory; a multiple of 4096.
      - id: len_directory
        type: u8
        valid:
          min: 64
          max: 16777216
      - id: directory_xxh3_128
        size: 16
        doc: In hexadecimal digits this is the fingerprint of the generation.
      - id: reserved_2
        size: 3976
      - id: superblock_xxh3_128
        size: 16
        doc: Of the 4080 bytes before.
  directory:
    doc: Section 5.1.
    seq:
      - id: magic
        contents: CKS-INDX
      - id: first_sample
        type: u8
      - id: num_samples
        type: u8
      - id: first_shard
        type: u8
      - id: num_shards
        type: u8
      - id: len_segment
        type: u8
      - id: num_fields
        type: u4
        valid:
          min: 1
          max: 65535
      - id: num_sections
        type: u4
      - id: num_earlier
        type: u4
        valid:
          max: 63
      - id: reserved
        size: 4
      - id: sections
        type: section(num_samples, num_shards, num_fields)
        repeat: expr
        repeat-expr: num_sections
      - id: earlier
        type: earlier_segment
        repeat: expr
        repeat-expr: num_earlier
  section:
    doc: An entry of the section table (section 5.1), and the section that it names (section 5.2).
    params:
      - id: num_samples
        type: u8
      - id: num_shards
        type: u8
      - id: num_fields
        type: u4
    seq:
      - id: kind
        type: u4
        enum: section_kind
      - id: field
        type: u4
        doc: Number of the field in SCHEMA, or 0xffffffff for a section of no field.
      - id: ofs_section
        type: u8
      - id: len_section
        type: u8
      - id: page_sums_xxh3_64
        type: u8
    instances:
      body:
        io: _root._io
        pos: ofs_section
        size: len_section
        type:
          switch-on: kind
          cases:
            'section_kind::schema': json
            'section_kind::attrs': json
            'section_kind::shard_starts': u8_array
            'section_kind::blocks': blocks(num_shards, num_fields)
            'section_kind::chunk_sums': u8_array
            'section_kind::offsets': s8_array
            'section_kind::shapes': s8_array
            'section_kind::stored_offsets': u8_array
            'section_kind::key_offsets': u8_array
            'section_kind::key_hashes': u8_array
            'section_kind::key_order': key_order(num_samples)
            'section_kind::superseded': superseded_regions
      page_sums:
        io: _root._io
        pos: ofs_section + (len_section + 7) / 8 * 8
        type: u8
        repeat: expr
        repeat-expr: (len_section + 65535) / 65536
        doc: The xxh3-64 of each 65,536 bytes of the section.
  earlier_segment:
    doc: Another live segment (section 12).
    seq:
      - id: ofs_directory
        type: u8
      - id: len_directory
        type: u8
      - id: first_sample
        type: u8
      - id: num_samples
        type: u8
      - id: directory_xxh3_128
        size: 16
    instances:
      directory:
        io: _root._io
        pos: ofs_directory
        size: len_directory
        type: directory
  json:
    doc: Section 6.
    seq:
      - id: text
        type: str
        size-eos: true
  u8_array:
    seq:
      - id: values
        type: u8
        repeat: eos
  s8_array:
    seq:
      - id: values
        type: s8
        repeat: eos
  key_order:
    doc: Section 10.
    params:
      - id: num_samples
        type: u8
    seq:
      - id: narrow
        type: u4
        repeat: eos
        if: num_samples < 4294967296
      - id: wide
        type: u8
        repeat: eos
        if: num_samples >= 4294967296
  blocks:
    doc: Section 7. The entry of field f in shard s is number s * num_fields + f.
    params:
      - id: num_shards
        type: u8
      - id: num_fields
        type: u4
    seq:
      - id: entries
        type: block
        repeat: expr
        repeat-expr: num_shards * num_fields
  block:
    seq:
      - id: ofs_block
        type: u8
        valid:
          min: 8192
      - id: len_block
        type: u8
      - id: block_xxh3_64
        type: u8
      - id: rows_per_group
        type: u8
        valid:
          min: 1
      - id: first_group
        type: u8
    instances:
      body:
        io: _root._io
        pos: ofs_block
        size: len_block
        doc: The chunks of the rows, back to back (sections 8 and 11).
  superseded_regions:
    seq:
      - id: regions
        type: superseded_region
        repeat: eos
  superseded_region:
    doc: Section 12.
    seq:
      - id: ofs_region
        type: u8
      - id: len_region
        type: u8
      - id: region_xxh3_64
        type: u8
enums:
  section_kind:
    1: schema
    2: attrs
    3: shard_starts
    4: blocks
    5: chunk_sums
    6: offsets
    7: shapes
    8: stored_offsets
    9: dictionary
    10: key_bytes
    11: key_offsets
    12: key_hashes
    13: key_order
    14: superseded
