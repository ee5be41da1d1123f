"""`python -m chunkstore` is the command `chunkstore`."""

from __future__ import annotations

from chunkstore._cli.main import main

if __name__ == "__main__":
    main()
