"""Compilation with Numba, cached on disk between runs.

Numba keys its cache by the file of each function alone, so a function would go on calling an old version
of another module's. Here the cache directory is named after the content of all modules that compiled code
is made of: another version of any of them is another cache.
"""

import hashlib
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
import platformdirs

from fairlead.errors import FairleadError

prange = numba.prange

signed: Any = np.int64
"""Applied to the index of a `prange`, which Numba makes unsigned: mixed signs would compile all twice."""

F = TypeVar("F", bound=Callable[..., Any])

_KEEP_S = 14 * 24 * 3600.0
"""Caches of other versions are removed when they have not been touched for so long."""


@cache
def source_digest() -> str:
    """16 hex digits that change with the simulator, the view and everything else that is compiled."""
    package = Path(__file__).parent
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(package.rglob("*.py")):
        content = source.read_bytes()
        # Constants are frozen into compiled code: modules that may supply some count as well.
        if source.parent.name in ("view", "simulator") or b"njit" in content:
            digest.update(source.relative_to(package).as_posix().encode())
            digest.update(content)
    return digest.hexdigest()[:16]


def cache_directory() -> Path:
    """Where this version's compiled code is kept."""
    return Path(platformdirs.user_cache_dir("fairlead")) / "compiled" / source_digest()


@cache
def _made_cache_directory() -> str:
    try:
        cache_directory().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FairleadError(
            f"compiled code cannot be kept in {cache_directory()} ({error.strerror}): set XDG_CACHE_HOME to "
            "a directory that can be written to"
        ) from None
    return str(cache_directory())


def is_cached() -> bool:
    """Whether anything was compiled by this version before: otherwise the first run will take a minute."""
    return any(cache_directory().rglob("*.nbi"))


def remove_old_caches() -> None:
    """Drop the compiled code of versions that nobody has run for two weeks."""
    for other in cache_directory().parent.glob("*"):
        if other != cache_directory() and time.time() - other.stat().st_mtime > _KEEP_S:
            shutil.rmtree(other, ignore_errors=True)


def njit(*, parallel: bool = False, inline: bool = False, allocates: bool = True) -> Callable[[F], F]:
    """`numba.njit` with this package's cache directory (other users of Numba keep theirs).

    Args:
        parallel: for functions with a `prange`.
        inline: for small functions that many others call: a call that passes the simulator's state copies
            more than a hundred words. They must not allocate.
        allocates: whether arrays may be made. Otherwise no references are counted, which at every call
            would take longer, for the arrays of the state, than what the simulator's functions do.
    """
    counted = allocates and not inline
    options: dict[str, Any] = {"parallel": parallel, "forceinline": inline, "_nrt": counted}

    def decorate(function: F) -> F:
        settings: Any = numba.config
        before = settings.CACHE_DIR
        settings.CACHE_DIR = _made_cache_directory()
        try:
            compiled: Any = numba.njit(cache=True, **options)(function)
        finally:
            settings.CACHE_DIR = before
        # To the type checker it stays the function that it was.
        return cast(F, compiled)

    return decorate
