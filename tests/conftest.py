"""Settings of every test: shapes are checked, and a field that broadcasts along the wrong axes is an error."""

import os

# the thread pools of two test processes on two cores would only fight
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_platforms", "cpu")
