"""The arithmetic that a function asks for, counted in its traced program: what utilisation of a chip is measured by.

Only matrix products and convolutions count, as is usual for "model FLOPs" (Chowdhery et al. 2022, arXiv 2204.02311,
appendix B); what a compiler adds or leaves out does not change it.
"""

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import jax


def model_flops(fn: Callable[..., Any], *args: Any) -> float:
    """FLOPs of all devices together in one call of `fn` on arrays or their shapes; a multiply-add is two.

    Loops count as often as they run, those of unknown length once; of branches the dearest counts. What is recomputed
    in a backward pass counts again: trace without `remat` for the FLOPs of the model itself.
    """
    return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(program: Any) -> float:
    total = 0.0
    for eqn in program.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (axes, _), _ = params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2.0 * eqn.outvars[0].aval.size * prod(shape[axis] for axis in axes)
        elif name == "conv_general_dilated":
            kernel, numbers = eqn.invars[1].aval, params["dimension_numbers"]
            total += 2.0 * eqn.outvars[0].aval.size * kernel.size / kernel.shape[numbers.rhs_spec[0]]
        elif name == "cond":
            total += max(_count(branch.jaxpr) for branch in params["branches"])
        else:
            times = params["length"] if name == "scan" else 1
            # a kernel's body runs for each cell of its grid
            times = prod(params["grid_mapping"].grid) if name == "pallas_call" else times
            total += times * sum(map(_count, _inner(params)))
    return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The programs that an operation is made of."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if hasattr(one, "eqns"):
                yield one
            elif hasattr(getattr(one, "jaxpr", None), "eqns"):
                yield one.jaxpr
