"""Names that pair: `images/0001.npy` + `labels/0001.npy`, `images/img_0001.npy` + `masks/mask_0001.npy`,
`0001_image.npy` + `0001_label.npy`, `0001.npy` + `0001_mask.npy`, `image_0001.npy` + `label_0001.npy`,
`lj-audio-0001.npy` + `lj-mel-0001.npy`, `0001/image.npy` + `0001/label.npy`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from chunkstore._ingest.plan.specs import DATA
from chunkstore._storage.names import natural_sort

Pattern = Literal["folder", "affixes", "suffix", "prefix", "infix", "name"]
Part = tuple[str, str]  # of a name: role and key
Split = Callable[[str], Part | None]
MAX_ROLES: Final = 16
ROLE_WORDS: Final = frozenset({
    "image", "images", "img", "imgs", "mask", "masks", "label", "labels", "lbl", "target", "targets", "input",
    "inputs", "output", "outputs", "x", "y", "feature", "features", "feat", "feats", "seg", "segs", "segmentation",
    "gt", "truth", "depth", "depths", "rgb", "left", "right", "audio", "text", "texts", "video", "pose", "poses",
    "keypoints", "lr", "hr", "low", "high", "noisy", "clean", "source", "src", "tgt", "data", "annotation",
    "annotations", "boxes", "bbox", "bboxes", "class", "classes", "flow", "normal", "normals", "caption",
    "captions",
})  # fmt: skip
_NUM_TRIED: Final = 100  # names without `0001` beside `0001_mask` before none is expected: all cost 4 µs each
SPLIT_WORDS: Final = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev"})
# `X_train`, `trainLabel`, `Xtest`
_WORDS: Final = re.compile(r"[/_.\s-]|(?<=[a-z])(?=[A-Z])|(?<=\b[xyXY])(?=train|test|val)")
_TAIL: Final = re.compile(r"(.+)([_.-])([^_./-]+)$", re.DOTALL)
# A word in front of others, and how many there are before it.
_INFIXES: Final = [
    re.compile(rf"((?:.*/)?(?:[^/_.-]*[_.-]){{{position}}})([^/_.-]+[_.-])([^/]+)", re.DOTALL) for position in range(4)
]


@dataclass(frozen=True)
class Pairing:
    """One way to read the names.

    Attributes:
        pattern: where the role stands: a `folder`; a folder, and words before and behind the key (`affixes`); the last
            word (`suffix`), the first (`prefix`) or one between (`infix`); the whole `name`.
        position: number of the path component, for `folder` and `affixes`; of words before it in the name, for `infix`.
        roles: in natural order; as in the name, separator included (`_image`, `/image`); empty for `0001` beside
            `0001_mask`; for `affixes` the folder, and what is in front of the key and behind it: `images/img_/`.
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
        if self.pattern == "affixes":
            return [role.partition("/")[0] for role in self.roles]
        return [role.strip("_.-/") or DATA for role in self.roles]

    @property
    def spoken(self) -> bool:
        """Whether the roles are words that people give to the parts of a sample."""
        return all(name.lower() in ROLE_WORDS for name in self.names)

    @property
    def of_splits(self) -> bool:
        """Whether roles are of different splits: `images_train` and `images_val` are no parts of one sample."""
        return len({split_of(role) for role in self.roles} - {""}) > 1


def split_of(name: str) -> str:
    """The word that says to which split a file or folder belongs: `test` in `test/x` and `x_test`; else empty."""
    return next((word for word in map(str.lower, _WORDS.split(name)) if word in SPLIT_WORDS), "")


def stem(path: str) -> str:
    """Path without its suffix."""
    return path[:-4] if path[-4:].lower() in (".npy", ".npz") else path.rpartition(".")[0] or path


def find_pairings(paths: Sequence[str], numbers: Sequence[int]) -> list[Pairing]:
    """Ways to pair the files `numbers` of `paths`: most plausible first (spoken roles, complete ones, then folders from
    the left).
    """
    names = [stem(paths[number]) for number in numbers]
    found = [pairing for way in _ways(names) if (pairing := _pair(names, numbers, *way)) is not None]
    found = [
        pairing for pairing in found if pairing.pattern != "affixes" or pairing.num_whole * 2 > len(pairing.keys) > 1
    ]
    return sorted(found, key=lambda pairing: (not pairing.spoken, not pairing.complete))


