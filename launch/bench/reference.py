"""PyTorch's counterpart of our UNet, for comparison: diffusers' `UNet2DModel`, built to compute the same.

It differs from what diffusers' defaults make of these widths in four points, so that the two networks have the same
parameters and, with `copy_params`, the same output: residual blocks that resample, RMS-normed queries and keys, no
biases on those, and our features of the time. PyTorch is imported where it is used, as it is no dependency.
"""

import importlib.util
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from asyncpatch_jax.models import UNet
from asyncpatch_jax.models.times import sinusoid
from launch.shared import build

_FEATURES = 256  # of a time


def check(run: build.Run) -> None:
    """Refuse what has no counterpart.

    Raises:
        ValueError: PyTorch or diffusers is missing; another network than a UNet; or one that diffusers cannot build:
            without attention, with a context, another norm, other widths.
    """
    missing = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"expected PyTorch and diffusers for --parts=torch, found no {' and no '.join(missing)}")
    model = run.model
    if not isinstance(model, UNet):
        raise ValueError(f"expected a UNet to compare with PyTorch's, got {type(model).__name__}")
    first = model.multipliers[0]
    beside = model.context_dim or model.reference
    if model.norm != "group" or model.base % 32 or first != 1 or not model.attention or beside:
        raise ValueError(
            "expected a UNet with group norm, a base width that 32 divides, a first multiplier of 1, attention, and no "
            f"context or reference to compare with PyTorch's, got norm={model.norm}, base={model.base}, "
            f"multipliers={model.multipliers}, attention={model.attention}, context_dim={model.context_dim}, "
            f"reference={model.reference}"
        )


def network(model: UNet, shape: tuple[int, int, int]) -> Any:
    """A `UNet2DModel` with the layers of `model` and random weights; times in [0, 1], channels first."""
    import torch
    from diffusers import UNet2DModel
    from diffusers.models.embeddings import TimestepEmbedding

    levels = range(len(model.multipliers))
    kind = ["Attn" if level in model.attention else "Resnet" for level in levels]
    down = {"Attn": "AttnDownBlock2D", "Resnet": "ResnetDownsampleBlock2D"}
    up = {"Attn": "AttnUpBlock2D", "Resnet": "ResnetUpsampleBlock2D"}
    net = UNet2DModel(
        sample_size=shape[:2],
        in_channels=shape[2],
        out_channels=shape[2],
        block_out_channels=tuple(model.base * multiplier for multiplier in model.multipliers),
        layers_per_block=model.blocks,
        down_block_types=tuple(down[name] for name in kind),
        up_block_types=tuple(up[name] for name in reversed(kind)),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=model.head_dim,
        attn_norm_num_groups=32,
        dropout=model.dropout,
        num_class_embeds=model.num_classes + 1 if model.num_classes else None,
    )
    net.time_proj = _TimeFeatures(model.radians)
    net.time_embedding = TimestepEmbedding(_FEATURES, 4 * model.base)
    for module in net.modules():
        if type(module).__name__ == "Attention":
            module.norm_q, module.norm_k = (torch.nn.RMSNorm(model.head_dim, eps=1e-6) for _ in range(2))
            for name in ("to_q", "to_k", "to_v"):
                getattr(module, name).register_parameter("bias", None)
    return net


