"""A folder in the layout of diffusers with an autoencoder that compiles fast: 2 pixels to a side of a latent."""

from pathlib import Path

from asyncpatch_jax.pretrained.folders import families
from asyncpatch_jax.pretrained.folders.loading import Component
from asyncpatch_jax.pretrained.folders.saving import save_component
from tests import drawn


def folder(path: Path, *, channels: int = 1, seed: int = 0) -> Path:
    """Written to `path`; random weights."""
    config = {
        "_class_name": "AutoencoderKL",
        "in_channels": channels,
        "out_channels": channels,
        "latent_channels": 2,
        "block_out_channels": [4, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
    }
    params = drawn.params_like(families.shapes(config), seed=seed)
    save_component(Component(families.module(config), params, config), path)
    return path
