"""Captioned pictures: every layout gives the same pictures and texts, and what is wrong with one is said."""

import csv
import io
import json
import tarfile

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from asyncpatch_jax import data
from asyncpatch_jax.data.captions import captioned

NAMES = ("a.png", "deep/b.png", "c.webp")
SAID = {"a.png": ["a red square"], "deep/b.png": ["a blue one", "blau, überall"], "c.webp": ["green;\nand large"]}


def pixels(name):
    return np.full((6, 8, 3), [(200, 30, 30), (20, 20, 210), (10, 190, 10)][NAMES.index(name)], np.uint8)


def content(name):
    stream = io.BytesIO()
    options = {"lossless": True} if name.endswith("webp") else {}
    Image.fromarray(pixels(name)).save(stream, format=name.rpartition(".")[2], **options)
    return stream.getvalue()


def pictures(folder):
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content(name))
    return folder


def beside(folder):
    for name, texts in SAID.items():
        stem = (pictures(folder) / name).with_suffix("")
        if len(texts) == 1:
            stem.with_suffix(".txt").write_text(texts[0] + "\n")
            stem.with_suffix(".json").write_text('{"width": 8}')  # a program's notes
        else:
            stem.with_suffix(".json").write_text(json.dumps({"caption": texts, "source": "me"}))
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.png").write_bytes(b"no picture")
    return folder


def rows():
    return [{"file_name": name, "text": texts if len(texts) > 1 else texts[0]} for name, texts in SAID.items()]


def metadata(folder):
    (pictures(folder) / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows())))
    return folder


def lines(folder):
    table = pictures(folder / "pictures").parent / "table.jsonl"
    table.write_text(
        "\n".join(json.dumps({"image": f"pictures/{row['file_name']}", "prompt": row["text"]}) for row in rows())
    )
    return table


def coco(folder):
    images = [{"id": 9 - i, "file_name": f"pictures/{name}"} for i, name in enumerate(NAMES)]
    said = [(9 - i, text) for i, name in enumerate(NAMES) for text in SAID[name]]
    annotations = [{"id": i, "image_id": image, "caption": f" {text}"} for i, (image, text) in enumerate(said)]
    table = pictures(folder / "pictures").parent / "captions_val.json"
    table.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations[::-1]}))
    return table


def archive(folder):
    with tarfile.open(folder / "00.tar", "w") as tar:
        for i, (name, texts) in enumerate(SAID.items()):
            said = json.dumps({"caption": texts}).encode()
            for kind, part in ((name.rpartition(".")[2], content(name)), ("json", said), ("cls", b"7")):
                info = tarfile.TarInfo(f"part/{i:04d}.{kind}")
                info.size = len(part)
                tar.addfile(info, io.BytesIO(part))
    return folder


def parquets(folder):
    bytes_of = [{"bytes": content(name), "path": None} for name in NAMES]
    table = pyarrow.table({"image": bytes_of, "caption": [SAID[name] for name in NAMES], "id": [1, 2, 3]})
    parquet.write_table(table.slice(0, 2), folder / "0.parquet", row_group_size=1)
    parquet.write_table(table.slice(2), folder / "1.parquet")
    return folder


@pytest.mark.parametrize("layout", [beside, metadata, lines, coco, archive, parquets])
def test_every_layout_gives_the_same_pictures_and_texts(layout, tmp_path):
    found = captioned(layout(tmp_path), 4)
    assert (found.num_classes, found.shape, len(found.source)) == (1, (4, 4, 3), 3)
    records = [found.source[i] for i in (2, 0, 1)]  # in any order
    by_text = {tuple(" ".join(text.split()) for text in record["texts"]): record for record in records}
    for name, texts in SAID.items():
        joined = tuple(" ".join(text.split()) for text in texts)
        record = by_text[joined]
        assert record["texts"] == (joined if layout is beside else tuple(texts))
        np.testing.assert_array_equal(record["image"], pixels(name)[:4, :4])
    # what the data is does not depend on where it lies, and does on its texts
    assert len(found.names) == 16


