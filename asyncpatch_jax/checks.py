"""What values must be: looked at at once where they are known, and an error under `checkify` where they are traced.

`numbers` is for what may be traced (masks, scales, grids); `number` and `whole` for settings, which are known when a
program is compiled; `shaped`, `images` and `cells` for shapes, which always are.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.experimental import checkify

T = TypeVar("T")
Bound = float | int


@dataclass_transform(frozen_default=True, field_specifiers=(struct.field,))
def dataclass(cls: type[T]) -> type[T]:
    """`flax.struct.dataclass` for a class whose `__post_init__` looks at its arrays.

    flax calls it whenever JAX rebuilds an object too, which `jit`, `vmap` and `tree.map` do with tracers, placeholders,
    shapes, gradients. Here it runs where a person makes one (or calls `replace`), and nowhere else.
    """
    made = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(made)  # type: ignore[arg-type]  # it is a dataclass since the line above
    data, meta = (
        tuple(field.name for field in fields if field.metadata.get("pytree_node", True) == is_data)
        for is_data in (True, False)
    )

    def flatten(self: T) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(self, name) for name in data), tuple(getattr(self, name) for name in meta)

    def with_keys(self: T) -> tuple[tuple[tuple[Any, Any], ...], tuple[Any, ...]]:
        leaves, settings = flatten(self)
        return tuple((jax.tree_util.GetAttrKey(name), leaf) for name, leaf in zip(data, leaves, strict=True)), settings

    def rebuilt(settings: Iterable[Any], leaves: Iterable[Any]) -> T:
        self = object.__new__(made)
        for name, value in (*zip(data, leaves, strict=True), *zip(meta, settings, strict=True)):
            object.__setattr__(self, name, value)
        return self

    setattr(made, "replace", lambda self, **changes: dataclasses.replace(self, **changes))  # noqa: B010, for mypy
    jax.tree_util.register_pytree_with_keys(made, with_keys, rebuilt, flatten)
    return made


def known(value: Any) -> np.ndarray | None:
    """The numbers of a value; None while it is traced, is held by other processes, or is no number at all.

    Reading an array on a device waits for it: for what is made once, not for what is called at every step.
    """
    if isinstance(value, jax.core.Tracer):
        return None
    if isinstance(value, jax.Array) and (value.is_deleted() or not value.is_fully_addressable):
        return None
    if isinstance(value, list):
        leaves = jax.tree.leaves(value)
        if not leaves or any(not isinstance(leaf, int | float | np.number) for leaf in leaves):
            return None
    elif not isinstance(value, bool | int | float | np.generic | np.ndarray | jax.Array):
        return None
    if not is_numeric(getattr(value, "dtype", np.dtype(float))):
        return None
    return np.asarray(value)


def is_numeric(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, np.integer) or jnp.issubdtype(dtype, np.floating) or jnp.issubdtype(dtype, np.bool_)


def numbers(
    name: str,
    value: Any,
    low: Bound = -math.inf,
    high: Bound = math.inf,
    *,
    above: Bound = -math.inf,
    below: Bound = math.inf,
) -> None:
    """Refuse NaN, infinity and what lies outside of `low` ... `high`, or not between `above` and `below`.

    What is no number (None, a placeholder, a shape) passes here; `shaped` refuses it where it is used.

    Raises:
        ValueError: by name, with the bounds and what was found.
    """
    wanted = _wanted(name, low, high, above, below)

    def fits(a: Any, xp: Any) -> Any:
        return xp.isfinite(a) & (a >= low) & (a <= high) & (a > above) & (a < below)

    if isinstance(value, jax.core.Tracer):
        if value.size and is_numeric(value.dtype):
            message = f"expected {wanted}, got {{low}} to {{high}}"
            checkify.debug_check(jnp.all(fits(value, jnp)), message, low=value.min(), high=value.max())
        return
    array = known(value)
    if array is None:
        return
    array = array.astype(np.float64)
    if not fits(array, np).all():
        finite = "a finite " if wanted.startswith(name) and not np.isfinite(array).all() else ""
        raise ValueError(f"expected {finite}{wanted}, got {shown(array)}")


def _wanted(name: str, low: Bound, high: Bound, above: Bound, below: Bound) -> str:
    left = f"{above:g} < " if above > -math.inf else f"{low:g} <= " if low > -math.inf else ""
    right = f" < {below:g}" if below < math.inf else f" <= {high:g}" if high < math.inf else ""
    if left and not right:
        return f"{name} {'>' if above > -math.inf else '>='} {left.split()[0]}"
    return f"{left}{name}{right}" if left or right else f"a finite {name}"


def shown(value: Any) -> str:
    """A value as an error says it: a number itself, an array by its range, anything else by its type."""
    if isinstance(value, jax.core.Tracer):
        return f"a traced value of shape {value.shape}"
    array = None if isinstance(value, bool) else known(value)
    if array is None or array.dtype == bool:
        dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
        if dtype is not None and shape is not None:
            return f"{dtype}{list(shape)}"
        return repr(value) if value is None or isinstance(value, str | int | float) else f"a {type(value).__name__}"
    if isinstance(value, int) or array.size == 1:
        return str(value if isinstance(value, int) else array.item())
    if not array.size:
        return f"an empty array of shape {array.shape}"
    array = array.astype(np.float64)
    if (bad := ~np.isfinite(array)).any():
        return f"{array[bad][0]:g} in {int(bad.sum())} of {array.size} places"
    return f"{array.min():g} to {array.max():g}"


def number(
    name: str,
    value: Any,
    low: Bound = -math.inf,
    high: Bound = math.inf,
    *,
    above: Bound = -math.inf,
    below: Bound = math.inf,
) -> None:
    """Refuse a setting that is no single known number within the bounds of `numbers`.

    Raises:
        ValueError: by name.
    """
    array = known(value)
    if array is None or array.ndim or array.dtype == bool:
        kind = "a number that is known when the program is compiled" if isinstance(value, jax.Array) else "a number"
        raise ValueError(f"expected {_wanted(name, low, high, above, below)}, {kind}, got {shown(value)}")
    numbers(name, value, low, high, above=above, below=below)


def whole(name: str, value: Any, low: int = 1, high: int | None = None) -> None:
    """Refuse what is no whole number of at least `low`, and at most `high` if that is given.

    Raises:
        ValueError: by name.
    """
    array = None if isinstance(value, bool) else known(value)
    # Python's own are compared as they are: they may be too large for an array
    fits = isinstance(value, int) or (array is not None and array.ndim == 0 and array.dtype.kind in "iu")
    if not (fits and not isinstance(value, bool) and low <= int(value) <= (int(value) if high is None else high)):
        wanted = f"{name} >= {low}" if high is None else f"{low} <= {name} <= {high}"
        raise ValueError(f"expected {wanted}, a whole number, got {shown(value)}")


def choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse what is none of these names.

    Raises:
        ValueError: with all of them.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"expected {name} out of {', '.join(choices)}, got {value!r}")


def is_array(value: Any) -> bool:
    """Whether it is an array of numbers, traced or not, of NumPy or JAX."""
    return isinstance(value, jax.Array | np.ndarray) and is_numeric(value.dtype)


def given(name: str, value: Any) -> None:
    """Refuse what is neither a number nor an array of them, where it is used; whatever its shape and value.

    Raises:
        ValueError: by name.
    """
    if not is_array(value) and not isinstance(value, int | float | np.number | list):
        raise ValueError(f"expected {name} as a number or an array of them, got {shown(value)}")


def shaped(name: str, value: Any, axes: str, *, hint: str = "") -> None:
    """Refuse what is no array of numbers with these axes: letters, and whole numbers for sizes that are fixed.

    Args:
        axes: such as "b gh gw 1".
        hint: what to do about it, for the error.

    Raises:
        ValueError: by name, with the shape found.
    """
    letters = axes.split()
    shape = value.shape if is_array(value) else ()
    if len(shape) == len(letters) and all(
        not letter.isdigit() or size == int(letter) for letter, size in zip(letters, shape, strict=True)
    ):
        return
    found = f"shape {value.shape}" if is_array(value) else shown(value)
    raise ValueError(f"expected {name} [{', '.join(letters)}]{hint}, got {found}")


def mask(name: str, value: Any) -> None:
    """Refuse what is no inpainting mask [b, h, w, 1] with numbers in 0 ... 1 (1 = generate).

    Raises:
        ValueError: by name.
    """
    shaped(name, value, "b h w 1", hint=", 1 = generate (mask[None, :, :, None] of an [h, w] one)")
    numbers(name, value, 0, 1)


def images(name: str, value: Any) -> None:
    """Refuse what are no images [b, h, w, c] of floating-point numbers.

    Raises:
        ValueError: by name; of whole numbers (uint8 pixels) with what they become.
    """
    shaped(name, value, "b h w c")
    if not jnp.issubdtype(value.dtype, np.floating):
        raise ValueError(
            f"expected {name} as floating-point images (about -1 ... 1: uint8 pixels / 127.5 - 1), got {value.dtype}"
        )


def cells(name: str, grid: Any) -> None:
    """Refuse what is no (rows, columns), each a whole number from 1 on.

    Raises:
        ValueError: by name.
    """
    ok = isinstance(grid, tuple) and len(grid) == 2
    if not ok or any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1 for n in grid):
        raise ValueError(f"expected {name} as a tuple (rows, columns) of whole numbers >= 1, got {grid!r}")


def function(name: str, value: Any, signature: str) -> None:
    """Refuse what cannot be called.

    Raises:
        ValueError: by name, with what it would be called with.
    """
    if not callable(value) or isinstance(value, type):
        raise ValueError(f"expected {name} as a function {signature}, got {shown(value)}")


def instance(name: str, value: Any, kind: Any, example: str) -> None:
    """Refuse what is not of this class, protocol or union of classes.

    Raises:
        ValueError: by name, with an example of what is.
    """
    if isinstance(value, type) or not isinstance(value, kind):
        wanted = getattr(kind, "__name__", str(kind))
        raise ValueError(f"expected {name} as {wanted}, such as {example}, got {shown(value)}")