def _TimeFeatures(radians: float) -> Any:  # noqa: N802, it makes what is a class elsewhere
    import torch

    class TimeFeatures(torch.nn.Module):
        """`models.times.sinusoid`, with its frequencies read off its own slope at 0."""

        def __init__(self) -> None:
            super().__init__()
            features = lambda t: sinusoid(t, _FEATURES, radians)  # noqa: E731
            slope = jax.jvp(features, (np.zeros(1, np.float32),), (np.ones(1, np.float32),))[1]
            self.register_buffer("frequencies", torch.tensor(np.asarray(slope)[0, _FEATURES // 2 :]))

        def forward(self, t: Any) -> Any:
            angles = t[:, None].float() * self.frequencies
            return torch.cat([angles.cos(), angles.sin()], -1)

    return TimeFeatures()


def copy_params(net: Any, params: Mapping[str, Any], model: UNet) -> None:
    """Give the PyTorch network the weights of ours; those of a log-variance head are left out.

    Raises:
        ValueError: a parameter on either side without its counterpart.
    """
    import torch

    flat = {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(params, sep="/").items()}
    given = dict(item for path, leaf in _unstacked(flat, model.blocks) for item in _renamed(path, leaf, model))
    wanted = {name for name, _ in net.named_parameters()}
    if given.keys() != wanted:
        raise ValueError(f"expected the same parameters, got {sorted(given.keys() ^ wanted)} on one side only")
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(torch.tensor(given[name]))


def _unstacked(flat: dict[str, np.ndarray], blocks: int) -> list[tuple[str, np.ndarray]]:
    """The blocks of a level by their number: "encode_1/..." [blocks - 1, ...] become "encode_1_1/...", ..."""
    out = []
    for path, leaf in flat.items():
        block, _, rest = path.partition("/")
        part = block.split("_")
        if part[0] not in ("encode", "decode"):
            out.append((path, leaf))
        elif len(part) == 2:
            out += [(f"{block}_{i + 1}/{rest}", one) for i, one in enumerate(leaf)]
        else:
            out.append((f"{part[0]}_{part[1]}_{ {'first': 0, 'last': blocks}[part[2]] }/{rest}", leaf))
    return out


_TOP = {
    "stem": "conv_in",
    "norm_out": "conv_norm_out",
    "out": "conv_out",
    "condition/label/embedding": "class_embedding.weight",
    "time/in": "time_embedding.linear_1",
    "time/out": "time_embedding.linear_2",
    "middle_in": "mid_block.resnets.0",
    "middle_attention": "mid_block.attentions.0",
    "middle_out": "mid_block.resnets.1",
}
_INNER = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "norm_out": "norm2",
    "film": "time_emb_proj",
    "conv_out": "conv2",
    "skip": "conv_shortcut",
    "norm": "group_norm",
    "out": "to_out.0",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}


def _renamed(path: str, leaf: np.ndarray, model: UNet) -> list[tuple[str, np.ndarray]]:
    """Our parameter as diffusers' ones: names and layouts."""
    if path.startswith("log_variance/"):
        return []
    if path == "condition/label/embedding":
        return [(_TOP[path], leaf)]
    *parts, last = path.split("/")
    if last == "kernel" and parts[-1] == "qkv":
        prefix = _prefix(parts[:-2], model)
        return [
            (f"{prefix}.{name}.weight", leaf[:, i].reshape(leaf.shape[0], -1).T)
            for i, name in enumerate(("to_q", "to_k", "to_v"))
        ]
    *outer, inner = parts
    top = _TOP.get("/".join(parts))
    outer = outer[:-1] if outer and outer[-1] == "self" else outer
    name = top or f"{_prefix(outer, model)}.{_INNER[inner]}"
    if last != "kernel":
        return [(f"{name}.{'bias' if last == 'bias' else 'weight'}", leaf)]
    if leaf.ndim == 3:  # an attention's output, from heads
        leaf = leaf.reshape(-1, leaf.shape[-1])
    leaf = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T
    return [(f"{name}.weight", leaf[:, :, None, None] if inner == "skip" else leaf)]


def _prefix(outer: list[str], model: UNet) -> str:
    """Where a residual block or an attention block is in diffusers' network."""
    if outer[0] in _TOP:
        return _TOP[outer[0]]
    kind, level, *number = outer[0].split("_")
    bottom = len(model.multipliers) - 1
    if kind == "down":
        return f"down_blocks.{int(level) - 1}.downsamplers.0"
    if kind == "up":
        return f"up_blocks.{bottom - int(level)}.upsamplers.0"
    block = f"down_blocks.{level}" if kind == "encode" else f"up_blocks.{bottom - int(level)}"
    return f"{block}.{'resnets' if outer[1] == 'res' else 'attentions'}.{number[0]}"


def train_step(net: Any, config: ConfigDict, images: Any, labels: Any) -> Callable[[], Any]:
    """One step as ours: forward, backward, clipping, Adam, average; on the network's device."""
    import copy

    import torch

    optim = config.optim
    net.train()
    average = copy.deepcopy(net).requires_grad_(False)
    mine, theirs = list(net.parameters()), list(average.parameters())
    optimizer = torch.optim.Adam(mine, lr=optim.learning_rate, betas=(optim.b1, optim.b2), fused=True)

    def step() -> None:
        t = torch.rand(len(images), device=images.device)
        noise = torch.randn_like(images)
        share = t[:, None, None, None]
        noisy = (1 - share) * images + share * noise
        with _precision(config, images.device.type):
            out = net(noisy, t, labels, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(out.float(), noise - images)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if optim.clip:
            torch.nn.utils.clip_grad_norm_(mine, optim.clip)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(theirs, mine, 1.0 - optim.ema)
        _finish(images.device.type)

    return step


def sampler(net: Any, config: ConfigDict, images: Any, labels: Any, steps: int) -> Callable[[], Any]:
    """Euler's method from noise in `steps` evaluations, as the rectified flow's."""
    import torch

    times = torch.linspace(1, 0, steps + 1, device=images.device)

    @torch.inference_mode()
    def run() -> None:
        net.eval()
        x = torch.randn_like(images)
        for now, then in itertools.pairwise(times):
            with _precision(config, images.device.type):
                out = net(x, now.expand(len(images)), labels, return_dict=False)[0]
            x = x + (then - now) * out.float()
        _finish(images.device.type)

    return run


def _precision(config: ConfigDict, device: str) -> Any:
    import torch

    return torch.autocast(device, torch.bfloat16, enabled=config.model.dtype == "bfloat16")


def _finish(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
