"""Published files of rewards and of LPIPS into folders that `preferences.read_reward` and `lpips.read_lpips` read:
safetensors, config.json, tokenizer.

PyTorch is needed for files that are not safetensors. Nothing is downloaded.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asyncpatch_jax.files import refuse_existing
from asyncpatch_jax.metrics import lpips_files
from asyncpatch_jax.pretrained.folders import families, names, tensors
from asyncpatch_jax.pretrained.folders.loading import Component
from asyncpatch_jax.pretrained.folders.saving import save_component
from asyncpatch_jax.pretrained.text.tokenizers import read_tokenizer

State = Mapping[str, np.ndarray]
_TOKENIZER = {
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """What the folder of a reward is made from.

    Args:
        files: which published files, for people.
        tokenizer: whose tokenizer reads its prompts, for people; "" if it reads none.
        config: its config.json.
        rename: tensors by their published names to those of the module.
    """

    files: str
    tokenizer: str
    config: Mapping[str, Any]
    rename: Callable[[State], State]

    def command(self, name: str) -> str:
        """The command that makes the folder."""
        tokenizer = " --tokenizer=FOLDER" if self.tokenizer else ""
        return f"python -m launch.convert_reward {name} FILE...{tokenizer} --out=FOLDER"

    def needs(self) -> str:
        """The files that the command takes."""
        return f"{self.files}; tokenizer: the files of {self.tokenizer}" if self.tokenizer else self.files


def convert(
    name: str,
    files: Sequence[str | os.PathLike],
    folder: str | os.PathLike,
    tokenizer: str | os.PathLike | None = None,
) -> None:
    """Write the folder of a reward.

    Args:
        name: one of `SOURCES`.
        files: the published ones, together with all of its tensors: safetensors, or a state dict of PyTorch's.
        folder: new, or empty.
        tokenizer: folder of a tokenizer, of which a copy is made.

    Raises:
        ValueError: an unknown name; files that are not exactly this network's; a folder that is not empty; no
            tokenizer, or one for a network that reads no text.
        ImportError: PyTorch, which reads such a file, or the extra `text` is not installed.
        OSError: a file cannot be read or written.
    """
    if name not in SOURCES:
        raise ValueError(f"expected a reward out of {', '.join(SOURCES)}, got {name!r}")
    source, folder = SOURCES[name], Path(folder)
    if (tokenizer is None) == bool(source.tokenizer):
        wanted = f"a folder with the tokenizer of {source.tokenizer}" if source.tokenizer else "no tokenizer"
        raise ValueError(f"expected {wanted} for {name}, got {tokenizer}")
    refuse_existing(folder)
    if tokenizer is not None:  # what is wrong shall be said before minutes of reading
        read_tokenizer(tokenizer, 2)
    state: dict[str, np.ndarray] = {}
    for file in files:
        part = read_state(Path(file))
        if twice := sorted(state.keys() & part.keys()):
            raise ValueError(f"expected each tensor in one file, got {twice[0]} in {file} again")
        state |= part
    save_component(component(name, state), folder)
    if tokenizer is not None:
        for file in sorted(Path(tokenizer).iterdir()):
            if file.name in _TOKENIZER:
                shutil.copyfile(file, folder / file.name)


def component(name: str, state: State) -> Component:
    """The network of a reward from its tensors by their published names, in their types.

    Raises:
        ValueError: they are not exactly this network's.
    """
    source = SOURCES[name]
    config = {**source.config, "_reward": name}
    try:
        params = names.from_torch(families.shapes(config), source.rename(state))
    except ValueError as error:
        raise ValueError(f"expected the tensors of {name}, from {source.files}: {error}") from error
    return Component(families.module(config), params, config)


def read_state(file: Path) -> dict[str, np.ndarray]:
    """The floats of a safetensors file or of a state dict that PyTorch wrote, also one under the key "state_dict".

    Raises:
        ValueError: something else.
        ImportError: PyTorch is not installed.
    """
    if file.suffix == ".safetensors":
        found = tensors.header(file)
        return {name: tensors.read(tensor) for name, tensor in found.items() if tensor.dtype in tensors.FLOATS}
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"expected torch, which reads {file}: pip install torch ({error})") from error
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # what is no such file fails in any way while it is unpickled
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"expected a state dict that PyTorch wrote in {file}, got something else: {reason}") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"expected a dict of tensors in {file}, got something else")
    floats = {name: tensor.detach() for name, tensor in content.items() if tensor.is_floating_point()}
    # numpy has no bfloat16
    return {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in floats.items()}


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
    **{name: Source(one.files, "", one.config, one.rename) for name, one in lpips_files.PUBLISHED.items()},
}
