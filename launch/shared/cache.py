"""XLA's compiled programs are kept between starts, so that the second start of a run need not compile again.

JAX finds a program again by the program itself, the versions of JAX and XLA, their flags, and the kind of device, a
CPU's instruction set included: a home that machines of several kinds share is safe. What cannot be read is compiled.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import jax


def folder(environment: Mapping[str, str]) -> str | None:
    """Where to keep them: asyncpatch_jax in the user's cache; None if nothing can be written there."""
    root = environment.get("XDG_CACHE_HOME") or os.path.join(environment.get("HOME", ""), ".cache")
    path = Path(root) / "asyncpatch_jax"
    if not path.is_absolute():
        return None
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return str(path) if os.access(path, os.W_OK) else None


def start(environment: Mapping[str, str]) -> None:
    """Keep programs from here on; in JAX_COMPILATION_CACHE_DIR (a folder or a bucket) where that is set."""
    if "JAX_COMPILATION_CACHE_DIR" not in environment:
        jax.config.update("jax_compilation_cache_dir", folder(environment))


def stop() -> None:
    """Compile everything anew: for mains that measure compiling."""
    jax.config.update("jax_enable_compilation_cache", False)
