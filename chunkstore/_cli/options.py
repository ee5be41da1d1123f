"""Options and argument types that several commands share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeVar

import click

from chunkstore._cli.output import argument
from chunkstore._storage.replace import is_container
from chunkstore.errors import IngestError, NotAContainerError

_F = TypeVar("_F", bound=Callable[..., Any])
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([kmgt]?)(i?b?)", re.IGNORECASE)
LAYOUTS = ("auto", "files", "rows", "columns", "paired", "classes")


def size_callback(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """A number of bytes from `4096`, `64MiB`, `64M`; all units are powers of 1024."""
    match = _SIZE.fullmatch(value.strip())
    nbytes = 0 if match is None else int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))
    if nbytes < 1:
        raise click.BadParameter(
            f"{value!r} is no size; expected a number of bytes such as 4096, 512KiB or 64MiB", ctx, param
        )
    return nbytes


ANY_PATH = click.Path(readable=False)  # not asked about beforehand: a file that cannot be read is no error of usage
container_argument = click.argument("file", type=ANY_PATH)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result, or the error, as JSON.")


def _checked(
    module: str, parse: str, **options: bool
) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], tuple[str, ...]]:
    """Callback: what that function cannot parse is an error of usage, found before any file is looked at."""

    def callback(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            getattr(import_module(module), parse)(value, **options)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None
        return value

    return callback


def codec_option(*, auto: bool) -> Callable[[_F], _F]:
    """--codec

    Args:
        auto: whether `auto` is one.
    """
    callback = _checked("chunkstore._format.encode", "parse_codecs", auto=auto)
    text = (
        "Store the chunks of FIELD, or of all fields with rows that are not short, by CODEC: raw, zlib[:LEVEL], "
        "zstd[:LEVEL,dict], blosc2[:CODEC,LEVEL,FILTER]; each option behind the colon can be left out"
    )
    more = "; auto tries a sample and says what it chose. Repeat it for more fields." if auto else "."
    return click.option("--codec", multiple=True, metavar="[FIELD=]CODEC", callback=callback, help=text + more)


def source_options(function: _F) -> _F:
    """What decides how files become samples; the same for `convert` and `append`."""
    decorators = [
        click.option(
            "--layout",
            type=click.Choice(LAYOUTS),
            default="auto",
            show_default=True,
            help="How files become samples, see above.",
        ),
        click.option(
            "--field",
            "fields",
            multiple=True,
            metavar="NAME=SOURCE",
            callback=_checked("chunkstore._ingest.plan.specs", "parse_fields"),
            help="Take the array SOURCE as field NAME; repeat it for more. Arrays that are not named are left out.",
        ),
        click.option(
            "--dtype",
            multiple=True,
            metavar="[NAME=]TYPE",
            callback=_checked("chunkstore._ingest.plan.specs", "parse_dtypes"),
            help="Store field NAME (or all) as TYPE: integers exactly or not at all, floats rounded, and the report "
            "says so. float64 for longdouble, bfloat16 for files that hold it as raw bytes.",
        ),
        click.option("--include", multiple=True, metavar="GLOB", help="Take only files that match, e.g. 'train/*'."),
        click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out what matches, e.g. '*_mask.npy'."),
        click.option(
            "--on-error",
            type=click.Choice(["fail", "skip"]),
            default="fail",
            show_default=True,
            help="What to do about a file that is damaged or unlike the others: stop, with nothing written; or leave "
            "it out, list it with the reason, and exit with 1.",
        ),
        click.option(
            "--allow-pickle",
            is_flag=True,
            help="Read object arrays of arrays. They are pickles, which can run any code: only for files of your own.",
        ),
    ]
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def open_container(path: str) -> Any:
    """`chunkstore.open`, with advice for what is no container; directories and patterns of containers, too.

    Returns:
        A `Reader` (not annotated as such: the commands that use it are checked by their tests).
    """
    import chunkstore

    advise_if_no_container(path)
    return chunkstore.open(path)


def containers_of(path: str) -> list[str]:
    """The containers that FILE means: itself, or those of a directory or pattern; itself where there are none."""
    from chunkstore._read.many import containers_at

    try:
        return containers_at(path)
    except OSError:
        return [path]  # opening it will say what is wrong


def advise_if_no_container(path: str) -> None:
    """Say what to do with a directory, an `.npy` or an `.npz` where a container is wanted."""
    if os.path.isdir(path) and containers_of(path) == [path]:
        made = os.path.basename(os.path.abspath(path)) or "data"
        raise IsADirectoryError(
            f"{path}: this is a directory, and a container is wanted. Make one of it: "
            f"chunkstore convert {argument(path)} {argument(made + '.cks')}"
        )
    if path.endswith((".npy", ".npz")) and os.path.isfile(path):
        raise NotAContainerError(
            f"{path}: an {path[-4:]} file, and a container is wanted. Make one of it: "
            f"chunkstore convert {argument(path)} {argument(path[:-4] + '.cks')}"
        )


def refuse_stream(path: str) -> None:
    """`-` is standard output to most commands, and no container can be written to a stream."""
    if path == "-":
        raise click.UsageError("nothing is written to standard output here: name a file (./- is one called -)")


def refuse_container_sources(sources: Sequence[str]) -> None:
    """A container as a source is a mix-up of arguments, or a wish for another command."""
    for source in sources:
        if not source.endswith((".npy", ".npz")) and is_container(source):
            raise IngestError(
                f"{source}: this is a container already, and sources are directories, .npy or .npz files. "
                f"Its files come back with: chunkstore export {argument(source)} DIRECTORY"
            )


def check_fields(ds: Any, fields: tuple[str, ...]) -> None:
    """A field of `--field` that the reader does not have is an error of usage."""
    for name in fields:
        if name not in ds.fields:
            known = ", ".join(map(repr, ds.fields))
            raise click.BadParameter(f"{ds.path} has no field {name!r}; it has {known}", param_hint="'--field'")
