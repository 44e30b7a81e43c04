"""Tiny text-to-image folders of each family, saved by diffusers and transformers themselves; random weights."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import transformers

from tests import tiny

FAMILIES = ("sd", "sdxl", "sd3", "flux", "kontext")
WIDTH = 16  # of CLIP's features
T5_WIDTH = 40


def folder(family: str, path: Path) -> Any:
    """Save a pipeline to `path`, tokenizers in the files that the public folders have; returns it.

    Args:
        family: or "sd inpainting", "sdxl inpainting".
    """
    pipeline = _BUILDERS[family](path)
    for i, name in enumerate(("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")):
        if getattr(pipeline, name, None) is not None:
            tiny.randomised(getattr(pipeline, name), seed=i)
    kept = {file: path.parent / f".{path.name}.{file.name}" for file in path.glob("tokenizer*")}
    for file, aside in kept.items():
        file.rename(aside)
    pipeline.save_pretrained(path)
    for file, aside in kept.items():
        shutil.rmtree(file)
        aside.rename(file)
    return pipeline


def _clip(path: Path, number: str = "", *, pad: str = "<|endoftext|>", projected: bool = False) -> dict[str, Any]:
    size = tiny.clip_tokenizer(path / f"tokenizer{number}", pad=pad)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(path / f"tokenizer{number}")
    config = transformers.CLIPTextConfig(
        vocab_size=size,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        projection_dim=WIDTH,
        hidden_act="gelu" if number else "quick_gelu",
        bos_token_id=size - 2,
        eos_token_id=2,
    )
    encoder = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return {f"tokenizer{number}": tokenizer, f"text_encoder{number}": encoder(config)}


def _t5(path: Path, number: str) -> dict[str, Any]:
    size = tiny.t5_tokenizer(path / f"tokenizer{number}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path / f"tokenizer{number}")
    config = transformers.T5Config(
        vocab_size=size,
        d_model=T5_WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=4,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    return {f"tokenizer{number}": tokenizer, f"text_encoder{number}": transformers.T5EncoderModel(config)}


def _vae(**settings: Any) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        **settings,
    )


def _unet(**settings: Any) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(8, 16, 16),
        norm_num_groups=4,
        **settings,
    )


def _ddim() -> diffusers.DDIMScheduler:
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _sd(path: Path, pipeline: Callable[..., Any] = diffusers.StableDiffusionPipeline, **more: Any) -> Any:
    unet = _unet(
        **more,
        # attention where AsynDM reads its maps, and no more: what is traced again and again is small
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("UpBlock2D",) * 3,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
    )
    return pipeline(
        unet=unet,
        vae=_vae(),
        scheduler=_ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **_clip(path),
    )


def _sdxl(path: Path, pipeline: Callable[..., Any] = diffusers.StableDiffusionXLPipeline, **more: Any) -> Any:
    unet = _unet(
        **more,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("UpBlock2D",) * 3,
        transformer_layers_per_block=(1, 1, 4),
        attention_head_dim=(1, 2, 2),
        cross_attention_dim=2 * WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + WIDTH,
    )
    encoders = {**_clip(path), **_clip(path, "_2", pad="!", projected=True)}
    return pipeline(unet=unet, vae=_vae(force_upcast=True), scheduler=_ddim(), **encoders)


def _sd3(path: Path) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=12,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=24,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=12,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        vae=_vae(scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **_clip(path, projected=True),
        **_clip(path, "_2", pad="!", projected=True),
        **_t5(path, "_3"),
    )


def _flux(path: Path, pipeline: Callable[..., Any] = diffusers.FluxPipeline) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    return pipeline(
        transformer=transformer,
        vae=_vae(scaling_factor=0.36, shift_factor=0.12, use_quant_conv=False, use_post_quant_conv=False),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        **_clip(path),
        **_t5(path, "_2"),
    )


# networks that are shown a mask and the latents of the rest beside their own 4 channels
def _sd_inpainting(path: Path) -> Any:
    return _sd(path, diffusers.StableDiffusionInpaintPipeline, in_channels=9)


def _sdxl_inpainting(path: Path) -> Any:
    return _sdxl(path, diffusers.StableDiffusionXLInpaintPipeline, in_channels=9)


def _kontext(path: Path) -> Any:
    return _flux(path, diffusers.FluxKontextPipeline)


_BUILDERS: dict[str, Callable[[Path], Any]] = {
    "sd": _sd,
    "sdxl": _sdxl,
    "sd inpainting": _sd_inpainting,
    "sdxl inpainting": _sdxl_inpainting,
    "sd3": _sd3,
    "flux": _flux,
    "kontext": _kontext,
}
