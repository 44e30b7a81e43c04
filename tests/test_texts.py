"""Text files as they come: encodings, marks, ends of lines, and words that look equal."""

import codecs
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asyncpatch_jax import texts
from asyncpatch_jax.texts import check_whole, composed, read_text, words

few = settings(max_examples=60, deadline=None)
# what Python's splitlines splits at and no editor shows as a line, among other characters
ODD = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\ufeff"
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("texts") / "file.txt"


@few
@given(
    text=st.text(st.sampled_from(f"aé\n {ODD}") | characters),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
@example("a\u2028b", "utf-8-sig", "\r\n")
def test_every_way_to_save_a_text_reads_back_the_text(file, text, encoding, end):
    if encoding == "utf-8":
        text = text.lstrip("\ufeff")  # as the first character it says "UTF-8" and nothing else
    file.write_bytes(text.replace("\n", end).encode(encoding))
    assert read_text(file) == text


@few
@given(st.binary(max_size=40))
@example(b"\xef\xbb\xbf\xff")
@example(b"\xff\xfe\x00\xd8")
@example(b"\xff\xfe\x00\x00a\x00\x00\x00")  # UTF-32
@example(b"caf\xe9\n")
@example(b"PAR1\0\0")
def test_any_bytes_are_text_or_an_error_that_names_the_file(file, content):
    file.write_bytes(content)
    try:
        text = read_text(file)
    except ValueError as problem:
        text, said = None, str(problem)
    if text is None:
        assert said.startswith("expected text in")
        assert f"{file}, got" in said
        return
    assert "\0" not in text
    wide = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    whole = content.decode("utf-16" if wide else "utf-8-sig")
    assert text == whole.replace("\r\n", "\n").replace("\r", "\n")


def test_what_is_no_text_file(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"expected a file .*none\.txt, got none"):
        read_text(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="got Is a directory"):
        read_text(tmp_path)
    (tmp_path / "latin.txt").write_bytes("un\nun café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt, got byte 0xe9 at 9 \(line 2\); .*UTF-8"):
        read_text(tmp_path / "latin.txt")
    (tmp_path / "long.txt").write_text("a" * 11)
    monkeypatch.setattr(texts, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match=r"at most 10 bytes of text in .*long\.txt"):
        read_text(tmp_path / "long.txt")


@few
@given(st.text())
def test_words_that_look_equal_are_equal(text):
    forms = {form: unicodedata.normalize(form, text) for form in ("NFC", "NFD")}
    assert composed(forms["NFC"]) == composed(forms["NFD"])
    assert words(forms["NFC"]) == words(forms["NFD"])


def test_words_keep_their_marks():
    assert words("A naïve cross-section, dog's") == ["A", "naïve", "cross", "section", "dog", "s"]
    assert words(unicodedata.normalize("NFD", "naïve")) == ["naïve"]
    assert words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]


@few
@given(st.text(st.characters(codec="utf-8") | st.sampled_from("\ud800\udc00\udfff")))
def test_half_a_character_is_refused(text):
    try:
        text.encode()
    except UnicodeEncodeError as error:
        with pytest.raises(ValueError, match=rf"whole characters, got half of one at {error.start}: "):
            check_whole(text)
    else:
        check_whole(text)
