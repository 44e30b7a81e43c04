"""Files of prompts: texts, JSON, and the format of AsynDM's released sets."""

import csv
import io
import json
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

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
        ({"item_k": None, "item_idx": {}}, "an object of prompts under item_k"),
        ({"item_k": {}, "item_idx": {}}, "'a dog' under item_idx"),
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("prompts")


# what separates lines for Python and for no editor, marks of encodings, and what prompts are made of
pieces = st.sampled_from(["a cat", "un café", "\u2028", "\x85", "\x0b", "\x0c", "\x1e", ", ", '"', "#", "é", "{", " "])
prompt = st.lists(pieces, min_size=1, max_size=6).map(lambda parts: "dog " + "".join(parts))


@settings(max_examples=60, deadline=None)
@given(
    given=st.lists(prompt, min_size=1, max_size=4),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    end=st.sampled_from(["\n", "\r\n", "\r", "\n\n \n"]),
)
@example(["a\u2028b\x85c\x0bd\x0ce"], "utf-8-sig", "\r\n")
def test_a_prompt_is_what_an_editor_shows_as_a_line(folder, given, encoding, end):
    for name, content in (("p.txt", end.join(given) + end), ("p.json", json.dumps(given, ensure_ascii=False))):
        (folder / name).write_bytes(content.encode(encoding))
        assert [prompt.text for prompt in read_prompts(folder / name)] == given


def test_joined_files_keep_no_marks_inside(folder):
    (folder / "p.txt").write_bytes("a cat\n".encode("utf-8-sig") + "a dog\n".encode("utf-8-sig"))
    assert [prompt.text for prompt in read_prompts(folder / "p.txt")] == ["a cat", "a dog"]


field = st.text(st.sampled_from('ab ,;|"\t'), min_size=1, max_size=8).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 99), field), min_size=2, max_size=4),
    separator=st.sampled_from(",\t;|"),
    header=st.sampled_from([None, ("id", "prompt"), ("Seed", "Caption")]),
    suffix=st.sampled_from([".txt", ".csv", ".jsonl"]),
)
def test_tables_are_refused_whatever_they_are_called(folder, rows, separator, header, suffix):
    table = io.StringIO()
    csv.writer(table, delimiter=separator, lineterminator="\n").writerows([header, *rows] if header else rows)
    lines = "".join(json.dumps({"id": i, "prompt": text}) + "\n" for i, text in rows)
    for content in (table.getvalue(), lines):
        file = folder / f"p{suffix}"
        file.write_text(content)
        with pytest.raises(
            ValueError, match=r"expected prompts in .*p\.\w+, one a line, got a table: .*to a \.txt file"
        ):
            read_prompts(file)


@pytest.mark.parametrize(
    ("name", "content", "seen"),
    [
        ("p.txt", "prompt\na cat\n", "a header: prompt"),
        ("p.txt", 'text,style\n"a cat, red",oil\na dog,ink\n', "separated by commas: text,style"),
        ("p.txt", "a cat\t1\na dog\t2\n", "2 columns in each line, separated by tabs: a cat"),
        (
            "p.txt",
            '"a cat","oil"\n"a dog","ink"\n',
            "2 columns in each line, with quotation marks, separated by commas",
        ),
        ("p.txt", '"a cat","oil"\n', "2 columns in each line, with quotation marks"),
        ("p.txt", '"a cat";"oil"\n"a ""red"" dog";"ink"\n', "with quotation marks, separated by semicolons"),
        ("p.txt", '"a cat, red",oil\na dog,ink\n', "2 columns in each line, with quotation marks, separated by commas"),
        ("p.txt", '"a cat",\n"a dog",\n', "2 columns in each line, with quotation marks"),
        ("p.txt", '"a cat"\n"a dog, red"\n', 'each line in quotation marks: "a cat"'),
        ("p.txt", '["a cat", "a dog"]\n', "a name|name does not end in .json"),
        ("p.txt", '{"prompt": "a cat"}\n{"prompt": "a dog"}\n', "a JSON value a line"),
        ("p.jsonl", "a cat\n", "its name ends in .jsonl"),
        ("p.parquet", "PAR1\0", "its name ends in .parquet"),
    ],
)
def test_what_was_seen_of_a_table_is_said(folder, name, content, seen):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=seen):
        read_prompts(folder / name)


def test_prompts_that_only_resemble_a_table(folder):
    given = [
        "a cat, a dog, and 3 birds",
        "text on a sign: prompt, please",
        'the word "text", in red',
        "[a photo of] a cat",
        "{a cat}",
        "1, 2, 3, go",
        '"an unfinished quotation, 4',
    ]
    quoting = ['"STOP", on a red sign', '"GO", on a green sign', 'a sign: "yes, now", in red', '"a", "b" and "c"']
    for texts in (given, quoting, quoting[:2], ["text"], ['"a cat"'], ['"STOP",a sign'], ["a cat,red", "a dog,blue"]):
        (folder / "p.txt").write_text("\n".join(texts))
        assert [prompt.text for prompt in read_prompts(folder / "p.txt")] == texts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["a \\ud83d cat"]', "whole characters"),
        ("[" * 100_000, "beyond any depth"),
        ("\ufeff[", "expected JSON in"),
    ],
)
def test_json_that_no_prompts_are_made_of(folder, content, message):
    (folder / "p.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(folder / "p.json")


def test_prompts_and_their_objects_match_by_their_looks(folder):
    """A prompt typed on a Mac and its objects written on Linux: accents are characters of their own in one of them."""
    texts = ["a naïve bear at a café", "un éléphant"]
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        here, there = ([unicodedata.normalize(f, text) for text in texts] for f in (form, other))
        items = {
            "item_idx": dict(zip(there, [[1, 5], [1]], strict=True)),
            "item_k": dict(zip(there, [[0.1, 0.2], [0.3]], strict=True)),
        }
        found = read_prompts(written(folder / "p.json", here), written(folder / "i.json", items))
        assert found == [
            Prompt(here[0], ("naïve", "café"), (0.1, 0.2), (1, 5)),
            Prompt(here[1], ("éléphant",), (0.3,), (1,)),
        ]
    both = {unicodedata.normalize(form, "un é"): [place] for form, place in (("NFC", 0), ("NFD", 1))}
    items = written(folder / "i.json", {"item_idx": both, "item_k": {text: [0.3] for text in both}})
    with pytest.raises(ValueError, match=r"expected one row for 'un .*under item_idx in .*got two"):
        read_prompts(written(folder / "p.json", ["un é"]), items)
