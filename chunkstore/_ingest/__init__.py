"""From `.npy` and `.npz` files to a container, and back to files.

    sources                     directories and files that the user names
      |  plan/scan              the files in them, in natural order
      |  plan/planner           the steps that follow, one after another:
      |  plan/inventory         the header of each; npy/ is the one gate for the bytes of sources
      |  plan/uniform           or only the first header, where the others seem to be the same; checked at the copy
      |  plan/layouts           which arrays make one sample (pairing), what `auto` chooses
      |  plan/agree             do they fit each other; specs: `--field`, `--dtype`; row_shapes: what headers do not say
    plan/plan                   every sample, its fields, where each row is now (columns); nothing is written
      |  convert/arrangement    where each block goes, by arithmetic (coded: where chunks tell)
      |  convert/tasks          one worker: rows of some shards read (plan/read), cast (npy/casts), summed, written
      |  convert/engine, pool   the same work in this process, in processes of ours, or on any executor
    container                   published whole or not at all (convert/convert); compare reads both sides again
      |  export/restore         which files it was made of (plan/origin has left word in ATTRS)
      |  export/npywrite        their bytes
    files

Headers are read once for the plan and held against the files again when the rows are copied.
"""
