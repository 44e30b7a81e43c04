"""The published files of the networks of metrics: which they are, their settings, and what their tensors are called.

`conversion` makes of them the folders that metrics are read from.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from asyncpatch_jax.metrics import lpips_files

State = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Source:
    """What the folder of a network is made from.

    Args:
        files: which published files, for people.
        tokenizer: whose tokenizer reads its prompts, for people; "" if it reads none.
        config: its config.json.
        rename: tensors by their published names to those of the module.
        reader: the call that reads the folder, for people.
    """

    files: str
    tokenizer: str
    config: Mapping[str, Any]
    rename: Callable[[State], State]
    reader: str = "read_reward({name!r}, {folder!r})"

    def command(self, name: str) -> str:
        """The command that makes the folder."""
        tokenizer = " --tokenizer=FOLDER" if self.tokenizer else ""
        return f"python -m launch.convert_metric {name} FILE...{tokenizer} --out=FOLDER"

    def needs(self) -> str:
        """The files that the command takes."""
        return f"{self.files}; tokenizer: the files of {self.tokenizer}" if self.tokenizer else self.files


_OPEN_CLIP = {
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_OPEN_CLIP_NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
_OPEN_CLIP_BLOCKS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)")


def _from_open_clip(state: State) -> State:
    """OpenCLIP's names as transformers'; queries, keys and values are one tensor there, projections lie transposed."""
    renamed: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if name in ("visual.proj", "text_projection"):
            renamed[_OPEN_CLIP[name]] = tensor.T
        elif name in _OPEN_CLIP:
            renamed[_OPEN_CLIP[name]] = tensor
        elif module in _OPEN_CLIP_NORMS:
            renamed[f"{_OPEN_CLIP_NORMS[module]}.{kind}"] = tensor
        elif block := _BLOCK.fullmatch(name):
            tower = "vision_model" if block[1] else "text_model"
            layer = f"{tower}.encoder.layers.{block[2]}"
            if block[3] == "attn.in_proj":
                for which, part in zip("qkv", np.split(tensor, 3), strict=True):
                    renamed[f"{layer}.self_attn.{which}_proj.{block[4]}"] = part
            else:
                renamed[f"{layer}.{_OPEN_CLIP_BLOCKS.get(block[3], block[3])}.{block[4]}"] = tensor
        else:
            renamed[name] = tensor  # which the strict matching will name
    return renamed


# of ImageReward's training data, by which its code normalises what the network says
_IMAGE_REWARD_MEAN, _IMAGE_REWARD_STD = 0.16717362830052426, 1.0333394966054072


def _image_reward(state: State) -> State:
    # BLIP's projections for its contrastive loss stand in the file, and nothing reads them
    unused = ("blip.vision_proj.", "blip.text_proj.", "mlp.")
    kept = {name.removeprefix("blip."): tensor for name, tensor in state.items() if not name.startswith(unused)}
    weight, bias = _affine(state, "mlp.layers.")
    head = _head(weight / _IMAGE_REWARD_STD, (bias - _IMAGE_REWARD_MEAN) / _IMAGE_REWARD_STD, state)
    return {**kept, **head}


def _aesthetic(state: State) -> State:
    # of CLIP, all but what reads images
    unused = ("text_model.", "text_projection.", "logit_scale", "layers.")
    kept = {f"clip.{name}": tensor for name, tensor in state.items() if not name.startswith(unused)}
    return {**kept, **_head(*_affine(state, "layers."), state)}


_INCEPTION_CLASSES = 1008  # TensorFlow's, by which its file is told from torchvision's


def _inception(state: State) -> State:
    # all but the classifier, which FID does not read
    shape = state["fc.weight"].shape if "fc.weight" in state else None
    if shape is None or shape[0] != _INCEPTION_CLASSES:
        raise ValueError(
            f"expected fc.weight [{_INCEPTION_CLASSES}, ...], got {shape and list(shape)}: torchvision's own "
            "Inception, which has 1,000 classes, is another network"
        )
    return {name: tensor for name, tensor in state.items() if name not in ("fc.weight", "fc.bias")}


def _affine(state: State, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Linear layers that follow each other without an activation as one map `weight @ x + bias`, in float64."""
    found = [re.fullmatch(re.escape(prefix) + r"(\d+)\.weight", name) for name in state]
    numbers = sorted(int(match[1]) for match in found if match)
    if not numbers:
        raise ValueError(f"expected linear layers {prefix}0, ... among the tensors, got none")
    weight = np.eye(state[f"{prefix}{numbers[0]}.weight"].shape[1])
    bias = np.zeros(len(weight))
    for number in numbers:
        layer = np.asarray(state[f"{prefix}{number}.weight"], np.float64)
        if f"{prefix}{number}.bias" not in state or layer.shape[1] != len(weight):
            raise ValueError(f"expected linear layers with biases that follow each other, got {prefix}{number}")
        weight, bias = layer @ weight, layer @ bias + state[f"{prefix}{number}.bias"]
    return weight, bias


def _head(weight: np.ndarray, bias: np.ndarray, state: State) -> State:
    dtype = next(iter(state.values())).dtype
    return {"head.weight": weight.astype(dtype), "head.bias": bias.astype(dtype)}


_CLIP_H = {
    "architectures": ["CLIPModel"],
    "projection_dim": 1024,
    "text_config": {
        "vocab_size": 49408,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "projection_dim": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
        "eos_token_id": 49407,
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "projection_dim": 1024,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "gelu",
    },
}
_CLIP_L_VISION = {
    "architectures": ["AestheticPredictor"],
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}
_BLIP_L = {
    "architectures": ["ImageReward"],
    "text_config": {
        "vocab_size": 30524,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
    },
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 16,
    },
}
_CLIP_TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

SOURCES: dict[str, Source] = {
    "pick_score": Source("model.safetensors of yuvalkirstain/PickScore_v1", _CLIP_TOKENIZER, _CLIP_H, dict),
    "hps_v2": Source("HPS_v2_compressed.pt of xswu/HPSv2", _CLIP_TOKENIZER, _CLIP_H, _from_open_clip),
    "hps_v2.1": Source("HPS_v2.1_compressed.pt of xswu/HPSv2", _CLIP_TOKENIZER, _CLIP_H, _from_open_clip),
    "image_reward": Source(
        "ImageReward.pt of THUDM/ImageReward", "google-bert/bert-base-uncased", _BLIP_L, _image_reward
    ),
    "aesthetic": Source(
        "sac+logos+ava1-l14-linearMSE.pth of christophschuhmann/improved-aesthetic-predictor (on GitHub) and "
        "model.safetensors of openai/clip-vit-large-patch14",
        "",
        _CLIP_L_VISION,
        _aesthetic,
    ),
    "inception": Source(
        "pt_inception-2015-12-05-6726825d.pth of mseitzer/pytorch-fid, or weights-inception-2015-12-05-6726825d.pth of "
        "toshas/torch-fidelity, which is the same (both on GitHub)",
        "",
        {"architectures": ["FIDInceptionV3"]},
        _inception,
        "read_inception({folder!r})",
    ),
    **{
        name: Source(one.files, "", one.config, one.rename, "read_lpips({folder!r})")
        for name, one in lpips_files.PUBLISHED.items()
    },
}
