"""What tries to break chunkstore: crash states, mutants of the commit protocol, faults, kills, fuzz, long runs.

    disk ---- which states a disk may legally show after a power failure
      scenarios -- the writes and syncs of create, append, merge and repack, recorded
        crash ------- every such state, opened and compared with what was acknowledged
          mutants ------- the same on a writer or reader that was broken on purpose: must be found

`python -m tools.battery` runs all of it and writes `report.md`.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for _folder in (ROOT, ROOT / "tests"):  # neither this package nor the helpers of the tests are installed
    if str(_folder) not in sys.path:
        sys.path.append(str(_folder))
