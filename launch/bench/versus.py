"""Our UNet and PyTorch's in turns: one training step, and one synchronous sample, of networks that compute the same."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asyncpatch_jax.types import Condition
from launch.bench import cases, reference
from launch.bench.timing import Timed, compiled, interleaved, on_cpu, ratio
from launch.shared import build, pictures
from launch.shared.generate import Inputs, image_keys


def compare(run: build.Run, batch: int, repeats: int, *, compile_torch: bool) -> dict[str, Any]:
    """Seconds of both, on the same device, with the same weights to begin with.

    The log-variance head, which PyTorch's network has not, is left out.

    Args:
        compile_torch: run PyTorch's through `torch.compile` too.

    Returns:
        {"torch": its version, "threads", "parameters": [ours, theirs], "difference": the largest between their outputs,
        as a share of the largest output, "rows"}.

    Raises:
        ValueError: what `reference.check` raises.
    """
    import torch

    run = _bare(run)
    device = "cuda" if jax.devices()[0].platform == "gpu" else "cpu"
    torch.set_float32_matmul_precision("high")  # as XLA's default: no change on a CPU, TF32 on a GPU
    net = reference.network(run.model, run.shape).to(device, memory_format=torch.channels_last)
    reference.copy_params(net, run.params, run.model)
    images = torch.rand(batch, *run.shape).movedim(-1, 1).to(device, memory_format=torch.channels_last) * 2 - 1
    labels = torch.zeros(batch, dtype=torch.long, device=device) if run.num_classes else None
    report = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "parameters": [
            sum(leaf.size for leaf in jax.tree.leaves(run.params)),
            sum(p.numel() for p in net.parameters()),
        ],
        "difference": _difference(run, net, device),
    }
    theirs = {"PyTorch": net, **({"PyTorch, compiled": torch.compile(net)} if compile_torch else {})}
    training, sampling = _training(run, batch), _sampling(run, batch)
    rows = []
    for what, ours, make in (
        ("training step", training, partial(reference.train_step, config=run.config)),
        (f"{run.config.sample.steps} steps of Euler's", sampling, partial(_sampler, run)),
    ):
        print(f"{what}, ours and PyTorch's in turns", flush=True)
        calls = {"JAX": ours, **{name: make(one, images=images, labels=labels) for name, one in theirs.items()}}
        taken = interleaved(calls, repeats)
        rows += [_row(f"{what}, {name}", batch, taken[name], taken["PyTorch"]) for name in calls]
    return {**report, "rows": rows}


def _row(name: str, batch: int, taken: Timed, theirs: Timed) -> dict[str, Any]:
    median = statistics.median(taken.seconds)
    return {
        "name": name,
        "images_per_s": batch / median,
        "ms": 1e3 * median,
        "to_torch": ratio(taken.seconds, theirs.seconds),
        **({"to_torch_processor": ratio(taken.processor_seconds, theirs.processor_seconds)} if on_cpu() else {}),
        **taken._asdict(),
    }


def _bare(run: build.Run) -> build.Run:
    """Without a log-variance head, along Euler's steps, and with no weight at 0, where mistakes would hide."""
    config = run.config.copy_and_resolve_references()
    config.model.log_variance = False
    config.sample.update({"solver": "euler", "grid": "linear"})
    params = {name: leaf for name, leaf in run.params.items() if name != "log_variance"}
    rng = np.random.default_rng(0)
    moved = jax.tree.map(
        lambda leaf: leaf + np.float32(0.02) * rng.standard_normal(leaf.shape, np.float32), jax.device_get(params)
    )
    return run._replace(config=config, model=run.model.clone(log_variance=False), params=jax.device_put(moved))


def _difference(run: build.Run, net: Any, device: str) -> float:
    import torch

    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(2, *run.shape)).astype(np.float32), np.array([0.2, 0.9], np.float32)
    label = np.array([0, max(run.num_classes - 1, 0)])
    cond = Condition(label=jnp.asarray(label, jnp.int32)) if run.num_classes else None
    # in float32, whatever the run computes in
    model = run.model.clone(dtype=jnp.float32)
    with jax.default_matmul_precision("highest"):
        ours, _ = jax.jit(model.apply)({"params": run.params}, x, t.reshape(-1, 1, 1, 1), cond)
    net.eval()
    with torch.inference_mode():
        given = torch.tensor(x).movedim(-1, 1).to(device), torch.tensor(t).to(device)
        labels = torch.tensor(label).to(device) if run.num_classes else None
        theirs = net(*given, labels, return_dict=False)[0].movedim(1, -1).cpu().numpy()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _training(run: build.Run, batch: int) -> Callable[[], Any]:
    state, steps = cases.train_steps(run, only="synchronous")
    data, key = cases.batch_of(run, batch), jax.random.key(0)
    call = compiled(steps["synchronous"], state, data, key).call

    def step() -> Any:
        nonlocal state
        state, metrics = call(state, data, key)
        return state, metrics

    return step


def _sampling(run: build.Run, batch: int) -> Callable[[], Any]:
    label = jnp.zeros(batch, jnp.int32) if run.num_classes else None
    inputs = Inputs(keys=image_keys(0, batch), known=jnp.zeros((batch, *run.shape)), label=label)
    images = jax.jit(partial(cases.schedules(run)["sync"].images, pictures.net(run)))
    return partial(compiled(images, run.params, inputs).call, run.params, inputs)


def _sampler(run: build.Run, net: Any, images: Any, labels: Any) -> Callable[[], Any]:
    return reference.sampler(net, run.config, images, labels, run.config.sample.steps)
