"""Texts as ids of tokens: the tokenizers of CLIP (BPE), T5 (unigrams) and BERT (pieces of words), read from folders.

transformers and tokenizers, which read the files, are the extra `text` of the package.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool, Int32
from msgspec import UNSET, Struct, UnsetType

from asyncpatch_jax import schema
from asyncpatch_jax.texts import check_whole, read_text


class Tokens(NamedTuple):
    """Texts of one length.

    ids: int32 [b, l], with the tokens that begin and end a text, and padded.
    mask: False at padding [b, l].
    cut: of each text, what does not fit and is left out; "" if all of it fits.
    """

    ids: Int32[np.ndarray, "b l"]
    mask: Bool[np.ndarray, "b l"]
    cut: tuple[str, ...]


@dataclass(frozen=True)
class Tokenizer:
    """Texts to `length` tokens each.

    Args:
        backend: a `tokenizers.Tokenizer`, which neither pads nor truncates.
        length: of all texts.
        pad: id that fills a text up.
        name: of the folder, for messages.
    """

    backend: Any
    length: int
    pad: int
    name: str

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"expected a length of at least 2 tokens for {self.name}, got {self.length}")

    @property
    def size(self) -> int:
        """One more than its largest id."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, texts: Sequence[str], *, quiet: bool = False) -> Tokens:
        """Ids of texts; a text that is too long loses its end, with a warning that says what was cut (unless `quiet`).

        Raises:
            ValueError: something that is no text, half of a character, or one text in the place of a list.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"expected a list of texts, got {schema.shown(texts)}")
        for text in texts:
            check_whole(text)
        ids = np.full((len(texts), self.length), self.pad, np.int32)
        mask = np.zeros(ids.shape, bool)
        cut = []
        for row, text in enumerate(texts):
            tokens = self.backend.encode(text)
            kept = min(len(tokens.ids), self.length)
            ids[row, :kept] = tokens.ids[:kept]
            ids[row, kept - 1] = tokens.ids[-1]  # the text's end is told, also where it was cut
            mask[row, :kept] = True
            cut.append(text[tokens.offsets[kept - 1][0] :].strip() if kept < len(tokens.ids) else "")
            if cut[-1] and not quiet:
                warnings.warn(f"{self.name} takes {self.length} tokens; cut from a prompt: {cut[-1]!r}", stacklevel=2)
        return Tokens(ids, mask, tuple(cut))

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters from ... to of each token, also of those that `encode` cuts; empty for those it adds."""
        return self.backend.encode(text).offsets


class _Token(Struct, frozen=True):
    """A special token, written out."""

    content: str


class _Config(Struct, frozen=True):
    """What a tokenizer_config.json or a special_tokens_map.json says that is read here.

    added_tokens_decoder: in newer files, which hold all that the map of older ones holds.
    """

    model_max_length: int | float | None = None
    tokenizer_class: str | None = None
    pad_token: str | _Token | UnsetType | None = UNSET
    added_tokens_decoder: dict[str, Any] | None = None


def read_tokenizer(folder: epath.PathLike, length: int | None = None) -> Tokenizer:
    """A folder of CLIP's (vocab.json and merges.txt, or tokenizer.json), T5's (tokenizer.json or spiece.model), BERT's
    (vocab.txt).

    Texts are padded as special_tokens_map.json or tokenizer_config.json say: CLIP-L with the end of text, OpenCLIP with
    "!", T5 with "<pad>", BERT with "[PAD]".

    Args:
        length: of all texts in tokens; None: the `model_max_length` of tokenizer_config.json.

    Raises:
        ValueError: no such folder, no tokenizer in it, one that cannot be read, or no length.
        ImportError: the extra `text` is not installed.
    """
    folder = epath.Path(folder)
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    settings = folder / "tokenizer_config.json"
    config = schema.read(settings, _Config) if settings.name in present else _Config()
    most = config.model_max_length if length is None else length
    whole = "tokenizer.json" in present
    read: Callable[[epath.Path], tuple[Any, int | None]]
    if {"vocab.json", "merges.txt"} <= present or (whole and (config.tokenizer_class or "").startswith("CLIP")):
        read = partial(_of_transformers, "CLIPTokenizer")
    elif "vocab.txt" in present:
        read = partial(_of_transformers, "BertTokenizer")
    elif whole:
        read = partial(_t5, _pad_token(folder, config))
    elif "spiece.model" in present:
        read = _sentencepiece
    else:
        raise ValueError(
            f"expected vocab.json and merges.txt, vocab.txt, tokenizer.json or spiece.model in {folder}, got "
            f"{', '.join(sorted(present)) or 'nothing'}"
        )
    try:
        backend, pad = read(folder)
        backend.encode("a text")  # some say only then that they are broken
    except (ImportError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the libraries raise what they like; what panics in Rust is no Exception
        raise ValueError(f"expected a tokenizer in {folder}, got {type(error).__name__}: {error}") from error
    if pad is None:
        raise ValueError(f"expected a tokenizer whose pad token is one of its own in {folder}, got none")
    # transformers writes 10^30 for "no limit"
    if not isinstance(most, int) or most > 10**6:
        raise ValueError(f"expected a length for {folder}, or model_max_length in tokenizer_config.json, got {most}")
    backend.no_padding()
    backend.no_truncation()
    return Tokenizer(backend, most, pad, folder.name)


def _missing(error: ImportError) -> ImportError:
    return ImportError(f"tokenizers need the extra text: pip install 'asyncpatch_jax[text]' ({error})")


def _of_transformers(name: str, folder: epath.Path) -> tuple[Any, int]:
    try:
        import transformers

        kind = getattr(transformers, name)
    except ImportError as error:
        raise _missing(error) from error
    tokenizer = kind.from_pretrained(str(folder), local_files_only=True)
    return tokenizer.backend_tokenizer, tokenizer.pad_token_id


def _t5(pad: str, folder: epath.Path) -> tuple[Any, int | None]:
    try:
        import tokenizers
    except ImportError as error:
        raise _missing(error) from error
    backend = tokenizers.Tokenizer.from_str(read_text(folder / "tokenizer.json"))
    return backend, backend.token_to_id(pad)


def _sentencepiece(folder: epath.Path) -> tuple[Any, int]:
    try:
        import sentencepiece  # noqa: F401, transformers' own error does not say what to install
        from transformers import T5Tokenizer
    except ImportError as error:
        raise _missing(error) from error
    tokenizer = T5Tokenizer.from_pretrained(str(folder), local_files_only=True)
    return tokenizer.backend_tokenizer, tokenizer.pad_token_id


def _pad_token(folder: epath.Path, config: _Config) -> str:
    # the order of transformers: the map holds what older versions know, and counts for them alone
    table = folder / "special_tokens_map.json"
    token = config.pad_token
    if config.added_tokens_decoder is None and table.exists():
        of_map = schema.read(table, _Config).pad_token
        token = token if of_map is UNSET else of_map
    if token is None:
        raise ValueError(f"expected a pad_token in {folder}, got null")
    return "<pad>" if token is UNSET else token.content if isinstance(token, _Token) else token