def _ways(names: Sequence[str]) -> Iterator[tuple[Pattern, int, Split]]:
    """Patterns, their positions, and how each splits a name."""
    depth = min(name.count("/") for name in names)
    for position in range(min(depth, 4)):
        affixes = _affixes(names, position)
        if affixes:
            yield "affixes", position, partial(_folder_and_affixes, position, affixes)
        yield "folder", position, partial(_folder, position)
    yield "suffix", 0, _suffix
    behind = partial(_behind, set(names))
    if any(behind(name)[0] for name in names[:_NUM_TRIED]):
        yield "suffix", 0, behind
    for position, pattern in enumerate(_INFIXES):
        yield "infix" if position else "prefix", position, partial(_word, pattern)
    yield "name", 0, _name


def _folder(position: int, name: str) -> Part:
    parts = name.split("/")
    role = parts.pop(position)
    return role, "/".join(parts)


def _folder_and_affixes(position: int, affixes: Mapping[str, tuple[str, str]], name: str) -> Part:
    """Folders whose files have words of the role in their names, too: `images/img_1` and `masks/mask_1`."""
    parts = name.split("/")
    role = parts.pop(position)
    head, tail = affixes[role]
    parts[-1] = parts[-1][len(head) : len(parts[-1]) - len(tail)]
    return f"{role}/{head}/{tail}", "/".join(parts)


def _affixes(names: Sequence[str], position: int) -> dict[str, tuple[str, str]]:
    """Per folder what its files have in front of the key and behind it; empty where that is the same in all."""
    folders: dict[str, list[str]] = {}
    for name in names:
        parts = name.split("/")
        folders.setdefault(parts[position], []).append(parts[-1])
        if len(folders) > MAX_ROLES:
            return {}
    heads = [_common(found) for found in folders.values()]
    tails = [
        _common([name[len(head) :][::-1] for name in found])[::-1]
        for head, found in zip(heads, folders.values(), strict=True)
    ]
    # What all roles have next to the key is a part of it: `LJ001-` in `mel-LJ001-` and `pitch-LJ001-`.
    heads = [head[::-1] for head in _unlike([head[::-1] for head in heads])]
    tails = _unlike(tails)
    if not any(heads) and not any(tails):
        return {}
    return dict(zip(folders, zip(heads, tails, strict=True), strict=True))


def _unlike(affixes: list[str]) -> list[str]:
    """The affixes without the words that all begin with; empty where they are the same."""
    if len(set(affixes)) == 1:
        return [""] * len(affixes)
    shared = max(len(_common(affixes)) - 1, 0)  # a separator stays
    return [affix[shared:] for affix in affixes]


def _common(names: Sequence[str]) -> str:
    """What all begin with, up to a separator."""
    ends = zip(min(names), max(names), strict=False)  # what is equal in these two is so in all between them
    shared = "".join(char for char, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], ends))
    return shared[: max(map(shared.rfind, "_.- ")) + 1]


def _suffix(name: str) -> Part | None:
    match = _TAIL.fullmatch(name)
    return (match[2] + match[3], match[1]) if match and not match[1].endswith("/") else None


def _behind(stems: set[str], name: str) -> Part:
    """Words, no numbers, behind stems that are files, too: `0001_mask` beside `0001`."""
    part = _suffix(name)
    return part if part is not None and part[1] in stems and not part[0][1:].isdigit() else ("", name)


def _word(pattern: re.Pattern[str], name: str) -> Part | None:
    match = pattern.fullmatch(name)
    return (match[2], match[1] + match[3]) if match else None


def _name(name: str) -> Part | None:
    folder, slash, base = name.rpartition("/")
    return (slash + base, folder) if slash else None


def _pair(
    names: Sequence[str],
    numbers: Sequence[int],
    pattern: Pattern,
    position: int,
    split: Split,
) -> Pairing | None:
    """The pairing that `split` gives, if it is one."""
    parts = []
    seen: set[str] = set()
    for name in names:
        part = split(name)
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
