"""Words to tokens, for both sorts of tokenizer, and the released code's own way."""

import sys
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest

from asyncpatch_jax.data.prompts import words_at
from asyncpatch_jax.pretrained.text.objects import noun_phrases
from asyncpatch_jax.pretrained.text.spans import find, reference_compat, spans
from asyncpatch_jax.pretrained.text.tokenizers import read_tokenizer
from tests import tiny

PROMPT = "a red dog, and two dogs beside a Photograph of a DOG"


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    tiny.clip_tokenizer(root / "clip")
    tiny.t5_tokenizer(root / "t5")
    return {name: read_tokenizer(root / name, 77) for name in ("clip", "t5")}


def text_of(tokenizer, prompt, places):
    offsets = tokenizer.offsets(prompt)
    return prompt[min(offsets[i][0] for i in places) : max(offsets[i][1] for i in places)]


@pytest.mark.parametrize("name", ["clip", "t5"])
@pytest.mark.parametrize(
    ("words", "there"),
    [
        ("dog", "dog"),
        ("Dog#2", "DOG"),
        ("two dogs", "two dogs"),
        ("photograph", "Photograph"),
        ("red  dog", "red dog"),
        ("a", "a"),
        ("a#3", "a"),
    ],
)
def test_tokens_hold_the_words(tokenizers, name, words, there):
    table = spans([(tokenizers[name], 0)], [PROMPT], [[words]])
    used = table.weight[0, :, 0] > 0
    places = table.index[0, used]
    assert text_of(tokenizers[name], PROMPT, places) == there
    np.testing.assert_allclose(table.weight[0, used, 0], 1 / len(places))
    start, stop = find(PROMPT, words)
    assert PROMPT[start:stop] == there


@pytest.mark.parametrize(
    ("words", "times"),
    [
        ("cat", "not at all"),
        ("do", "not at all"),
        ("red#2", "once"),
        ("a#4", "3 times"),
        ("a#0", "3 times"),
        ("", "not"),
    ],
)
def test_words_that_are_not_there(tokenizers, words, times):
    with pytest.raises(ValueError, match=f"(?s)a red dog.*{words!r}.*{times}"):
        spans([(tokenizers["clip"], 0)], [PROMPT], [[words]])


def test_words_with_punctuation():
    assert find("a dog's ball", "dog's") == (2, 7)
    assert find("a dog's ball", "dog") == (2, 5)
    assert find("an ice-cream", "ice-cream") == (3, 12)
    assert find("Ein Café, bitte", "café") == (4, 8)
    assert find("C++ on a mug", "c++") == (0, 3)


@pytest.mark.parametrize("prompt_form", ["NFC", "NFD"])
@pytest.mark.parametrize("words_form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("ein Café, ein CAFÉ", "café#2"),
        ("a Vietnamese phở bowl", "phở"),  # two marks, which may be in either order
        ("서울 한강 다리", "한강"),
        ("एक हिन्दी किताब", "हिन्दी"),
        ("Å la carte", "å la"),
    ],
)
def test_words_that_look_equal_are_found(prompt, words, prompt_form, words_form):
    prompt, words = unicodedata.normalize(prompt_form, prompt), unicodedata.normalize(words_form, words)
    start, stop = find(prompt, words)
    there = unicodedata.normalize("NFC", prompt[start:stop]).lower()
    assert there == unicodedata.normalize("NFC", words).lower().removesuffix("#2")
    assert "#2" not in words or start > len("ein Café")
    # and nothing is cut in two: the next character begins anew
    assert not prompt[stop:] or not unicodedata.combining(prompt[stop])


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    ("prompt", "part"), [("a café", "caf"), ("a café", "cafe"), ("हिन्दी", "हिन"), ("각", "가"), ("naïve", "ve")]
)
def test_a_part_of_a_word_is_not_found(prompt, part, form):
    with pytest.raises(ValueError, match="not at all"):
        find(unicodedata.normalize(form, prompt), part)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_tokens_of_a_word_with_marks(tokenizers, form):
    prompt = unicodedata.normalize(form, "a red café dog")
    for name in ("clip", "t5"):
        table = spans([(tokenizers[name], 0)], [prompt], [["dog", "red"]])
        for k, word in enumerate(("dog", "red")):
            assert text_of(tokenizers[name], prompt, table.index[0, table.weight[0, :, k] > 0]) == word


@pytest.mark.filterwarnings("ignore:.*cut from a prompt")
def test_words_beyond_the_cut(tokenizers, tmp_path):
    tiny.clip_tokenizer(tmp_path / "clip")
    short = read_tokenizer(tmp_path / "clip", 7)
    with pytest.raises(ValueError, match=r"first 7 tokens of the prompt 'a red dog.*'dog#2'"):
        spans([(short, 0)], [PROMPT], [["dog#2"]])
    # a second stream that reads on knows the word
    table = spans([(short, 0), (tokenizers["t5"], 7)], [PROMPT], [["dog#2"]])
    places = table.index[0, table.weight[0, :, 0] > 0]
    assert text_of(tokenizers["t5"], PROMPT, places - 7) == "DOG"
    # the last position that is left holds the end of the text
    last = len(short.encode([PROMPT]).ids[0]) - 1
    for table in (spans([(short, 0)], [PROMPT], [["a"]]),):
        assert (table.index[table.weight[..., 0] > 0] < last).all()


