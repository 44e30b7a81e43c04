"""Text that people wrote: one way from a file's bytes to characters, and from characters to words that look equal."""

import codecs
import re
import unicodedata

from etils import epath

MOST_BYTES = 2**28
"""Of a file of text: a tokenizer of 10^6 tokens has 30 MB, and what is larger is no text that anyone wrote."""

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def read_text(path: epath.PathLike) -> str:
    """The characters of a text file. Its lines end as those of files written on Linux; nothing else is changed.

    The encoding is UTF-8, or UTF-16 where the file begins with that one's byte-order mark: editors on Windows write
    both. The mark is no part of the text.

    Raises:
        ValueError: no such file, a folder or a file of more than `MOST_BYTES`; another encoding, with the first byte
            that does not fit; a zero, which text does not hold. Names the file.
    """
    path = epath.Path(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise ValueError(f"expected a file {path}, got none") from error
    except OSError as error:
        raise ValueError(f"expected a file of text at {path}, got {error.strerror or error}") from error
    if len(content) > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES:,} bytes of text in {path}, got more")
    mark, encoding = next(((mark, name) for mark, name in _MARKS if content.startswith(mark)), (b"", "utf-8"))
    content = content[len(mark) :]
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"expected text in UTF-8 in {path}, got byte {content[error.start]:#04x} at {len(mark) + error.start} "
            f'(line {line}); an editor\'s "Save as" has UTF-8'
        ) from error
    if "\0" in text:
        raise ValueError(f"expected text in {path}, got a zero as character {text.index(chr(0))}: no text file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_whole(text: str) -> None:
    """Refuse a text with half of a character in it: JSON can write one, and arguments in another encoding become such.

    Raises:
        ValueError: shows where it is.
    """
    # in UTF-16 these stand for a character two by two; in a text they are alone
    halves = [] if text.isascii() else [i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff"]
    if halves:
        around = text[max(0, halves[0] - 20) : halves[0] + 20]
        raise ValueError(f"expected a text of whole characters, got half of one at {halves[0]}: {around!r}")


def composed(text: str) -> str:
    """A text in Unicode's composed form (NFC), in which texts that look equal are equal.

    "é" is one character or an e and an accent: keyboards write the first, file names on a Mac have the second.
    """
    return unicodedata.normalize("NFC", text)


def is_mark(character: str) -> bool:
    """Whether a character belongs to the one before it: accents, and the vowel signs of Indian scripts."""
    return unicodedata.category(character).startswith("M")


def words(text: str) -> list[str]:
    """The runs of letters, digits and their marks of a text, composed: a hyphen or an apostrophe separates two."""
    text = composed(text)
    marks = "".join({character for character in text if is_mark(character)})
    return re.findall(rf"[\w{re.escape(marks)}]+", text)
