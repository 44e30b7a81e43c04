"""Scores by language models: BERTScore of two texts, and what a vision model answers about an image.

BERT and RoBERTa run in JAX. Other encoders and vision models run in PyTorch, on the host, which is no requirement of
this package: install it beside the extra `text`. Weights are read from folders on disk; nothing is downloaded.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Bool, Float, UInt8

from asyncpatch_jax import schema
from asyncpatch_jax.pretrained.folders import tensors
from asyncpatch_jax.pretrained.folders.loading import read
from asyncpatch_jax.pretrained.networks import bert

BATCH = 32  # texts at a time
_ROUND = 16  # tokens; lengths are multiples


class Words(NamedTuple):
    """The tokens of one text.

    vectors: of each token, also those that begin and end the text [n, d].
    counted: False for these [n].
    """

    vectors: Float[np.ndarray, "n d"]
    counted: Bool[np.ndarray, "n"]


Embed = Callable[[Sequence[str]], list[Words]]


class BertScores(NamedTuple):
    """Of each candidate and its reference, [b]: cosines, which are high (0.8) for any two texts."""

    precision: Float[np.ndarray, "b"]
    recall: Float[np.ndarray, "b"]
    f1: Float[np.ndarray, "b"]


def bert_score(embed: Embed, candidates: Sequence[str], references: Sequence[str]) -> BertScores:
    """BERTScore (Zhang et al. 2020, arXiv 1904.09675), without weights by frequency and without a baseline.

    Precision is the mean over the candidate's tokens of the largest cosine to a token of the reference; recall the
    other way round. Tokens that begin and end a text are not in the means; a token may match them, as in the authors'
    code.

    Args:
        embed: from `read_bert`, or anything else that makes vectors of tokens.

    Raises:
        ValueError: not one reference for each candidate, or a text without tokens.
    """
    if len(candidates) != len(references) or not candidates:
        raise ValueError(f"expected a reference for each candidate, got {len(candidates)} and {len(references)}")
    scores = []
    for candidate, reference in zip(embed(candidates), embed(references), strict=True):
        if not (candidate.counted.any() and reference.counted.any()):
            raise ValueError("expected texts of at least one token, got one of none")
        a, b = (
            words.vectors / np.linalg.norm(words.vectors, axis=1, keepdims=True) for words in (candidate, reference)
        )
        cosines = a @ b.T
        precision = cosines.max(1)[candidate.counted].mean()
        recall = cosines.max(0)[reference.counted].mean()
        scores.append((precision, recall, 2 * precision * recall / (precision + recall)))
    return BertScores(*np.array(scores, np.float32).T)


def read_bert(folder: epath.PathLike, layer: int) -> Embed:
    """Vectors of tokens by a BERT-like encoder of transformers: BERT and RoBERTa in JAX, others through PyTorch.

    Args:
        folder: with its tokenizer, and with safetensors for JAX.
        layer: after which the vectors are taken: 17 of roberta-large, 40 of deberta-xlarge-mnli (Zhang et al.).

    Raises:
        ImportError: PyTorch (for others) or the extra `text` is not installed.
        ValueError: no such folder, one that needs code of its own, or fewer layers.
    """
    path = Path(_existing(folder))
    kind = schema.read_json(path / "config.json").get("model_type")
    return _by_jax(path, layer) if kind in ("bert", "roberta") else _by_pytorch(str(path), layer)


def _by_jax(folder: Path, layer: int) -> Embed:
    config = schema.read_json(folder / "config.json")
    with schema.within(folder / "config.json"):
        module = bert.from_config(config, layer)
    tokenizer = _read(_transformers().AutoTokenizer, str(folder))
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), int), jnp.ones((1, 2), bool))["params"]
    found = {bert.kept(name, layer): tensor for name, tensor in tensors.find(folder).items()}
    params = read(shapes, {name: tensor for name, tensor in found.items() if name}, folder, None)
    most = min(tokenizer.model_max_length, module.positions - module.first)

    def embed(texts: Sequence[str]) -> list[Words]:
        settings = {"truncation": True, "max_length": most, "return_special_tokens_mask": True}
        tokens = tokenizer([*texts], **settings)
        words = []
        for first in range(0, len(texts), BATCH):
            part = tokens["input_ids"][first : first + BATCH]
            # as many rows and columns as few programs have
            length = -(-max(map(len, part)) // _ROUND) * _ROUND
            ids = np.zeros((min(BATCH, len(texts)), length), np.int32)
            mask = np.zeros(ids.shape, bool)
            for row, one in enumerate(part):
                ids[row, : len(one)], mask[row, : len(one)] = one, True
            vectors = np.asarray(_vectors(module, params, ids, mask))
            special = tokens["special_tokens_mask"][first : first + BATCH]
            words += [Words(v[: len(s)], np.array(s) == 0) for v, s in zip(vectors, special)]  # noqa: B905, fewer texts than rows
        return words

    return embed


@partial(jax.jit, static_argnums=0)
def _vectors(module: bert.Bert, params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    vectors: Any = module.apply({"params": params}, ids, mask)
    return vectors.astype(jnp.float32)


def _by_pytorch(folder: str, layer: int) -> Embed:
    torch, transformers = _libraries()
    tokenizer = _read(transformers.AutoTokenizer, folder)
    model = _read(transformers.AutoModel, folder).eval()
    if not 0 <= layer <= model.config.num_hidden_layers:
        raise ValueError(f"expected a layer from 0 to {model.config.num_hidden_layers}, got {layer}")

    def embed(texts: Sequence[str]) -> list[Words]:
        words = []
        for text in texts:
            tokens = tokenizer(text, return_tensors="pt", return_special_tokens_mask=True, truncation=True)
            counted = ~tokens.pop("special_tokens_mask")[0].bool().numpy()
            with torch.no_grad():
                vectors = model(**tokens, output_hidden_states=True).hidden_states[layer][0]
            words.append(Words(vectors.float().numpy(), counted))
        return words

    return embed


class VisionLanguage(NamedTuple):
    """A model that talks about images, with the interfaces of transformers (`generate` and `forward`)."""

    model: Any
    processor: Any


def read_vlm(folder: epath.PathLike, dtype: str = "auto", device: str = "cpu") -> VisionLanguage:
    """A folder of transformers' image-text-to-text models, such as Qwen2.5-VL-7B-Instruct.

    Raises:
        ImportError: PyTorch or the extra `text` is not installed; Qwen2.5-VL also needs torchvision.
        ValueError: no such folder, or one that needs code of its own.
    """
    _, transformers = _libraries()
    folder = _existing(folder)
    model = _read(transformers.AutoModelForImageTextToText, folder, dtype=dtype)
    processor = _read(transformers.AutoProcessor, folder)
    return VisionLanguage(model.to(device).eval(), processor)


def vlm_score(
    vlm: VisionLanguage,
    images: UInt8[np.ndarray, "b h w 3"],
    texts: Sequence[str],
    question: str = 'Does this image show "{}"? Please answer yes or no.',
) -> Float[np.ndarray, "b"]:
    """The probability that the model's answer begins with "Yes": VQAScore (Lin et al. 2024, arXiv 2404.01291).

    Args:
        question: with a place for the text.

    Raises:
        ValueError: not one text for each image; a tokenizer for which "Yes" is more than one token.
    """
    _check(images, texts)
    yes = vlm.processor.tokenizer.encode("Yes", add_special_tokens=False)
    if len(yes) != 1:
        raise ValueError(f'expected a tokenizer of which "Yes" is one token, got {len(yes)}')
    scores = []
    for image, text in zip(images, texts, strict=True):
        logits = _forward(vlm, image, question.format(text))
        scores.append(np.exp(logits[yes[0]] - np.logaddexp.reduce(logits)))
    return np.array(scores, np.float32)


# The words of the paper's appendix were not at hand when this was written; give `question` to have them
RATING = (
    'Rate from 0 to 9 how well this image shows "{}": 0 if it has nothing to do with it, 9 if everything that the text '
    "says is there, with its number, colour and doing. Answer with one digit."
)


def qwen_score(
    vlm: VisionLanguage, images: UInt8[np.ndarray, "b h w 3"], texts: Sequence[str], question: str = RATING
) -> Float[np.ndarray, "b"]:
    """QwenScore (Hu et al. 2025, arXiv 2510.04504): how well each image fits its text, a whole number of 0 ... 9.

    The answer is the digit that the model holds for the likeliest to begin with, so that it always has one. Say next to
    a number which model it is from, and by which question: another one moves all scores.

    Args:
        question: with a place for the text; each image is asked about with its own.

    Raises:
        ValueError: not one text for each image; a question without that place; a tokenizer for which a digit is more
            than one token.
    """
    _check(images, texts)
    if "{}" not in question:
        raise ValueError(f"expected a question with {{}} for the text, got {question!r}")
    digits = [vlm.processor.tokenizer.encode(str(digit), add_special_tokens=False) for digit in range(10)]
    if any(len(ids) != 1 for ids in digits):
        raise ValueError(f"expected a tokenizer of which each digit is one token, got {max(map(len, digits))} for one")
    scores = [
        np.argmax(_forward(vlm, image, question.replace("{}", text))[[ids[0] for ids in digits]])
        for image, text in zip(images, texts, strict=True)
    ]
    return np.array(scores, np.float32)


def captions(
    vlm: VisionLanguage,
    images: UInt8[np.ndarray, "b h w 3"],
    question: str = "Describe this image in one sentence.",
    max_tokens: int = 64,
) -> list[str]:
    """What the model says of each image, its likeliest words; `bert_score` compares that with the prompt."""
    torch, _ = _libraries()
    said = []
    for image in images:
        inputs = _inputs(vlm, image, question)
        with torch.no_grad():
            ids = vlm.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        answer = ids[0, inputs["input_ids"].shape[1] :]
        said.append(vlm.processor.tokenizer.decode(answer, skip_special_tokens=True).strip())
    return said


def _check(images: UInt8[np.ndarray, "b h w 3"], texts: Sequence[str]) -> None:
    if len(images) != len(texts):
        raise ValueError(f"expected a text for each of {len(images)} images, got {len(texts)}")


def _forward(vlm: VisionLanguage, image: UInt8[np.ndarray, "h w 3"], question: str) -> Float[np.ndarray, "v"]:
    """Logits of the first token of the answer."""
    torch, _ = _libraries()
    with torch.no_grad():
        logits = vlm.model(**_inputs(vlm, image, question)).logits
    return logits[0, -1].double().cpu().numpy()


def _inputs(vlm: VisionLanguage, image: UInt8[np.ndarray, "h w 3"], question: str) -> Any:
    from PIL import Image

    content = [{"type": "image", "image": Image.fromarray(image)}, {"type": "text", "text": question}]
    inputs = vlm.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return inputs.to(vlm.model.device)


def _existing(folder: epath.PathLike) -> str:
    if not epath.Path(folder).is_dir():
        raise ValueError(f"expected a folder of a model, got {folder}")
    return str(folder)


def _read(kind: Any, folder: str, **settings: Any) -> Any:
    """What transformers reads; nothing is downloaded, and no code of the folder's own is run."""
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **settings)
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"expected a folder that transformers' own code reads, got {folder}: {error}") from error


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"expected torch: pip install torch ({error})") from error
    return torch, _transformers()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"expected the extra text: pip install 'asyncpatch_jax[text]' ({error})") from error
    return transformers
