"""Files of prompts: texts, tables, JSON of several kinds, and the format of AsynDM's released sets."""

import csv
import hashlib
import io
import json
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asyncpatch_jax.data.prompts import Prompt, drawn, read_prompts, words_at
from launch.shared import prompt_files

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
        ({"a": "cat"}, "without a text of one of these names as value 1: {'a': 'cat'}"),
        (ITEMS, "without a text of one of these names"),
        ([], r"a JSON list of texts, .* got JSON of \[\]"),
        (["a", 3], "got JSON of 'a' as value 1"),
        (["a cat", {"prompt": "a dog"}], "got JSON of 'a cat' as value 1"),
        ([{"prompt": 3}], "without a text of one of these names as value 1"),
        ([{"prompt": " "}], "without a text of one of these names as value 1"),
        ([{"text": "a", "caption": "b"}], "several that may have the prompts: text, caption"),
        # of COCO, files with boxes; captions that are none
        ({"annotations": [{"image_id": 1, "id": 2, "bbox": [0, 0, 1, 1]}]}, "without image_id, id and caption"),
        ({"annotations": [{"image_id": 1, "id": 2, "caption": "\n"}]}, "an annotation without a caption"),
        ({"annotations": {}}, r"got annotations of \{\}"),
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
def test_a_table_is_read_by_its_header_and_refused_without_one(folder, rows, separator, header, suffix):
    table = io.StringIO()
    csv.writer(table, delimiter=separator, lineterminator="\n").writerows([header, *rows] if header else rows)
    lines = "".join(json.dumps({"id": i, "prompt": text}) + "\n" for i, text in rows)
    texts = [text for _, text in rows]
    file = folder / f"p{suffix}"
    file.write_text(lines)
    assert [prompt.text for prompt in read_prompts(file)] == texts
    file.write_text(table.getvalue())
    if header:
        assert [prompt.text for prompt in read_prompts(file)] == texts
    else:
        with pytest.raises(ValueError, match=r"expected prompts in .*p\.\w+ \(a text a line, .* got a table .*header"):
            read_prompts(file)


GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "counting", "include": [{"class": "clock"}], "exclude": [{}], "prompt": "a photo of two clocks"},
]
COCO = {
    "info": {},
    "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}],
    "annotations": [
        {"image_id": 7, "id": 20, "caption": "written later"},
        {"image_id": 7, "id": 11, "caption": "A dog in the grass.\n"},
        {"image_id": 3, "id": 12, "caption": " A cat."},
    ],
}


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        # DrawBench
        (
            'Prompts,Category\r\nA red colored car.,Colors\r\n"A sign that says ""Hi"", twice.",Text\r\n',
            ["A red colored car.", 'A sign that says "Hi", twice.'],
        ),
        # PartiPrompts: its quotation marks are the prompts', and some rows end with an empty note
        (
            "Prompt\tCategory\tChallenge\tNote\n"
            "42\tAbstract\tBasic\tSimple numbers\n"
            'A robot. The words "Fly an airplane" are there\tOutdoor Scenes\tComplex\t\n'
            '"Deep Learning" on a sign\tArts\tComplex\n',
            ["42", 'A robot. The words "Fly an airplane" are there', '"Deep Learning" on a sign'],
        ),
        ("".join(f"{json.dumps(row)}\n" for row in GENEVAL), [row["prompt"] for row in GENEVAL]),
        (json.dumps(GENEVAL[0]), ["a photo of a bench"]),
        (json.dumps(GENEVAL, indent=2), [row["prompt"] for row in GENEVAL]),
        (json.dumps(COCO), ["A cat.", "A dog in the grass."]),
        # T2I-CompBench
        (
            "a red apple and a green train\nThe fiery, blazing sun, red\n",
            ["a red apple and a green train", "The fiery, blazing sun, red"],
        ),
        ('["a cat", "a dog"]', ["a cat", "a dog"]),
        (",prompt,text\n0,a cat,oil\n1,a dog,ink\n", ["a cat", "a dog"]),
        ('id,prompt\n1,"a cat\non a mat"\n2,a dog\n', ["a cat\non a mat", "a dog"]),
        ("prompt\na cat, red\na dog\n", ["a cat, red", "a dog"]),
    ],
)
@pytest.mark.parametrize("name", ["p.txt", "p.dat"])
def test_layouts_that_people_have_are_read_by_what_is_in_them(folder, name, content, texts):
    (folder / name).write_bytes(content.encode())
    assert [prompt.text for prompt in read_prompts(folder / name)] == texts


