"""A policy's folder as the library reads it: without `launch`, from its checkpoints alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax.sampling import Synchronous, linear
from asyncpatch_jax.training import policies
from asyncpatch_jax.training.checkpoints import Checkpoints
from asyncpatch_jax.training.step import adam, create
from asyncpatch_jax.types import Condition
from tests.drawn import params_like
from tests.test_damage import Stream

SETTINGS = {"patch": 2, "width": 4, "depth": 1, "heads": 1, "global_tokens": 1, "cell": None}
SHAPE = (4, 4, 1)
OPTIMIZER = adam(1e-3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder, and the parameters of its two steps."""
    folder = tmp_path_factory.mktemp("runs") / "policy"
    module = policies.module({**SETTINGS, "gain": 2.0, "space": "velocity"}, 3, 0)
    begin = jax.device_get(params_like(policies.shapes(module, SHAPE)))
    known = {"num_classes": 3, "context_dim": 0, "shape": SHAPE}
    record = {"config": {"policy": {**SETTINGS, "gain": 2.0, "space": "velocity"}}, "policy": known}
    params = {step: jax.tree.map(lambda leaf, step=step: leaf + step, begin) for step in (1, 2)}
    with Checkpoints(folder / "checkpoints", record=record) as checkpoints:
        for step in params:
            checkpoints.save(step, jax.jit(create, static_argnums=1)(params[step], OPTIMIZER), Stream())
    return folder, params


def test_a_folder_is_a_module_its_parameters_and_what_its_answers_mean(trained):
    folder, params = trained
    for step, expected in ((None, params[2]), (1, params[1])):
        policy = policies.load(folder, step)
        assert (policy.gain, policy.space) == (2.0, "velocity")
        assert (policy.module.num_classes, policy.module.patch, policy.module.width) == (3, 2, 4)
        for a, b in zip(jax.tree.leaves(policy.params), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)
    cond = Condition(label=jnp.zeros(1, jnp.int32))
    schedule = policy.schedule(Synchronous(linear(3)), cond, gamma=0.5)
    assert float(schedule.gain) == 1.0  # the bound that it was trained with, times gamma
    assert schedule.num_steps == 3


def test_what_is_no_policy_is_told(trained, tmp_path):
    folder, _ = trained
    with pytest.raises(FileNotFoundError, match="expected a trained policy in nowhere, found none"):
        policies.load("nowhere")
    with pytest.raises(FileNotFoundError, match=r"expected checkpoint 7 in .*, got steps \[1, 2\]"):
        policies.load(folder, 7)
    with Checkpoints(tmp_path / "checkpoints", record={"config": {}, "data": {}}) as checkpoints:
        checkpoints.save(1, create({"w": jnp.zeros(1)}, OPTIMIZER), Stream())
    with pytest.raises(ValueError, match="expected checkpoints of a policy in"):
        policies.load(tmp_path)
