"""A lock for imports at first use, beside threads that fork.

A child that is made in the middle of an import inherits the lock of that import, which nobody releases there: it would
wait for ever where it needs the package. So whoever forks waits until the import is done.

Who forks takes the locks of all packages that have some, those first that were registered last. `logging` has one that
many imports take: it must be registered before this one, or the two wait for each other.
"""

from __future__ import annotations

import logging  # noqa: F401 - registers its lock
import os
import threading
from typing import Final

IMPORTING: Final = threading.RLock()  # reentrant: a package may fork while it is imported

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=IMPORTING.acquire, after_in_parent=IMPORTING.release, after_in_child=IMPORTING.release)
