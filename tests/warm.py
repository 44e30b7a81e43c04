"""What programs import, for those that `programs.py` starts: imported once, with no thread and no device of JAX."""

import grain  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import sklearn.datasets  # noqa: F401
import tqdm  # noqa: F401

from asyncpatch_jax.training import checkpoints, loop  # noqa: F401
from launch.shared import build, cli, pictures, programs, records  # noqa: F401
