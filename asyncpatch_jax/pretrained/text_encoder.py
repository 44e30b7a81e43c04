"""One text encoder for networks that learn from captions: from texts to a vector for each of their tokens.

CLIP's and T5's encoders, as folders of diffusers' pipelines hold them, and BERT's and RoBERTa's (MiniLM's are such).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from asyncpatch_jax import schema, sharding
from asyncpatch_jax.pretrained.folders import digests, loading, tensors
from asyncpatch_jax.pretrained.networks import bert
from asyncpatch_jax.pretrained.text.tokenizers import Tokenizer, Tokens, read_tokenizer

_LONGEST = 512  # tokens, of encoders that take any number

Ids = Int[Array, "b l"] | Int[np.ndarray, "b l"]
Counted = Bool[Array, "b l"] | Bool[np.ndarray, "b l"]
Vectors = Float[Array, "b l _d"]


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """Texts of one length to vectors of their tokens, float32. It does not learn.

    Attributes:
        module, params: `module.apply({"params": params}, ids, ...)`.
        tokenizer: of the same folder, with the length of all texts.
        width: of the vectors.
        digest: a hash of weights and settings, wherever the folder lies.
        mesh: the devices that a batch is spread over.
    """

    module: Any
    params: Any
    tokenizer: Tokenizer
    width: int
    digest: str
    mesh: Mesh | None

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Ids of texts, and which of them count; see `Tokenizer.encode`, whose errors it raises."""
        return self.tokenizer.encode(texts)

    def one(self, text: str) -> tuple[Int[np.ndarray, "l"], Bool[np.ndarray, "l"]]:
        """`tokens` of one text [l], as `data.batches` asks for them; what does not fit is cut without a word."""
        found = self.tokenizer.encode([text], quiet=True)
        return found.ids[0], found.mask[0]

    def vectors(self, ids: Ids, mask: Counted, *, whole: bool = True) -> Vectors:
        """Of each token its vector, [b, l, width]; of padding anything finite. Compiled once for each shape.

        Args:
            ids, mask: as `tokens` makes them.
            whole: every device (of every process) gets all of them; otherwise they are spread as a batch is.
        """
        return _vectors(self.module, self.mesh, whole, self.params, ids, mask)

    def encode(self, texts: Sequence[str]) -> tuple[Vectors, Bool[np.ndarray, "b l"]]:
        """`vectors` of texts, and which count.

        Raises:
            ValueError: no texts, or something else.
        """
        if not texts:
            raise ValueError("expected texts to encode, got none")
        found = self.tokens(texts)
        return self.vectors(found.ids, found.mask), found.mask


@partial(jax.jit, static_argnums=(0, 1, 2))
def _vectors(module: nn.Module, mesh: Mesh | None, whole: bool, params: Any, ids: Ids, mask: Counted) -> Vectors:
    with sharding.using(mesh):
        ids, mask = (sharding.constrain(jnp.asarray(leaf), "batch", None) for leaf in (ids, mask))
        # CLIP's reads from left to right, so that padding, which comes last, is seen by no token that counts
        takes_mask = "clip" not in type(module).__module__
        found: Any = module.apply({"params": params}, ids, *((mask,) if takes_mask else ()))
        vectors = (found if takes_mask else found.last).astype(jnp.float32)
        return sharding.constrain(vectors, None if whole else "batch", None, None)


def read_text_encoder(
    folder: str | os.PathLike,
    length: int | None = None,
    *,
    tokenizer: str | os.PathLike | None = None,
    mesh: Mesh | None = None,
) -> TextEncoder:
    """A text encoder's folder, with its tokenizer in it, or beside it as in a pipeline's folder. In float32.

    Args:
        folder: `text_encoder`, `text_encoder_2`, ... of a pipeline, or a folder of transformers' such as MiniLM's; or a
            Hub id that the Hub's client has in its cache. Nothing is downloaded.
        length: of all texts in tokens; None: as many as the tokenizer says that its encoder takes.
        tokenizer: its folder, where it lies elsewhere.
        mesh: the devices that hold the parameters, whole; None: the first one.

    Raises:
        ValueError: no such folder or tokenizer, another network, files that are damaged or do not fit, ids that the
            encoder does not know, or more tokens than it takes; names it.
        ImportError: the extra `text` is not installed.
    """
    folder = loading.resolve(folder)
    config = schema.read_json(folder / "config.json")
    module: Any
    if config.get("model_type") in ("bert", "roberta"):
        module, params = _read_bert(folder, config)
        width, most, known = module.width, module.positions - module.first, module.vocab
    else:
        component = loading.load_component(folder, dtype=jnp.float32)
        module, params = component.module, component.params
        text: Any = getattr(module, "text", module)
        width, most, known = text.width, getattr(text, "positions", _LONGEST), text.vocab
    where = Path(tokenizer) if tokenizer is not None else _tokenizer_of(folder)
    read = read_tokenizer(where, length)
    if read.length > most:
        raise ValueError(f"expected at most {most} tokens for {folder}, got a length of {read.length}")
    if read.size > known:
        raise ValueError(f"expected a tokenizer of at most {known} ids for {folder}, got {read.size} in {where}")
    if mesh is not None:
        params = jax.device_put(params, sharding.replicated(mesh))
    return TextEncoder(module, params, read, width, digests.digest(folder), mesh)


def _read_bert(folder: Path, config: Any) -> tuple[bert.Bert, Any]:
    with schema.within(folder / "config.json"):
        layers = config.get("num_hidden_layers")
        module = bert.from_config(config, layers if isinstance(layers, int) else 0)
    example = jnp.zeros((1, 2), int), jnp.ones((1, 2), bool)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *example)["params"]
    found = {bert.kept(name, module.layers): tensor for name, tensor in tensors.find(folder).items()}
    return module, loading.read(shapes, {name: tensor for name, tensor in found.items() if name}, folder, None)


def _tokenizer_of(folder: Path) -> Path:
    """Where the tokenizer of an encoder's folder lies: `tokenizer_2` beside `text_encoder_2`, or in the folder."""
    beside = folder.parent / folder.name.replace("text_encoder", "tokenizer")
    return beside if folder.name.startswith("text_encoder") and beside.is_dir() else folder
