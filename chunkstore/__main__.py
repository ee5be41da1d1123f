"""`python -m chunkstore` is the command `chunkstore`; the script of that name begins here, too."""

from __future__ import annotations

from chunkstore._cli.early import leave_at_once


def main() -> None:
    """Entry point."""
    leave_at_once()
    from chunkstore._cli.main import run  # takes a tenth of a second

    run()


if __name__ == "__main__":
    main()
