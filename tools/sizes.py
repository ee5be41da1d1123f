#!/usr/bin/env python3
"""Print the lines of each module and its longest function; fail where one is too large to be read in one go.

A function's length is that of its signature and body without the docstring. Usage: tools/sizes.py [FOLDER...]
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_MODULE_LINES = 600
MAX_FUNCTION_LINES = 50
ROOT = Path(__file__).resolve().parent.parent

Function = ast.FunctionDef | ast.AsyncFunctionDef


def function_lines(node: Function) -> int:
    """Count the lines of a function, docstring excluded."""
    doc = node.body[0]
    doc_lines = 0
    if ast.get_docstring(node) is not None:
        doc_lines = (doc.end_lineno or doc.lineno) - doc.lineno + 1
    return (node.end_lineno or node.lineno) - node.lineno + 1 - doc_lines


def functions(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (lines, name:line) of every function, nested ones included."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield function_lines(node), f"{node.name}:{node.lineno}"


def measure(path: Path) -> tuple[int, int, str]:
    """Return (lines of the module, lines of its longest function, name of that function)."""
    text = path.read_text("utf-8")
    longest, name = max(functions(ast.parse(text)), default=(0, "-"))
    return len(text.splitlines()), longest, name


def main(folders: list[str]) -> int:
    """Print the table, largest module first; return 1 when a limit is exceeded."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    rows = sorted(((measure(path), path) for path in paths), reverse=True)
    num_excessive = 0
    print("lines  longest function")
    for (lines, longest, name), path in rows:
        excessive = lines > MAX_MODULE_LINES or longest > MAX_FUNCTION_LINES
        num_excessive += excessive
        mark = "  <- too long" if excessive else ""
        print(f"{lines:5}  {longest:3}  {path.relative_to(ROOT)} {name}{mark}")
    print(f"limits: {MAX_MODULE_LINES} and {MAX_FUNCTION_LINES} lines; {num_excessive} modules exceed them")
    return 1 if num_excessive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["chunkstore", "tools"]))
