"""Names that pair: `images/0001.npy` + `labels/0001.npy`, `0001_image.npy` + `0001_label.npy`, `image_0001.npy` +
`label_0001.npy`, `0001/image.npy` + `0001/label.npy`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from chunkstore._storage.names import natural_sort

Pattern = Literal["folder", "suffix", "prefix", "name"]
Part = tuple[str, str]  # of a name: role and key
MAX_ROLES: Final = 16
ROLE_WORDS: Final = frozenset({
    "image", "images", "img", "imgs", "mask", "masks", "label", "labels", "lbl", "target", "targets", "input",
    "inputs", "output", "outputs", "x", "y", "feature", "features", "feat", "feats", "seg", "segs", "segmentation",
    "gt", "truth", "depth", "depths", "rgb", "left", "right", "audio", "text", "texts", "video", "pose", "poses",
    "keypoints", "lr", "hr", "low", "high", "noisy", "clean", "source", "src", "tgt", "data", "annotation",
    "annotations", "boxes", "bbox", "bboxes", "class", "classes", "flow", "normal", "normals", "caption",
    "captions",
})  # fmt: skip
_TAIL: Final = re.compile(r"(.+)([_.-])([^_./-]+)$", re.DOTALL)
_HEAD: Final = re.compile(r"((?:.*/)?)([^_./-]+)([_.-])([^/]+)$", re.DOTALL)


@dataclass(frozen=True)
class Pairing:
    """One way to read the names.

    Attributes:
        pattern: where the role stands.
        position: number of the path component, for `folder`.
        roles: in natural order; as in the name, separator included (`_image`, `/image`).
        keys: in the order of the files.
        files: per role, per key the number of the file, -1 where there is none.
    """

    pattern: Pattern
    position: int
    roles: list[str]
    keys: list[str]
    files: list[list[int]]

    @property
    def num_whole(self) -> int:
        """Keys that have every role."""
        return sum(-1 not in row for row in zip(*self.files, strict=True))

    @property
    def complete(self) -> bool:
        """Whether every key has every role."""
        return all(-1 not in column for column in self.files)

    @property
    def names(self) -> list[str]:
        """The roles as field names."""
        return [role.strip("_.-/") for role in self.roles]

    @property
    def spoken(self) -> bool:
        """Whether the roles are words that people give to the parts of a sample."""
        return all(name.lower() in ROLE_WORDS for name in self.names)


def stem(path: str) -> str:
    """Path without its suffix."""
    return path[:-4] if path[-4:].lower() in (".npy", ".npz") else path.rpartition(".")[0] or path


def find_pairings(paths: Sequence[str], numbers: Sequence[int]) -> list[Pairing]:
    """Ways to pair the files `numbers` of `paths`: most plausible first (spoken roles, complete ones, then folders from
    the left).
    """
    depth = min(paths[number].count("/") for number in numbers)
    ways: list[tuple[Pattern, int, Callable[[str], Part | None]]] = [
        *(("folder", position, partial(_folder, position)) for position in range(min(depth, 4))),
        ("suffix", 0, _suffix),
        ("prefix", 0, _prefix),
        ("name", 0, _name),
    ]
    found = [pairing for way in ways if (pairing := _pair(paths, numbers, *way)) is not None]
    return sorted(found, key=lambda pairing: (not pairing.spoken, not pairing.complete))


def _folder(position: int, name: str) -> Part:
    parts = name.split("/")
    role = parts.pop(position)
    return role, "/".join(parts)


def _suffix(name: str) -> Part | None:
    match = _TAIL.fullmatch(name)
    return (match[2] + match[3], match[1]) if match and not match[1].endswith("/") else None


def _prefix(name: str) -> Part | None:
    match = _HEAD.fullmatch(name)
    return (match[2] + match[3], match[1] + match[4]) if match else None


def _name(name: str) -> Part | None:
    folder, slash, base = name.rpartition("/")
    return (slash + base, folder) if slash else None


def _pair(
    paths: Sequence[str],
    numbers: Sequence[int],
    pattern: Pattern,
    position: int,
    split: Callable[[str], Part | None],
) -> Pairing | None:
    """The pairing that `split` gives, if it is one."""
    parts = []
    seen: set[str] = set()
    for number in numbers:
        part = split(stem(paths[number]))
        if part is None:
            return None
        seen.add(part[0])
        if len(seen) > MAX_ROLES:
            return None
        parts.append(part)
    if len(seen) < 2:
        return None
    roles = natural_sort(list(seen))
    column = {role: place for place, role in enumerate(roles)}
    row: dict[str, int] = {}
    for _, key in parts:
        row.setdefault(key, len(row))
    files = [[-1] * len(row) for _ in roles]
    for number, (role, key) in zip(numbers, parts, strict=True):
        if files[column[role]][row[key]] != -1:
            return None
        files[column[role]][row[key]] = number
    return Pairing(pattern, position, roles, list(row), files)
