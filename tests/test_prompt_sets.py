"""Files of prompts: texts, JSON, and the format of AsynDM's released sets."""

import json

import pytest

from asyncpatch_jax.data.prompts import Prompt, read_prompts, words_at

# from the released sets: a space that ends a prompt, a hyphen, commas
TEXTS = ["A painting of green apples and bananas ", "A cross-section view of a brain.", "a dog and a dog"]
ITEMS = {
    "item_idx": {TEXTS[0]: [4, 6], TEXTS[1]: [6], TEXTS[2]: [1, 4], "another": [0]},
    "item_k": {TEXTS[0]: [0.3, 0.5], TEXTS[1]: [0.7], TEXTS[2]: [0, 1], "another": [0.3]},
}


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_released_format(tmp_path):
    file, items = written(tmp_path / "prompts.json", TEXTS), written(tmp_path / "items.json", ITEMS)
    assert read_prompts(file, items) == [
        Prompt(TEXTS[0], ("apples", "bananas"), (0.3, 0.5), (4, 6)),
        Prompt(TEXTS[1], ("brain",), (0.7,), (6,)),
        Prompt(TEXTS[2], ("dog", "dog#2"), (0.0, 1.0), (1, 4)),
    ]


def test_lists_of_texts(tmp_path):
    plain = written(tmp_path / "prompts.txt", "a cat\n\n  \na dog on the street\r\nun café\n")
    assert [prompt.text for prompt in read_prompts(plain)] == ["a cat", "a dog on the street", "un café"]
    assert read_prompts(written(tmp_path / "prompts.json", TEXTS)) == [Prompt(text) for text in TEXTS]


def test_words_at_positions():
    emoji = "An emoji of a baby panda wearing a red hat, green gloves, red shirt, and green pants."
    assert words_at(emoji, [5, 9, 11, 13, 16]) == ("panda", "hat", "gloves", "shirt", "pants")
    with pytest.raises(ValueError, match="the 2 words"):
        words_at("a dog", [2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON in"),
        ({"a": "cat"}, "a list of texts"),
        ([], "a list of texts"),
        (["a", 3], "a list of texts"),
    ],
)
def test_what_is_no_list_of_prompts(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(written(tmp_path / "prompts.json", content))
    with pytest.raises(ValueError, match=r"nowhere\.txt"):
        read_prompts(tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_k": None, "item_idx": {}}, "'a dog' under item_idx"),
        ({"items": {}}, "item_idx and item_k"),
        ([], "got list"),
        ({"item_idx": {"a dog ": [1]}, "item_k": {"a dog ": [1]}}, "'a dog' under item_idx"),
        ({"item_idx": {"a dog": [1]}, "item_k": {"a dog": [0.3, 0.3]}}, "got 2, 1"),
        ({"item_idx": {"a dog": [2]}, "item_k": {"a dog": [0.3]}}, "the 2 words"),
        ({"item_idx": {"a dog": [1.0]}, "item_k": {"a dog": [0.3]}}, "list of numbers"),
        ({"item_idx": {"a dog": 1}, "item_k": {"a dog": [0.3]}}, "list of numbers"),
        ({"item_idx": {"a dog": [True]}, "item_k": {"a dog": [0.3]}}, "list of numbers"),
        ({"item_idx": {"a dog": [1]}, "item_k": {"a dog": [-0.3]}}, "at least 0"),
        ({"item_idx": {"a dog": [1]}, "item_k": {"a dog": [float("nan")]}}, "at least 0"),
    ],
)
def test_what_is_no_file_of_objects(tmp_path, change, message):
    file = written(tmp_path / "prompts.json", ["a dog"])
    with pytest.raises(ValueError, match=message):
        read_prompts(file, written(tmp_path / "items.json", change))
