"""Settings of every test: shapes are checked, and a field that broadcasts along the wrong axes is an error."""

import atexit
import gc
import os
import re
import shutil
import tempfile
import weakref
from pathlib import Path

import pytest

from tests import OLDER_EMITTERS

# in the environment, so that the programs that tests start have them too: no search for an accelerator, and a compiler
# that does not optimise what runs for a moment
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0 {OLDER_EMITTERS}"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# tests run beside tests: more threads of BLAS and of torch would only wait for a core
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
# what takes a test long to compile, others of this run and the programs that they start need not, but no earlier run
# has compiled it for them
if "ASYNCPATCH_TESTS_CACHE" not in os.environ:
    folder = os.environ["ASYNCPATCH_TESTS_CACHE"] = tempfile.mkdtemp(prefix="asyncpatch_tests_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["ASYNCPATCH_TESTS_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


class _Remembering:
    """JAX for flax, which asks for the shape of every parameter's initializer whenever a module is applied.

    Tracing the same initializers again and again is a quarter of tracing a small network.
    """

    def __init__(self, jax):
        self.jax, self.shapes = jax, weakref.WeakKeyDictionary()

    def __getattr__(self, name):
        return getattr(self.jax, name)

    def eval_shape(self, init):
        asked = dict(zip(init.__code__.co_freevars, (cell.cell_contents for cell in init.__closure__), strict=True))
        known = self.shapes.setdefault(asked["init_fn"], {})
        key = repr((asked["init_args"], asked["init_kwargs"], self.jax.config.x64_enabled))
        if key not in known:
            known[key] = self.jax.eval_shape(init)
        return known[key]


def pytest_configure(config):
    """JAX, for those that run tests: what hands them out to others has no need of it, and they wait for that."""
    if config.option.dist != "no" and not hasattr(config, "workerinput"):
        return
    import flax.core.scope
    import jax

    jax.config.update("jax_numpy_rank_promotion", "raise")
    # tracing makes millions of small objects, which a collector that looks after every 700 of them finds alive
    gc.set_threshold(200_000, 20, 50)
    # XLA reads its flags here, and libtpu, which does not know these, when a test first compiles for TPUs
    jax.devices()
    os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace(OLDER_EMITTERS, "")
    flax.core.scope.jax = _Remembering(jax)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    """Those that run tests end once they have told all: to search gigabytes of programs for garbage, and then to take
    them apart one by one, takes many seconds.
    """
    gc.freeze()
    result = yield
    if hasattr(session.config, "workerinput"):
        os._exit(0)
    return result


# tests that start programs of their own take longest. They come first: a long one that comes last leaves a core idle
_LONG = ("test_sharding.py", "test_processes.py", "test_train.py", "test_train_tpm.py", "test_scenes_training.py")
# `pytest -m fast` is all but what starts programs or has a network of torch beside it, which their files' first lines
# tell, and but the files here, which compile for TPUs, train or compile much else (docs/contributing.md)
_NOT_FAST = re.compile(
    r"^(import|from) (subprocess|torch|diffusers|transformers|tests import .*tiny\w*)\b", re.MULTILINE
)
_COMPILE_MUCH = """
    attention benchmark compile concave concave_cells concave_networks convolution elbo grpo inpainting jax_settings
    judge kernels launch level_times losses scenes scenes_training schedules solvers text_guidance tpm_schedule
    train_alignment zigzag
"""


def _fast(path: Path) -> bool:
    return path.stem.removeprefix("test_") not in _COMPILE_MUCH.split() and not _NOT_FAST.search(path.read_text())


def pytest_ignore_collect(collection_path, config):
    """With `-m fast`, the other files are not even imported: torch alone takes longer than many a test."""
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if config.option.markexpr == "fast" and is_test and not _fast(collection_path) else None


def pytest_collection_modifyitems(items):
    fast = {path for path in {item.path for item in items} if _fast(path)}
    for item in items:
        if item.path in fast:
            item.add_marker("fast")
    items.sort(key=lambda item: item.path.name not in _LONG)