def test_two_streams_have_equal_shares(tokenizers):
    table = spans([(tokenizers["clip"], 0), (tokenizers["t5"], 77)], [PROMPT], [["photograph", "red"]])
    for k in range(2):
        weight = table.weight[0, :, k]
        early = table.index[0] < 77
        np.testing.assert_allclose([weight[early].sum(), weight[~early].sum()], 0.5, rtol=1e-6)
        places = table.index[0, (weight > 0) & ~early] - 77
        assert text_of(tokenizers["t5"], PROMPT, places).lower() == ["photograph", "red"][k]


def test_a_batch_is_filled_up(tokenizers):
    prompts = [PROMPT, "a cat", "two cats and a sheep"]
    table = spans([(tokenizers["t5"], 0)], prompts, [["dog", "red dog"], [], ["sheep"]])
    assert table.index.shape[0] == table.weight.shape[0] == 3
    assert table.index.shape[1] % 8 == 0
    assert table.weight.shape[2] == 2
    np.testing.assert_allclose(table.weight.sum(1), [[1, 1], [0, 0], [1, 0]], rtol=1e-6)
    # a token of two objects is there once
    used = table.index[0, table.weight[0].sum(-1) > 0]
    assert len(used) == len(set(used))


def test_lists_that_do_not_match(tokenizers):
    stream = [(tokenizers["clip"], 0)]
    with pytest.raises(ValueError, match="each of 2 prompts, got 1"):
        spans(stream, ["a cat", "a dog"], [["cat"]])
    with pytest.raises(ValueError, match="at least one object"):
        spans(stream, ["a cat"], [[]])


def test_reference_compat_takes_one_column_a_word():
    table = reference_compat(["a cat eating a sandwich", "a dog"], [[1, 4], [1]])
    columns = [table.index[b][table.weight[b, :, k] > 0].tolist() for b, k in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert columns == [[2], [5], [2], []]
    assert set(np.unique(table.weight)) == {0.0, 1.0}
    with pytest.raises(ValueError, match="from 0 to 75"):
        reference_compat(["a cat"], [[76]])


def test_reference_compat_is_shifted_by_a_comma(tokenizers):
    prompt = "a red hat, a dog"
    ours = spans([(tokenizers["clip"], 0)], [prompt], [words_at(prompt, [4])])
    theirs = reference_compat([prompt], [[4]])
    place = theirs.index[0][theirs.weight[0, :, 0] > 0]
    start, stop = tokenizers["clip"].offsets(prompt)[place[0]]
    assert prompt[start:stop] != "dog"
    assert text_of(tokenizers["clip"], prompt, ours.index[0][ours.weight[0, :, 0] > 0]) == "dog"


class Chunk(list):
    """Of spaCy's parse of a prompt: words with their places and parts of speech."""


def parsed(prompt, chunks):
    """What spaCy's parser would say, from (words, parts of speech) of each noun chunk in order."""
    end, found = 0, []
    for words, kinds in chunks:
        chunk = Chunk()
        for word, kind in zip(words.split(), kinds.split(), strict=True):
            end = prompt.index(word, end) + len(word)
            chunk.append(SimpleNamespace(text=word, idx=end - len(word), pos_=kind))
        found.append(chunk)
    return SimpleNamespace(noun_chunks=found)


def test_noun_phrases_are_objects(tokenizers, monkeypatch):
    prompt = "The red dog beside a dog and a red dog, it barks at DOG town"
    chunks = [
        ("The red dog", "DET ADJ NOUN"),
        ("a dog", "DET NOUN"),
        ("a red dog", "DET ADJ NOUN"),
        ("it", "PRON"),
        ("DOG town", "PROPN NOUN"),
    ]
    spacy = SimpleNamespace(load=lambda model: lambda text: parsed(text, chunks))
    monkeypatch.setitem(sys.modules, "spacy", spacy)
    found = noun_phrases(prompt, "parser")
    assert found == ("red dog", "dog#2", "red dog#2", "DOG town")
    table = spans([(tokenizers["t5"], 0)], [prompt], [found])
    places = [table.index[0, table.weight[0, :, k] > 0] for k in range(4)]
    assert [text_of(tokenizers["t5"], prompt, place) for place in places] == ["red dog", "dog", "red dog", "DOG town"]
    assert len({tuple(place) for place in places}) == 4


def test_what_finds_objects_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ImportError, match="pip install spacy"):
        noun_phrases("a dog", "missing library")

    def load(model):
        raise OSError("no such model")

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))
    with pytest.raises(ValueError, match="spacy download missing_model"):
        noun_phrases("a dog", "missing_model")
