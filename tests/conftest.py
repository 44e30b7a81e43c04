"""Settings of every test: shapes are checked, and a field that broadcasts along the wrong axes is an error."""

import os

from tests import OLDER_EMITTERS

# in the environment, so that the programs that tests start have them too: no search for an accelerator, and a compiler
# that does not optimise what runs for a moment
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0 {OLDER_EMITTERS}"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# what a test compiles, no earlier run has compiled for it
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
# XLA's older emitters compile a network in less than half the time. It reads its flags here and libtpu, which does not
# know this one, when a test first compiles for TPUs
jax.devices()
os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace(OLDER_EMITTERS, "")