@pytest.mark.parametrize(
    ("name", "content", "seen"),
    [
        ("p.txt", "text\na cat\n", "a first line, 'text', that may name the others"),
        ("p.txt", "a cat\t1\na dog\t2\n", "2 columns, separated by tabs: a cat"),
        ("p.txt", '"a cat","oil"\n"a dog","ink"\n', "2 columns, with quotation marks, separated by commas"),
        ("p.txt", '"a cat","oil"\n', "2 columns, with quotation marks"),
        ("p.txt", '"a cat";"oil"\n"a ""red"" dog";"ink"\n', "with quotation marks, separated by semicolons"),
        ("p.txt", '"a cat, red",oil\na dog,ink\n', "2 columns, with quotation marks, separated by commas"),
        ("p.txt", '"a cat",\n"a dog",\n', "2 columns, with quotation marks"),
        ("p.txt", '"a cat"\n"a dog, red"\n', 'each line in quotation marks: "a cat"'),
        ("p.csv", "a cat,red\n", r"a table \(.csv\) without a header"),
        ("p.csv", "prompt,style\na cat, red,oil\n", "2 columns .prompt,style. with 3 in row 2"),
        ("p.csv", "style,prompt\noil,a cat\noil\n", "2 columns .style,prompt. without a prompt in row 3"),
        ("p.csv", "text,caption\na,b\n", "several that may have the prompts: text, caption"),
        ("p.parquet", "PAR1\0", "a table whose name ends in .parquet"),
        ("p.yaml", "prompts:\n- a cat\n", "a file whose name ends in .yaml; write its prompts to a .txt file"),
        ("p.MD", "| --- |\n| a cat |\n", "a file whose name ends in .MD"),
        ("p.txt", "", "got nothing"),
        ("p.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS"),
        # cut off
        ("p.txt", '{"tag": "single_object", "incl', "expected JSON in .*Unterminated"),
        ("p.jsonl", '{"prompt": "a cat"}\n{"prompt": "a d\n', "expected JSON in .* in line 2"),
        ("p.jsonl", '{"prompt": "a cat"}\na dog\n', "expected JSON in .* in line 2"),
        ("p.txt", '[\n  "a cat",\n', "expected JSON in"),
        ("p.txt", '{"images": [{"id": 1}], "annot', "expected JSON in"),
        ("p.txt", "[1, 2]", "got JSON of 1 as value 1"),
    ],
)
def test_what_was_seen_of_another_file_is_said(folder, name, content, seen):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=seen):
        read_prompts(folder / name)


def test_a_sample_can_be_drawn_again_by_anyone(folder):
    """With the standard library alone, from what docs/data.md says."""
    file = written(folder / "p.json", [f"prompt {i}" for i in range(50)])
    rank = {i: hashlib.sha256(f"42:{i}".encode()).hexdigest() for i in range(50)}
    smallest = sorted(rank, key=rank.get)
    found = prompt_files.texts(file, 7)
    assert found == [f"prompt {i}" for i in sorted(smallest[:7])]
    assert set(found) < set(prompt_files.texts(file, 20))
    assert found != prompt_files.texts(file, 7, 43)
    assert prompt_files.texts(file, 50) == prompt_files.texts(file)
    # each as often as another: of 2,000 draws of 1 of 4, about 500
    counts = [sum(drawn(range(4), 1, seed) == [i] for seed in range(2000)) for i in range(4)]
    assert max(abs(count - 500) for count in counts) < 5 * (2000 * 3 / 16) ** 0.5
    with pytest.raises(ValueError, match=r"a sample of 1 to 50 prompts, .* got 51, in .*p.json"):
        prompt_files.texts(file, 51)
    with pytest.raises(ValueError, match="expected a file of prompts to draw 5 from, got none"):
        prompt_files.texts("", 5)


def test_prompts_that_only_resemble_a_table(folder):
    given = [
        "a cat, a dog, and 3 birds",
        "text on a sign: prompt, please",
        'the word "text", in red',
        "[a photo of] a cat",
        "[[blurry]] cat",
        "{a cat}",
        "text, prompt, please",
        "1, 2, 3, go",
        '"an unfinished quotation, 4',
    ]
    quoting = ['"STOP", on a red sign', '"GO", on a green sign', 'a sign: "yes, now", in red', '"a", "b" and "c"']
    for texts in (
        *(given, quoting, quoting[:2], ["text"], ['"a cat"'], ['"STOP",a sign'], ["a cat,red", "a dog,blue"]),
        *(given[3:], given[4:], given[5:], ["a dog, text", "a cat, red"]),
    ):
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
