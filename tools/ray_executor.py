"""Ray as an executor: `chunkstore.convert(..., executor=RayExecutor())` after `ray.init()`.

Ray's own `ray.util.multiprocessing` has no futures; this is all that is missing. Copy it where you need it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import ray


class RayExecutor(Executor):
    """Each call is a Ray task. Ray does a task again whose worker died, three times by default; see `options`.

    Args:
        options: of the tasks, such as `num_cpus=2` or `max_retries=0`.
    A future that is waiting cannot be cancelled: its task runs, and its result is dropped.
    """

    def __init__(self, **options: Any) -> None:
        self._call = ray.remote(_call).options(**options)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As `Executor.submit`."""
        future: Future[Any] = self._call.remote(fn, args, kwargs).future()
        return future


def _call(fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    return fn(*args, **kwargs)
