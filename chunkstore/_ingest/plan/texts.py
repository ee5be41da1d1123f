"""Many short texts as one UTF-8 blob and its offsets: no Python object per text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Texts:
    """A column of texts.

    Attributes:
        blob: the texts back to back.
        offsets: int64 [N+1]; text i is `blob[offsets[i]:offsets[i + 1]]`.
    """

    blob: bytes
    offsets: npt.NDArray[np.int64]

    @classmethod
    def pack(cls, texts: Iterable[str]) -> Texts:
        """Raises UnicodeEncodeError for a text with surrogates, as file names that are not UTF-8 have."""
        known = texts if isinstance(texts, list) else list(texts)
        offsets = np.zeros(len(known) + 1, np.int64)
        blob = "".join(known).encode()
        lengths = map(len, known)
        np.cumsum(np.fromiter(lengths, np.int64, len(known)), out=offsets[1:])
        if offsets[-1] != len(blob):  # not ASCII: characters are not bytes
            np.cumsum(np.fromiter((len(text.encode()) for text in known), np.int64, len(known)), out=offsets[1:])
        return cls(blob, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, place: int) -> str:
        return self.blob[self.offsets[place] : self.offsets[place + 1]].decode()

    def __iter__(self) -> Iterator[str]:
        bounds = self.offsets.tolist()
        blob = self.blob
        return (blob[start:stop].decode() for start, stop in itertools.pairwise(bounds))

    def slice(self, start: int, stop: int) -> Texts:
        """Texts `[start, stop)` with their own blob."""
        offsets = self.offsets[start : stop + 1]
        return Texts(self.blob[offsets[0] : offsets[-1]], offsets - offsets[0])
