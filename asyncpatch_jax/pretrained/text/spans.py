"""Words of a prompt as positions of tokens: which attention maps show an object.

An object is a word or a phrase of the prompt, as it looks there up to case: "dog", "red car"; "dog#2" is the second
dog. Its characters are found first, then the tokens that hold them, so that every tokenizer will do.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from asyncpatch_jax.pretrained.text.tokenizers import Tokenizer
from asyncpatch_jax.texts import is_mark
from asyncpatch_jax.types import Spans

Stream = tuple[Tokenizer, int]
"""A tokenizer, and where its tokens begin among those that a network attends to."""

_BLOCK = 8


def find(prompt: str, words: str) -> tuple[int, int]:
    """The characters from ... to of an object in a prompt.

    An accent may be a character of its own in one and part of its letter in the other. A word ends where the letters,
    digits and marks of the prompt do: "cafe" is not in "café", however that is written.

    Raises:
        ValueError: the prompt does not hold these words, or not as many times.
    """
    numbered = re.fullmatch(r"(.*\S)#(\d{1,9})", words.strip(), re.DOTALL)
    text, nth = (numbered[1], int(numbered[2])) if numbered else (words, 1)
    plain, places = _taken_apart(prompt)
    pattern = r"\s+".join(re.escape(unicodedata.normalize("NFD", word)) for word in text.split())
    # Python counts no mark among the characters of a word
    letter = rf"[\w{re.escape(''.join(sorted({c for c in plain if is_mark(c)})))}]"
    found = list(re.finditer(rf"(?<!{letter}){pattern}(?!{letter})", plain, re.IGNORECASE)) if pattern else []
    if not 1 <= nth <= len(found):
        times = {0: "not at all", 1: "once"}.get(len(found), f"{len(found)} times")
        raise ValueError(f"expected words of the prompt {prompt!r}, got {words!r}, which is there {times}")
    start, stop = found[nth - 1].span()
    return places[start][0], places[stop - 1][1]


def _taken_apart(prompt: str) -> tuple[str, list[tuple[int, int]]]:
    """A prompt decomposed (NFD), and of each character there those of the prompt, from ... to, that it is made of."""
    plain, places = [], []
    # marks are sorted among themselves, and never past the letter before them
    bounds = [i for i, character in enumerate(prompt) if not i or not unicodedata.combining(character)]
    for start, stop in zip(bounds, [*bounds[1:], len(prompt)], strict=True):
        part = unicodedata.normalize("NFD", prompt[start:stop])
        plain.append(part)
        places += [(start, stop)] * len(part)
    return "".join(plain), places


def tokens_of(tokenizer: Tokenizer, prompt: str, start: int, stop: int) -> list[int]:
    """The positions of the tokens that hold characters start ... stop of a prompt, without those that are cut off."""
    offsets = tokenizer.offsets(prompt)
    # of a text that is cut, the last position says that it ends
    kept = len(offsets) if len(offsets) <= tokenizer.length else tokenizer.length - 1
    return [i for i, (a, b) in enumerate(offsets[:kept]) if a < stop and b > start]


def spans(streams: Sequence[Stream], prompts: Sequence[str], objects: Sequence[Sequence[str]]) -> Spans:
    """The tokens of each object; all tokens of an object weigh the same, and together 1.

    Where a network reads several streams of text (Stable Diffusion 3: CLIP's 77 tokens, then T5's), an object has
    tokens in each, and each stream the same share. A prompt of fewer objects than others has objects without tokens.

    Args:
        streams: the tokenizers that made the network's tokens, and where theirs begin.
        objects: the words of each prompt's objects, as in `find`.

    Raises:
        ValueError: words that are not in their prompt, or that were cut off; no objects at all.
    """
    if len(prompts) != len(objects):
        raise ValueError(f"expected a list of objects for each of {len(prompts)} prompts, got {len(objects)} lists")
    return _table(
        [[_weights(streams, prompt, words) for words in of] for prompt, of in zip(prompts, objects, strict=True)]
    )


def _weights(streams: Sequence[Stream], prompt: str, words: str) -> dict[int, float]:
    """Position -> weight of one object's tokens."""
    start, stop = find(prompt, words)
    found = [[begin + i for i in tokens_of(tokenizer, prompt, start, stop)] for tokenizer, begin in streams]
    found = [places for places in found if places]
    if not found:
        lengths = " and ".join(str(tokenizer.length) for tokenizer, _ in streams)
        raise ValueError(
            f"expected words among the first {lengths} tokens of the prompt {prompt!r}, got {words!r} beyond"
        )
    return {place: 1 / (len(found) * len(places)) for places in found for place in places}


def reference_compat(prompts: Sequence[str], item_idx: Sequence[Sequence[int]], length: int = 77) -> Spans:
    """Tokens as the released code of AsynDM (arXiv 2510.04504) takes them: one for each object, at `item_idx + 1`.

    `item_idx` counts the words of a prompt from 0, and the code adds 1 for the token that begins a text: it takes every
    word for one token of CLIP's. A comma or a word of several tokens shifts all later objects. It is for comparisons
    with published numbers; `data.prompts` finds the words that were meant.

    Raises:
        ValueError: a position beyond the `length` tokens; no objects at all.
    """
    for prompt, places in zip(prompts, item_idx, strict=True):
        if not all(0 <= place < length - 1 for place in places):
            raise ValueError(f"expected positions of words from 0 to {length - 2} for {prompt!r}, got {list(places)}")
    return _table([[{place + 1: 1.0} for place in places] for places in item_idx])


def _table(objects: Sequence[Sequence[dict[int, float]]]) -> Spans:
    """The objects of each prompt as arrays; rows are filled up with position 0 of weight 0, to a multiple of 8."""
    count = max(map(len, objects), default=0)
    if not count:
        raise ValueError("expected at least one object, got none")
    places = [sorted({place for weights in of for place in weights}) for of in objects]
    rows = -(-max(map(len, places)) // _BLOCK) * _BLOCK
    index: Any = np.zeros((len(objects), rows), np.int32)
    weight: Any = np.zeros((len(objects), rows, count), np.float32)
    for b, of in enumerate(objects):
        index[b, : len(places[b])] = places[b]
        for k, weights in enumerate(of):
            for place, value in weights.items():
                weight[b, places[b].index(place), k] = value
    return Spans(index, weight)
