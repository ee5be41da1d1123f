"""Storage: the only code that makes operating-system calls on a container.

    platform     what this system has, and a plain twin for each call that it may lack
    filesystem   is a path on a network file system?
    buffers      any buffer or array as plain bytes, without a copy
    source       positional reads: `MmapSource`, `PreadSource`, `open_source`
    syscalls     every write-side system call: the seam where tests record or inject faults
    sink         positional writes: full writes or an error
    lock         one writer at a time
    commit       the order of writes and syncs that makes new bytes visible

Nothing here knows the format: offsets and lengths come from the layers above, which have checked them.
"""
