"""An autoencoder's training step, compiled for TPUs that are not there; `launch.compile` asks and reads."""

import sys
from typing import Any

import jax
from ml_collections import ConfigDict

from asyncpatch_jax import sharding
from launch.autoencoding import parts
from launch.compiler import aot
from launch.compiler.flops import model_flops
from launch.compiler.topology import Topology


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Compile here. Request and answer are those of `aot.answer`; the parameters are the autoencoder's alone.

    Raises:
        ValueError: the request makes no sense.
    """
    where, config = Topology(request["topology"], request["slices"]), ConfigDict(request["config"])
    mesh = sharding.make_mesh(**config.mesh, devices=where.devices())
    made = parts.parts(config)
    program = parts.training(config, made, mesh)
    # what is computed again to save memory is no work of the model
    plain = config.copy_and_resolve_references()
    plain.model.remat = "none"
    whole = parts.training(plain, parts.parts(plain), sharding.make_mesh(devices=jax.devices()[:1]))
    found = {
        "images": config.train.batch,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(made.params)),
        "model_flops": model_flops(whole.fn, *whole.args),
    }
    return {**found, **aot.compiled(program, mesh.size, request["effort"])}


if __name__ == "__main__":
    aot.serve(answer, sys.argv)
