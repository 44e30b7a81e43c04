"""The public checkpoints' configurations, in full size, for evaluating shapes and compiling without their weights.

`PRESETS[folder][component]` is what the component's config.json (or scheduler_config.json) says. A folder on disk is
read by its own files, never by these. Sources: the files of runwayml/stable-diffusion-v1-5,
stabilityai/stable-diffusion-2-1-base, -xl-base-1.0 and -3.5-medium, black-forest-labs/FLUX.1-dev and -Kontext-dev.
"""

from typing import Any

Config = dict[str, Any]

_UNET: Config = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
_UNET_2: Config = {
    **_UNET,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "upcast_attention": False,
    "use_linear_projection": True,
}
_UNET_XL: Config = {
    **_UNET_2,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
_SD3: Config = {
    "_class_name": "SD3Transformer2DModel",
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "dual_attention_layers": list(range(13)),
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "sample_size": 128,
}
_FLUX: Config = {
    "_class_name": "FluxTransformer2DModel",
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "out_channels": None,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}

_VAE: Config = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
_VAE_XL: Config = {**_VAE, "force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025}
_VAE_16: Config = {
    **_VAE_XL,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
_VAE_FLUX: Config = {**_VAE_16, "scaling_factor": 0.3611, "shift_factor": 0.1159}

_CLIP_L: Config = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}
_CLIP_L_PROJECTED: Config = {**_CLIP_L, "architectures": ["CLIPTextModelWithProjection"]}
_OPENCLIP_H: Config = {
    **_CLIP_L,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
_OPENCLIP_BIG_G: Config = {
    **_CLIP_L_PROJECTED,
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
_T5_XXL: Config = {
    "architectures": ["T5EncoderModel"],
    "classifier_dropout": 0.0,
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-6,
    "model_type": "t5",
    "num_decoder_layers": 24,
    "num_heads": 64,
    "num_layers": 24,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 32128,
}

_STEPS: Config = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
_PNDM: Config = {"_class_name": "PNDMScheduler", **_STEPS}
_EULER: Config = {
    "_class_name": "EulerDiscreteScheduler",
    **_STEPS,
    "interpolation_type": "linear",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
_FLOW: Config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
_FLOW_DYNAMIC: Config = {
    **_FLOW,
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "use_dynamic_shifting": True,
}

_FLUX_FOLDER: dict[str, Config] = {
    "transformer": _FLUX,
    "vae": _VAE_FLUX,
    "text_encoder": _CLIP_L,
    "text_encoder_2": _T5_XXL,
    "scheduler": _FLOW_DYNAMIC,
}
PRESETS: dict[str, dict[str, Config]] = {
    "sd1.5": {"unet": _UNET, "vae": _VAE, "text_encoder": _CLIP_L, "scheduler": _PNDM},
    "sd2.1": {
        "unet": _UNET_2,
        "vae": {**_VAE, "sample_size": 768},
        "text_encoder": _OPENCLIP_H,
        "scheduler": _PNDM,
    },
    "sdxl": {
        "unet": _UNET_XL,
        "vae": _VAE_XL,
        "text_encoder": _CLIP_L,
        "text_encoder_2": _OPENCLIP_BIG_G,
        "scheduler": _EULER,
    },
    "sd3.5": {
        "transformer": _SD3,
        "vae": _VAE_16,
        "text_encoder": _CLIP_L_PROJECTED,
        "text_encoder_2": _OPENCLIP_BIG_G,
        "text_encoder_3": _T5_XXL,
        "scheduler": _FLOW,
    },
    "flux": _FLUX_FOLDER,
    "flux-kontext": _FLUX_FOLDER,
}
