"""One program compiled for TPUs that are not there, and what the compiler says of it, as it says it.

A compiler may end the process that it runs in: `ahead` runs a module in one of its own, `python -m launch.compiler.aot
REQUEST ANSWER`, two JSON files. `launch.compiler.report` makes sense of the answer.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from asyncpatch_jax import sharding
from asyncpatch_jax.data.dataset import Dataset
from asyncpatch_jax.texts import read_text
from launch.compiler import cost, hlo
from launch.compiler.flops import model_flops
from launch.compiler.topology import Topology
from launch.shared import build, fields, programs

_SIZE = r"([\d.]+)([KMGT]?)"
_OUT_OF_MEMORY = (
    re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
)
_CHILD = [sys.executable, "-m"]
_LINES = 15  # of what a process that died has said
# no search for a TPU of this machine, and no lock on it: nothing runs there
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def ahead(request: dict[str, Any], timeout: float, module: str = "launch.compiler.aot") -> dict[str, Any]:
    """Compile one program in a process of its own.

    Args:
        request: as the module's `answer` takes it.
        timeout: seconds.
        module: a main that calls `serve`.

    Returns:
        What that gives; or {"failed": how the process ended, "stderr": its last lines}.

    Raises:
        ValueError: the request makes no sense.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(request))
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        try:
            done = subprocess.run(
                [*_CHILD, module, str(asked), str(answered)],
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": path},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            return {"failed": f"not done after {timeout:g} s", "stderr": _last(error.stderr)}
        if done.returncode:
            return {"failed": _ending(done.returncode), "stderr": _last(done.stderr)}
        answer = json.loads(read_text(answered))
    if "mistake" in answer:
        raise ValueError(answer["mistake"])
    return answer


def _ending(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name} (exit code {code})"


def _last(text: bytes | None) -> list[str]:
    return (text or b"").decode(errors="replace").strip().splitlines()[-_LINES:]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Compile here.

    Args:
        request: "config" (plain), "topology", "slices", "classes" (of the data), "program" (train, sample, forward,
            gradient), "effort" (None: the compiler's own), "batch" (not of train), "times" (as `launch.shared.fields`,
            of forward and gradient).

    Returns:
        "images" (of one run), "parameters", "model_flops" (of all chips, by `launch.compiler.flops`), and what
        `compiled` gives.

    Raises:
        ValueError: the request makes no sense.
    """
    where = Topology(request["topology"], request["slices"])
    config = ConfigDict(request["config"])
    run = _run(config, request["classes"])
    mesh = sharding.make_mesh(**config.mesh, devices=where.devices())
    program = _program(request, config, run, mesh)
    found = {
        "images": config.train.batch if request["program"] == "train" else request["batch"],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.params)),
        "model_flops": _model_flops(request, config, program),
    }
    return {**found, **compiled(program, mesh.size, request["effort"])}


def compiled(program: programs.Program, chips: int, effort: str | None) -> dict[str, Any]:
    """Compile a program in this process.

    Args:
        chips: that it is for.
        effort: None: the compiler's own.

    Returns:
        "chips", "seconds" {"trace", "compile"}, "host_bytes" (the most that this process held), "argument_bytes" (by
        the shapes and layouts); and "memory" {name: bytes}, "xla" {"flops", "bytes"}, "once" and "total" {name: value},
        "collectives" {kind: {name: value}}, "kernels", "loops" and "conditionals" as `launch.compiler.cost.Count` has
        them; or, of a program that does not fit, "needs" and "has" (bytes; None if the compiler does not say) and
        "message".
    """
    start = time.perf_counter()
    lowered = program.fn.lower(*program.args)
    traced = time.perf_counter()
    found: dict[str, Any] = {
        "chips": chips,
        "argument_bytes": sum(_bytes_on_chip(leaf) for leaf in jax.tree.leaves(program.args)),
    }
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        options |= {"xla_optimization_level": effort} if effort else {}
        try:
            ready = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            found |= _too_large(str(error))
        done = time.perf_counter()
        if "message" not in found:
            found |= _read(ready, _text(ready, Path(folder)), chips)
    seconds = {"trace": traced - start, "compile": done - traced}
    host = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**found, "seconds": seconds, "host_bytes": host}


def _run(config: ConfigDict, classes: int) -> build.Run:
    size = config.data.size
    return build.untrained(config, Dataset(None, classes, (), (size, size, config.data.channels)))


def _program(request: dict[str, Any], config: ConfigDict, run: build.Run, mesh: Mesh) -> programs.Program:
    if request["program"] == "train":
        return programs.training(config, run, mesh)
    if request["program"] == "sample":
        return programs.sampling(config, run, mesh, request["batch"])
    make = {"forward": fields.forward, "gradient": fields.gradient}[request["program"]]
    return make(run, mesh, request["batch"], request["times"])


def _model_flops(request: dict[str, Any], config: ConfigDict, program: programs.Program) -> float:
    if config.model.remat != "none" and request["program"] in ("train", "gradient"):
        # what is computed again to save memory is no work of the model
        config = config.copy_and_resolve_references()
        config.model.remat = "none"
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        program = _program(request, config, _run(config, request["classes"]), mesh)
    return model_flops(program.fn, *program.args)


def _bytes_on_chip(leaf: Any) -> int:
    return prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _text(compiled: Any, folder: Path) -> str:
    """The compiled program. As the compiler wrote it: JAX cannot read back every program that libtpu makes."""
    written = sorted(folder.glob("*after_codegen.txt"), key=lambda path: path.stat().st_size)
    return written[-1].read_text() if written else compiled.as_text()


def _read(compiled: Any, text: str, chips: int) -> dict[str, Any]:
    memory, xla = compiled.memory_analysis(), compiled.cost_analysis()
    counted = cost.count(hlo.parse(text), chips)
    return {
        "memory": {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
            "peak": memory.peak_memory_in_bytes,
        },
        "xla": {"flops": xla["flops"], "bytes": xla["bytes accessed"]},
        "once": counted.once._asdict(),
        "total": counted.total._asdict(),
        "collectives": {kind: one._asdict() for kind, one in counted.collectives.items()},
        "kernels": counted.kernels,
        "loops": counted.loops,
        "conditionals": counted.conditionals,
    }


def _too_large(message: str) -> dict[str, Any]:
    """What the compiler says when a program does not fit."""
    found = next(filter(None, (pattern.search(message) for pattern in _OUT_OF_MEMORY)), None)
    scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    needs, has = (float(found[i]) * scale[found[i + 1]] for i in (1, 3)) if found else (None, None)
    return {"needs": needs, "has": has, "message": message.splitlines()[0]}


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]], argv: Sequence[str]) -> None:
    """The main of a module that `ahead` runs: the answer to a request, or the user's mistake in it."""
    asked, answered = argv[1:]
    try:
        result = answer(json.loads(read_text(asked)))
    except ValueError as error:
        result = {"mistake": str(error)}
    Path(answered).write_text(json.dumps(result))


if __name__ == "__main__":
    serve(answer, sys.argv)
