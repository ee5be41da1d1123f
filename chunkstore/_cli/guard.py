"""Every error becomes one message on stderr and one exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Any, Final, NoReturn

import click

from chunkstore._cli.early import INTERRUPTED, SAID
from chunkstore._cli.output import log, write_json
from chunkstore._storage.interrupts import ENDING
from chunkstore.errors import ChunkstoreError, LockedError, MissingExtraError, PoisonedError, ReplacedError

GOOD: Final = 0
BAD_DATA: Final = 1
USAGE: Final = 2
NO_ACCESS: Final = 3
BROKEN_PIPE: Final = 141  # 128 + SIGPIPE: what every other command of a pipeline ends with

_NO_ACCESS_ERRORS: Final = (OSError, MemoryError, LockedError, PoisonedError, ReplacedError, MissingExtraError)
_JSON: Final = "chunkstore.json"  # in what contexts of click share: whether the result is wanted as JSON
_ended_by: list[int] = []  # the first of `ENDING` that came


def open_streams() -> None:
    """Give a process that was started without stdout or stderr (`>&-`) a null device in their place.

    Else the first file that it opens gets the number of the stream, and what any library prints goes into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "w" if number else "r", encoding="utf-8")  # noqa: SIM115 - stays open
            if stream.fileno() != number:
                os.dup2(stream.fileno(), number)
            setattr(sys, name, stream)


def end_cleanly() -> None:
    """Let SIGTERM and SIGHUP end the process as Ctrl-C does: nothing half-made stays, and a message says so.

    For the main thread of a process that is a command; children that it starts do not inherit it. A signal that
    somebody ignores (`nohup`) stays ignored. Those that follow the first are passed over, so that cleaning up ends.
    """
    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    if not _ended_by:
        _ended_by.append(number)
        raise KeyboardInterrupt


class Commands(click.Group):
    """A group whose commands may raise what the package raises."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Note whether JSON is wanted, before anything can be wrong."""
        ctx.meta[_JSON] = "--json" in args
        try:
            return super().parse_args(ctx, args)
        except OSError as error:  # the text of --help or --version could not be written
            _end_with(ctx, error)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; errors end as a message and an exit code, and with --json as an object, too."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here, where a broken pipe is still caught
            return result
        except click.ClickException as error:
            _report_json(ctx, type(error).__name__, error.format_message())
            raise
        except (ChunkstoreError, OSError, KeyboardInterrupt, MemoryError) as error:
            _end_with(ctx, error)
        except ValueError as error:
            from chunkstore._storage.objects import UrlError

            if not isinstance(error, UrlError):
                raise  # a mistake of ours, which shows where
            _end_with(ctx, error)


def _end_with(ctx: click.Context, error: BaseException) -> NoReturn:
    if not isinstance(error, BrokenPipeError):
        _report_json(ctx, type(error).__name__, message(error))
    ctx.exit(report(error))


def _report_json(ctx: click.Context, name: str, text: str) -> None:
    if ctx.meta[_JSON]:
        try:
            write_json({"ok": False, "error": name, "message": text}, indent=None)
            sys.stdout.flush()
        except OSError:  # a full disk, or nobody who reads: stderr and the exit code say the same
            _discard_stdout()


def report(error: BaseException) -> int:
    """Say what went wrong and return the exit code. `CHUNKSTORE_TRACEBACK=1` in the environment shows where."""
    try:
        sys.stdout.flush()  # results come before the error also where both streams go to one file
    except BrokenPipeError as broken:
        error = broken
    except OSError:
        _discard_stdout()
    if isinstance(error, BrokenPipeError):
        _discard_stdout()
        return BROKEN_PIPE
    if os.environ.get("CHUNKSTORE_TRACEBACK"):
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        click.echo(err=True)  # the terminal shows ^C where the bar was
        log(message(error))
        return 128 + _ended_by[0] if _ended_by else INTERRUPTED
    log(f"error: {message(error)}")
    return exit_code(error)


def exit_code(error: BaseException) -> int:
    """1 where the data is bad or refused, 3 where something cannot be read or written."""
    if isinstance(error, _NO_ACCESS_ERRORS):
        return NO_ACCESS
    return BAD_DATA if isinstance(error, ChunkstoreError) else USAGE


def message(error: BaseException) -> str:
    """One clear text: where, what; an `OSError` of the system gets what to do."""
    if isinstance(error, KeyboardInterrupt):
        return str(error) or SAID
    if isinstance(error, MemoryError):
        return f"out of memory{': ' + str(error) if str(error) else ''}"
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or type(error).__name__
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else None
    where = "" if name is None else f"{name or repr(name)}: "
    return f"{where}{error.strerror}{_advice(error, name or '')}"


def _advice(error: OSError, name: str) -> str:
    if error.errno is None or error.strerror != os.strerror(error.errno):
        return ""  # we raised it, and it says what to do
    if isinstance(error, FileNotFoundError):
        return _advice_on_name(name)
    if isinstance(error, IsADirectoryError):
        return ". Here one file is wanted"
    if isinstance(error, FileExistsError):
        return ". Give another name, or remove it"
    return ""


def _advice_on_name(name: str) -> str:
    from glob import has_magic

    from chunkstore._storage.objects import is_url, looks_like_url

    if is_url(name):
        return ". Here a file is wanted: download the object first"
    if looks_like_url(name):
        return ". This is no URL of a known kind, and no file"
    if has_magic(name):
        return ". Here one file is wanted; where several go, the shell expands a pattern without quotes"
    return ". Check the path"


def _discard_stdout() -> None:
    """What is still buffered would raise once more when the interpreter ends."""
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    except (OSError, ValueError):
        pass  # stdout is no file: it has no pipe either
