"""What the axes of pretrained parameters are, for sharding: columns of the first products of a layer, rows of the last.

A layer's first products give heads or hidden channels, which devices on a tensor axis share; its last one takes them
(Megatron, Shoeybi et al. 2019). All else has no name, and is split over `fsdp` as its size allows.
"""

import re
from typing import Any

import jax

_COLUMNS = (
    # attention: diffusers', of joint attention the text's too; CLIP's; T5's
    (r"(attn[12]?\.(to_[qkv]|add_[qkv]_proj)|self_attn\.[qkv]_proj|SelfAttention\.[qkv])", "heads"),
    # MLPs: diffusers' GEGLU and GELU; CLIP's; T5's; the one of FLUX's single blocks
    (r"(ff\.net\.0\.proj|ff_context\.net\.0\.proj|mlp\.fc1|DenseReluDense\.wi(_[01])?|proj_mlp)", "hidden"),
    # modulations by the time, a quarter of FLUX's parameters and, with a time per token, of its arithmetic
    (r"(norm1|norm1_context|norm|norm_out)\.linear", "hidden"),
)
_ROWS = (
    (r"(attn[12]?\.(to_out\.0|to_add_out)|self_attn\.out_proj|SelfAttention\.o)", "heads"),
    # the last takes heads and hidden channels side by side
    (
        r"(ff\.net\.2|ff_context\.net\.2|mlp\.fc2|DenseReluDense\.wo|single_transformer_blocks\.[0-9:]+\.proj_out)",
        "hidden",
    ),
)
_STACK = re.compile(r"(^|\.)\d+:\d+(\.|$)")


def logical_axes(params: Any) -> Any:
    """The names of every parameter's axes, in a tree like `params`, for `sharding.parameters`.

    Args:
        params: parameters of any module of this package, or their shapes.
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _names([key.key for key in path], leaf.ndim), params)


def _names(path: list[str], ndim: int) -> tuple[str | None, ...]:
    module, leaf = ".".join(path[:-1]), path[-1]
    stack = ("layers",) if _STACK.search(module) else ()
    base: list[str | None] = [None] * (ndim - len(stack))
    if leaf in ("kernel", "bias") and (name := _found(module, _COLUMNS)):
        base[-1] = name
    elif leaf == "kernel" and (name := _found(module, _ROWS)):
        base[-2] = name
    return (*stack, *base)


def _found(module: str, table: tuple[tuple[str, str], ...]) -> str | None:
    return next((name for pattern, name in table if re.search(rf"(^|\.){pattern}$", module)), None)
