"""The public names of the package: all there, sorted, and nothing else."""

from __future__ import annotations

import types

import pytest

import chunkstore
from chunkstore import errors


def public(module: types.ModuleType) -> dict[str, object]:
    """What a user sees in a module: names without underscore, less submodules and `annotations`."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name != "annotations"
        and not (isinstance(value, types.ModuleType) and value.__name__.startswith("chunkstore."))
    }


def test_all_is_sorted_and_unique() -> None:
    """`__all__` is in alphabetical order, each name once."""
    assert list(chunkstore.__all__) == sorted(set(chunkstore.__all__))


def test_every_name_is_importable() -> None:
    """Each name of `__all__` can be had from the package, and `dir()` shows it."""
    missing = [name for name in chunkstore.__all__ if not hasattr(chunkstore, name)]
    assert missing == []
    assert set(chunkstore.__all__) <= set(dir(chunkstore))


def test_nothing_private_leaks() -> None:
    """What the package has besides `__all__` is private: no helper, no imported module is in sight."""
    assert sorted(set(public(chunkstore)) - set(chunkstore.__all__)) == []
    assert [name for name in chunkstore.__all__ if name.startswith("_")] == ["__version__"]


def test_every_error_is_exported() -> None:
    """Each class in errors.py is an error of our tree, and the package has it under the same name."""
    classes = {name: value for name, value in public(errors).items() if isinstance(value, type)}
    assert len(classes) > 10
    for name, value in classes.items():
        assert issubclass(value, errors.ChunkstoreError)
        assert getattr(chunkstore, name, None) is value, f"chunkstore.{name} is missing"
        assert name in chunkstore.__all__


def test_adapters_are_imported_by_name() -> None:
    """The error says how; nothing else is there before."""
    with pytest.raises(AttributeError, match=r"`import chunkstore\.jax` comes first"):
        chunkstore.__getattr__("jax")
