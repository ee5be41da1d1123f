"""The command `chunkstore`: its group, and how it ends."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from importlib import import_module
from typing import Final

import click

import chunkstore
from chunkstore._cli.early import clean_up_first
from chunkstore._cli.guard import Commands, end_cleanly, open_streams

# name -> (module that has a function of this name, what it does), in the order of the help. A module is imported when
# its command is called: help does not wait for NumPy.
_COMMANDS: Final = {
    "convert": ("making", "Make the container DST of directories or files of .npy and .npz."),
    "info": ("looking", "Say what is in FILE: fields, counts, sizes."),
    "ls": ("looking", "List the samples of FILE: positions, keys, shapes."),
    "get": ("looking", "Show one sample of FILE, or write it as a file."),
    "verify": ("checking", "Hold every byte of each FILE against its checksum."),
    "export": ("making", "Write the samples of FILE back as .npy and .npz files."),
    "append": ("making", "Add the samples of directories or files to FILE."),
    "merge": ("rewriting", "Put the samples of several FILEs into the new container OUT."),
    "repack": ("rewriting", "Write FILE (or some of it) anew, each field in one piece."),
    "recover": ("rewriting", "Save what can be proven good of a damaged FILE into OUT."),
    "refs": ("looking", "Describe FILE for zarr and xarray, which then read it."),
    "bench": ("checking", "Measure how fast FILE is read on this machine."),
    "demo": ("demo", "Show all of this on handwritten digits, in a few seconds."),
}


_BY_SIGNAL: Final = 128  # codes above it are this and the number of a signal


class _Lazy(Commands):
    """The commands of `_COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of use, not of the alphabet."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name; the module that has it is imported now."""
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"chunkstore._cli.{_COMMANDS[cmd_name][0]}")
        clean_up_first()
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, what) for name, (_, what) in _COMMANDS.items()])


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
A first look:
  chunkstore demo                          see it work, in a few seconds
  chunkstore convert data/ train.cks       a directory of .npy or .npz files
  chunkstore info train.cks
  chunkstore get train.cks 0
  chunkstore verify train.cks
  python -c "import chunkstore; print(chunkstore.open('train.cks')[0])"

\b
Exit codes: 0 good; 1 the data is bad or refused, or there is no such sample;
2 usage; 3 a file is not there, or cannot be read or written;
130 interrupted (143 by SIGTERM, 129 by SIGHUP).
Results go to stdout; progress, notes and errors to stderr.
""",
)
@click.version_option(chunkstore.__version__, prog_name="chunkstore")
def cli() -> None:
    """One file for a data set of arrays: convert once, read random samples fast, prove every byte.

    A container (.cks) holds samples; each has a position, mostly a key, and one array for each field. It is a file, or
    an object behind a URL such as s3://bucket/train.cks. COMMAND --help tells all about one command.
    """


def run() -> None:
    """Run the command that `sys.argv` names, and end the process."""
    open_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a key gets its code points
    end_cleanly()
    try:
        cli(prog_name="chunkstore")
    except SystemExit as end:
        # From here on Ctrl-C would only show where the interpreter was ending, or have it end in another way.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if isinstance(end.code, int) and end.code > _BY_SIGNAL:
            # `python -m` ends by SIGINT, whatever the code, where an interrupt once came out of an `exec` of text, as
            # dataclasses have: so this does at once what it would do now.
            atexit._run_exitfuncs()
            os._exit(end.code)
        raise
