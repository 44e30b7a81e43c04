"""The objects of a prompt, found by spaCy: its noun phrases.

spaCy and its models are no extra of this package: the models are on no package index. `pip install spacy`, then
`python -m spacy download en_core_web_sm`.
"""

from functools import lru_cache
from typing import Any

from asyncpatch_jax.pretrained.text.spans import find


def noun_phrases(prompt: str, model: str = "en_core_web_sm") -> tuple[str, ...]:
    """The noun phrases of a prompt without their articles, in order, as `spans` takes them: "red car", "dog#2".

    A phrase without a noun, such as "it", is left out.

    Args:
        model: spaCy's, with a parser.

    Raises:
        ImportError: spaCy is not installed.
        ValueError: the model is not.
    """
    phrases = []
    for chunk in _parser(model)(prompt).noun_chunks:
        words = list(chunk)
        while words and words[0].pos_ in ("DET", "PRON"):
            words.pop(0)
        if any(word.pos_ in ("NOUN", "PROPN") for word in words):
            start = words[0].idx
            phrases.append(_numbered(prompt, start, words[-1].idx + len(words[-1].text)))
    return tuple(phrases)


def _numbered(prompt: str, start: int, stop: int) -> str:
    """The words at start ... stop, with the number of their occurrence unless it is the first."""
    words = prompt[start:stop]
    nth = 1
    while find(prompt, f"{words}#{nth}")[0] != start:
        nth += 1
    return words if nth == 1 else f"{words}#{nth}"


@lru_cache(maxsize=2)
def _parser(model: str) -> Any:
    try:
        import spacy
    except ImportError as error:
        raise ImportError(
            f"finding objects needs spaCy: pip install spacy; python -m spacy download {model}"
        ) from error
    try:
        return spacy.load(model)
    except OSError as error:
        raise ValueError(f"expected spaCy's model {model}, got none: python -m spacy download {model}") from error
