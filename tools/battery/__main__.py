"""Start the battery: `python -m tools.battery ...` or `python tools/battery ...` from the repository root."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    # `python tools/battery` puts this directory on the path; the package is found from the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tools.battery.cli import main

if __name__ == "__main__":
    sys.exit(main())
