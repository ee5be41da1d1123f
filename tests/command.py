"""Commands in the process of the tests, with any release of click that the package takes."""

from __future__ import annotations

import inspect
from typing import Any

from click.testing import CliRunner, Result

from chunkstore._cli.main import cli

# Since 8.2 the two streams come apart always; before, they had to be asked for apart.
_APART: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}


def run(*arguments: object) -> Result:
    """Run a command in this process; whatever it raises besides `SystemExit` fails the test."""
    return CliRunner(**_APART).invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
