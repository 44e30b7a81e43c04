"""The pretrained UNet is diffusers' UNet2DConditionModel, to rounding, on random weights; with a time per cell too."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from asyncpatch_jax.pretrained import names, unet2d
from asyncpatch_jax.types import Condition

TINY = {
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
}
FOUR = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [8, 16, 16, 16],
}
CONFIGS = {
    "sd15": TINY | FOUR | {"attention_head_dim": 2},
    "sd21": TINY | FOUR | {"attention_head_dim": [1, 2, 4, 4], "use_linear_projection": True},
    "sdxl": TINY
    | {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [8, 16, 16],
        "transformer_layers_per_block": [1, 2, 5],
        "attention_head_dim": [1, 2, 4],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 30,
    },
}
SIZE = (8, 16)


class WideSinusoid(torch.nn.Module):
    """diffusers' `Timesteps` computes in float32, whatever the network's type."""

    def __init__(self, width):
        super().__init__()
        self.freqs = 10_000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width // 2))

    def forward(self, t):
        angles = t.double()[..., None] * self.freqs
        return torch.cat([angles.cos(), angles.sin()], -1)


def reference(config):
    net = UNet2DConditionModel(**config).double().eval()
    net.time_proj = WideSinusoid(config["block_out_channels"][0])
    if "addition_embed_type" in config:
        net.add_time_proj = WideSinusoid(config["addition_time_embed_dim"])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, param in net.named_parameters():
            scale = 0.3 if param.ndim == 1 else 1.2 / np.sqrt(param[0].numel())
            noise = scale * torch.randn(param.shape, generator=generator, dtype=param.dtype)
            param.copy_(noise + ("norm" in name and name.endswith("weight")))
    return net


def inputs(config, kind=np.float64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *SIZE, 4)).astype(kind)
    pooled = sizes = None
    if "addition_embed_type" in config:
        pooled, sizes = rng.normal(size=(2, 6)).astype(kind), rng.integers(0, 1024, (2, 6)).astype(kind)
    return x, Condition(tokens=rng.normal(size=(2, 7, 12)).astype(kind), pooled=pooled, sizes=sizes)


def ask(net, x, t, cond):
    """PyTorch's answer; t is a number for each image, or of what `patched` makes of it."""
    added = {}
    if cond.pooled is not None:
        added = {"text_embeds": torch.from_numpy(cond.pooled), "time_ids": torch.from_numpy(cond.sizes)}
    mask = None if cond.mask is None else torch.tensor(np.asarray(cond.mask))
    with torch.no_grad():
        out = net(
            torch.from_numpy(x).permute(0, 3, 1, 2),
            t,
            torch.from_numpy(cond.tokens),
            encoder_attention_mask=mask,
            added_cond_kwargs=added,
        ).sample
    return out.permute(0, 2, 3, 1).numpy()


def ours(config, net, kind):
    model = unet2d.from_config(config, kind)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *unet2d.example(model))["params"]
    state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    params = names.from_torch(shapes, state)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, kind), params), jax.jit(
        lambda params, x, t, cond: model.apply({"params": params}, x, t, cond)
    )


def times(values):
    return jnp.asarray(values, jnp.float32)[:, None, None, None]


@pytest.fixture(scope="module", params=CONFIGS)
def both(request):
    config = CONFIGS[request.param]
    net = reference(config)
    with jax.enable_x64(True):
        params, apply = ours(config, net, jnp.float64)
        yield types.SimpleNamespace(config=config, net=net, params=params, apply=apply, name=request.param)


def test_the_network_is_diffusers(both):
    x, cond = inputs(both.config)
    out, _ = both.apply(both.params, x, times([3, 801]), cond)
    want = ask(both.net, x, torch.tensor([3, 801]), cond)
    assert want.std() > 0.1
    np.testing.assert_allclose(out, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("both", ["sdxl"], indirect=True)
def test_masked_text_is_not_read(both):
    x, cond = inputs(both.config)
    cond = cond._replace(mask=jnp.asarray([[True] * 7, [True] * 4 + [False] * 3]))
    out, _ = both.apply(both.params, x, times([3, 801]), cond)
    np.testing.assert_allclose(out, ask(both.net, x, torch.tensor([3, 801]), cond), rtol=1e-9, atol=1e-9)
