"""A UNet in Stable Diffusion's layout that a CPU trains and times in minutes, as diffusers' files describe it."""

from collections.abc import Sequence
from typing import Any

Config = dict[str, Any]

# Stable Diffusion's noise levels
LEVELS: Config = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def unet(size: int, channels: int, context: int, widths: Sequence[int] = (16, 32, 64), heads: int = 4) -> Config:
    """config.json of a UNet that reads texts, with attention on its coarsest level and nowhere else.

    There, at a quarter of the image's rows and columns if there are three levels, AsynDM reads its maps.

    Args:
        context: width of the text's tokens.
        widths: of the levels.
    """
    levels = len(widths)
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": list(widths),
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D"] * (levels - 1) + ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"] + ["UpBlock2D"] * (levels - 1),
        "attention_head_dim": heads,
        "cross_attention_dim": context,
        "norm_num_groups": 8,
        "use_linear_projection": True,
    }
