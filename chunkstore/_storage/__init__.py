"""Storage: the only code that makes operating-system calls on a container.

    platform     what this system has, and a plain twin for each call that it may lack
    filesystem   is a path on a network file system?
    names        file names in natural order
    buffers      any buffer or array as plain bytes, without a copy
    source       positional reads: `MmapSource`, `PreadSource`, `open_source`
    joined_source  several sources as one: `JoinedSource`
    objects      objects behind URLs, and the only module that knows their client
    ranges       which requests bring many ranges
    pieces       what of an object is in memory, or under way
    blockcache   blocks of objects on the local disk
    remote       positional reads of an object: `RemoteSource`, `Remote`
    opening      a source for a path or a URL: `open_any`
    upload       a new container behind a URL
    syscalls     every write-side system call: the seam where tests record or inject faults
    sink         positional writes: full writes or an error
    replace      what may be replaced: a container, and no source
    lock         one writer at a time
    commit       the order of writes and syncs that makes new bytes visible

Nothing here knows more of the format than its magic and where it begins: offsets and lengths come from the layers
above, which have checked them.
"""
