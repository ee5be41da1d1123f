#!/usr/bin/env python3
"""Write the test vectors of the specification, or compare them with what is in the repository.

    tools/make_vectors.py            write spec/vectors/valid and spec/vectors/invalid
    tools/make_vectors.py --check    exit 1 if a file there differs, is missing, or is none of ours
    tools/make_vectors.py --all DIR  write them to another folder, with the variants that the repository does not hold

The bytes come from tools/_vectors, which was written from the text of the specification and shares no line with the
package. They depend on nothing but that code: no random numbers, no compressor, no clock.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from _vectors import invalid, valid

FOLDER = Path(__file__).resolve().parent.parent / "spec" / "vectors"


def build(variants: bool = False) -> dict[str, bytes]:
    """Return the content of every file, by its path in the folder of the vectors."""
    files: dict[str, bytes] = {}
    for vector in (factory() for factory in valid.FACTORIES):
        data = bytes(vector.image.data)
        expectation = {"sha256": hashlib.sha256(data).hexdigest(), **vector.expectation()}
        text = json.dumps(expectation, indent=1, ensure_ascii=False) + "\n"
        add(files, f"valid/{vector.name}", ".json", data, text)
    for case in invalid.cases():
        if case.name in invalid.VARIANTS and not variants:
            continue
        lines = {
            "expect": case.expect,
            "where": case.where,
            "section": case.section,
            "sha256": hashlib.sha256(case.data).hexdigest(),
            "what": case.what,
        }
        text = "".join(f"{name}: {value}\n" for name, value in lines.items())
        add(files, f"invalid/{case.name}", ".txt", case.data, text)
    return files


def add(files: dict[str, bytes], stem: str, suffix: str, data: bytes, text: str) -> None:
    """Add a container and the text beside it; names and contents must be new."""
    if f"{stem}.cks" in files or data in files.values():
        raise ValueError(f"{stem}: a vector of this name or with these bytes is there already")
    files[f"{stem}.cks"] = data
    files[stem + suffix] = text.encode("utf-8", "backslashreplace")  # half a surrogate pair as its escape


def differences(files: dict[str, bytes], folder: Path) -> list[str]:
    """Return a line for each file of the repository that is not as built here."""
    there = {f"{kind}/{p.name}": p for kind in ("valid", "invalid") for p in (folder / kind).glob("*")}
    lines = [f"{path}: not built by this tool" for path in sorted(set(there) - set(files))]
    for path, content in files.items():
        if path not in there:
            lines.append(f"{path}: missing")
        elif there[path].read_bytes() != content:
            lines.append(f"{path}: differs")
    return lines


def write(files: dict[str, bytes], folder: Path) -> None:
    """Write all files, and remove those of earlier runs."""
    for path in differences(files, folder):
        if path.endswith(": not built by this tool"):
            (folder / path.split(": ")[0]).unlink()
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    containers = [path for path in files if path.endswith(".cks")]
    print(f"{len(containers)} containers, {sum(map(len, files.values()))} bytes in {folder}")


def main(arguments: list[str]) -> int:
    """Run one of the three forms of the command."""
    if not arguments:
        write(build(), FOLDER)
    elif arguments == ["--check"]:
        lines = differences(build(), FOLDER)
        print(*lines, sep="\n", end="\n" if lines else "")
        return 1 if lines else 0
    elif arguments[0] == "--all" and len(arguments) == 2:
        write(build(variants=True), Path(arguments[1]))
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
