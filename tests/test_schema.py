"""JSON of others: what schemas say of wrong values, and files that are made to keep a program busy."""

import json
from typing import Annotated, Any, ClassVar, Literal

import pytest
from msgspec import Meta, Struct

from asyncpatch_jax import schema
from asyncpatch_jax.schema import Settings


class _Layer(Struct, frozen=True):
    width: Annotated[int, Meta(ge=1, le=64)]


class _Net(Settings):
    width: Annotated[int, Meta(ge=1, le=64)]
    depths: int | Annotated[tuple[int, ...], Meta(max_length=2)] | None = 1
    rate: Annotated[float, Meta(gt=0, le=1)] = 0.5
    act: Literal["silu", "gelu"] | None = None
    kinds: tuple[Literal["a", "b"], ...] = ()
    layers: tuple[_Layer, ...] = ()
    on: bool = True

    fixed: ClassVar[dict[str, Any]] = {"bias": False}
    ignored: ClassVar[frozenset[str]] = frozenset({"dropout"})


def test_what_is_there_is_read_and_notes_are_not():
    given = schema.convert(
        {"width": 3, "depths": [1, 2], "rate": 1, "_note": 7, "dropout": "x", "bias": False, "unknown": None},
        _Net,
        "it",
    )
    assert given == _Net(width=3, depths=(1, 2), rate=1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected the setting 'width' in it, got none"),
        ({"width": None}, "expected the setting width as int in it, got None"),
        ({"width": True}, "expected the setting width as int in it, got True"),
        ({"width": 2.0}, "expected the setting width as int in it, got 2.0"),
        ({"width": 0}, "expected the setting width as int >= 1 in it, got 0"),
        ({"width": 10**9}, "expected the setting width as int <= 64 in it, got 1000000000"),
        ({"width": 10**9000}, "expected the setting width as int <= 64 in it, got a int of very many digits"),
        ({"width": 1, "rate": float("nan")}, "expected the setting rate as float > 0.0 in it, got nan"),
        ({"width": 1, "rate": float("inf")}, "expected the setting rate as float <= 1.0 in it, got inf"),
        ({"width": 1, "rate": 10**400}, "rate as a number that a computer can hold in it, got 1000"),
        ({"width": 1, "depths": "x"}, "expected the setting depths as int | list | null in it, got 'x'"),
        ({"width": 1, "depths": [1, 2, 3]}, "expected the setting depths as list of length <= 2 in it, got [1, 2, 3]"),
        ({"width": 1, "depths": [1, [2]]}, "expected the setting depths[1] as int in it, got [2]"),
        ({"width": 1, "act": "relu"}, "expected the setting act as one of 'silu', 'gelu' in it, got 'relu'"),
        ({"width": 1, "kinds": ["a", "c"]}, "expected the setting kinds[1] as one of 'a', 'b' in it, got 'c'"),
        ({"width": 1, "layers": [{"width": "x"}]}, "expected the setting layers[0].width as int in it, got 'x'"),
        ({"width": 1, "layers": [{}]}, "expected the setting 'layers[0].width' in it, got none"),
        ({"width": 1, "bias": True}, "expected bias = False in it, got True"),
        ({"width": 1, "new": 3}, "expected no other settings than known ones in it, got the unknown setting new = 3"),
        ({"width": 1, "new": "y" * 999}, "got the unknown setting new = 'yyy"),
        ({"width": 1, "kinds": ["\ud800"]}, "expected text in it, got half a character in '\\ud800'"),
        ([1], "expected an object of settings as it, got [1]"),
    ],
)  # fmt: skip
def test_an_error_names_setting_file_expected_and_got(content, message):
    with pytest.raises(ValueError, match="expected") as error:
        schema.convert(content, _Net, "it")
    assert str(error.value).startswith(message) or message in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "expected JSON in .*file.json, got Expecting"),
        (b"", "expected JSON in .*file.json, got Expecting"),
        (b"\xff{", "expected text in UTF-8 in .*file.json, got byte 0xff"),
        (b"[1]", "expected a JSON object in .*file.json, got list"),
        (b'{"a":' * 100_000, "at most 64 levels in .*file.json, got more"),
        (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", "at most 64 levels in .*file.json, got more"),
        (b'{"a":' + b"1" * 5000 + b"}", "expected JSON in .*file.json, got Exceeds the limit"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a pointer of Git LFS: .*git lfs pull"),
    ],
    ids=["cut", "empty", "encoding", "list", "bomb", "levels", "digits", "lfs"],
)
def test_files_that_are_none(tmp_path, data, message):
    (tmp_path / "file.json").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        schema.read_json(tmp_path / "file.json")


def test_a_file_that_is_missing_or_too_large(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"expected a file .*none.json, got none"):
        schema.read_json(tmp_path / "none.json")
    (tmp_path / "file.json").write_text('{"a": 12345}')
    monkeypatch.setattr(schema, "MOST", 8)
    with pytest.raises(ValueError, match=r"at most 8 characters in .*file.json, got 12"):
        schema.read_json(tmp_path / "file.json")


def test_what_programs_write(tmp_path):
    """A byte-order mark, numbers that JSON does not have, and many entries."""
    file = tmp_path / "file.json"
    content = {"lambda_min_clipped": -float("inf"), **{str(i): i for i in range(1000)}}
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    assert schema.read_json(file) == content
    file.write_bytes(b'{"a":' + b"[" * 60 + b"]" * 60 + b"}")
    assert list(schema.read_json(file)) == ["a"]


def test_errors_within_a_file_name_it():
    with pytest.raises(ValueError, match=r"^config.json: expected more, got less$"), schema.within("config.json"):
        raise ValueError("expected more, got less")
