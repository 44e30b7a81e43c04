"""The public checkpoints in full size: names and shapes of all tensors, against PyTorch's modules without memory."""

import math

import diffusers
import pytest
import torch
import transformers

from asyncpatch_jax.pretrained.folders import families, names
from asyncpatch_jax.pretrained.folders.presets import PRESETS

# parameters in millions and tensors, as the public folders have them; buffers (SD3's positions) included
KNOWN = {
    ("sd1.5", "unet"): (859.52, 686),
    ("sd2.1", "unet"): (865.91, 686),
    ("sdxl", "unet"): (2567.46, 1680),
    ("sd3.5", "transformer"): (2243.17 + 226.49, 909),
    ("flux", "transformer"): (11901.41, 1160),
    ("sd3.5", "text_encoder_3"): (4762.31, 219),
}


def _distinct():
    seen = []
    for folder, components in PRESETS.items():
        for name, config in components.items():
            if name != "scheduler" and config not in seen:
                seen.append(config)
                yield folder, name


def _theirs(config):
    name = families.class_name(config)
    with torch.device("meta"):
        if "_class_name" in config:
            return getattr(diffusers, name).from_config(config)
        settings = transformers.T5Config if name == "T5EncoderModel" else transformers.CLIPTextConfig
        return getattr(transformers, name)(settings(**config))


@pytest.mark.parametrize(("folder", "component"), _distinct())
def test_tensors_are_those_of_pytorch(folder, component):
    config = PRESETS[folder][component]
    slots = names.torch_tensors(families.shapes(config))
    state = {key: tuple(tensor.shape) for key, tensor in _theirs(config).state_dict().items()}
    found = names.match(slots, state)
    assert found.problems() == []
    assert len(found.sources) == len(slots)
    # names of the public files; transformers from 5 on leaves a prefix of CLIP's out
    if families.class_name(config).startswith("CLIP"):
        state = {
            name if name.startswith("text_projection") else f"text_model.{name.removeprefix('text_model.')}": shape
            for name, shape in state.items()
        }
    ours = {name: slot.shape for name, slot in slots.items()}
    assert ours == {name: shape for name, shape in state.items() if name != "encoder.embed_tokens.weight"}
    if (folder, component) in KNOWN:
        count = sum(math.prod(slot.shape) for slot in slots.values()) / 1e6
        assert (round(count, 2), len(slots)) == pytest.approx(KNOWN[folder, component], abs=0.02)
