"""Start the benchmark: `python -m tools.bench ...` or `python tools/bench ...` from the repository root."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if not __package__:
    # `python tools/bench` puts this directory on the path; the package is found from the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tools.bench.cli import main

if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # `tools/bench/run --list | head`: what is still buffered must not raise once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)