def test_data_are_known_again_elsewhere_and_by_their_texts(tmp_path):
    here, there = captioned(beside(tmp_path / "here"), 4), captioned(beside(tmp_path / "there"), 4)
    assert here.names == there.names
    (tmp_path / "there" / "a.txt").write_text("a crimson square")
    assert captioned(tmp_path / "there", 4).names != here.names


def test_columns_may_be_named_and_pictures_lie_elsewhere(tmp_path):
    pictures(tmp_path / "photos")
    with open(tmp_path / "t.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([["file", "text", "deutsch"], ["a.png", "x", "ein Quadrat, rot"]])
    found = captioned(tmp_path / "t.csv", 4, images=tmp_path / "photos", image="file", text="deutsch")
    assert found.source[0]["texts"] == ("ein Quadrat, rot",)
    with pytest.raises(ValueError, match=r"one column of texts 'english' in .*t.csv, got only file, text, deutsch"):
        captioned(tmp_path / "t.csv", 4, text="english")
    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "path": "a.png", "text": "x"}')
    with pytest.raises(ValueError, match=r"one column of pictures .*, got image, path; say which by image=NAME"):
        captioned(tmp_path / "t.jsonl", 4)
    parquet.write_table(pyarrow.table({"id": [1]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"got only id"):
        captioned(tmp_path / "x.parquet", 4)


def test_all_that_is_wrong_is_said_at_once_or_left_out(tmp_path):
    beside(tmp_path)
    (tmp_path / "alone.png").write_bytes(content("a.png"))
    (tmp_path / "alone.txt").write_text(" \n")
    (tmp_path / "silent.jpg").write_bytes(content("a.png"))
    (tmp_path / "text.txt").write_text("of nothing")
    (tmp_path / "two.png").write_bytes(content("a.png"))
    (tmp_path / "two.jpg").write_bytes(content("a.png"))
    (tmp_path / "broken.png").write_bytes(content("a.png")[:40])
    (tmp_path / "broken.txt").write_text("half of one")
    with pytest.raises(ValueError, match="got 5 others of 8") as said:
        captioned(tmp_path, 4)
    for part in (
        "alone (expected a text, got none)",
        "silent (a picture without a text",
        "text (0 pictures",
        "two (2 pictures",
        "broken.png (",
    ):
        assert part in str(said.value)
    with pytest.warns(UserWarning, match="left out 5 of 8"):
        assert len(captioned(tmp_path, 4, on_error="skip").source) == 3


def test_what_cannot_be_read_is_named(tmp_path):
    for path, says in ((tmp_path / "none", "no such file or folder"), (tmp_path, "got none")):
        with pytest.raises(ValueError, match=says):
            captioned(path, 4)
    for name, written, says in (
        ("x.json", "{", "expected JSON in .*x.json"),
        ("y.json", '{"a": 1}', "COCO's captions in .*y.json"),
        ("z.json", '{"images": [], "annotations": [{"id": 1}]}', "got one without 'image_id'"),
        ("x.csv", "file,text\na.png\n", "expected 2 columns in .*x.csv, got 1 in row 2"),
        ("x.jsonl", '{"file": "gone.png", "text": "x"}', r"gone.png \(no such file\)"),
        ("y.jsonl", '{"file": 3, "text": "x"}', r"row 1 \(no path as file, but 3\)"),
        ("x.tar", "no archive", "expected a tar archive that is not compressed"),
        ("x.parquet", "no table", "expected a Parquet table"),
        ("x.xml", "", "a file out of .tar, .parquet"),
    ):
        (tmp_path / name).write_text(written)
        with pytest.raises(ValueError, match=says):
            captioned(tmp_path / name, 4)
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(ValueError, match=r"got a link or a device: a.png"):
        captioned(tmp_path / "link.tar", 4)


def test_an_archive_that_was_cut_off_since_is_said(tmp_path):
    found = captioned(archive(tmp_path) / "00.tar", 4)
    (tmp_path / "00.tar").write_bytes((tmp_path / "00.tar").read_bytes()[:600])
    with pytest.raises(ValueError, match=r"of part/0001.png in .*00.tar, got 0: cut off"):
        found.source[1]


def test_they_are_a_data_set(tmp_path):
    found = data.captioned(parquets(tmp_path), 4, channels=1)
    assert found.source[1]["image"].shape == (4, 4, 1)
    assert isinstance(found.source, data.Source)
