"""What a run is: where its data lies does not matter, what it is does; what fails to begin is in nobody's way."""

import json
import re
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from asyncpatch_jax.data import sources
from asyncpatch_jax.data.dataset import hashed
from asyncpatch_jax.training.records import digest, sealed, unsealed
from launch import train
from launch.shared import datasets, records
from tests.test_train import begun, small


def photos(folder, **classes):
    """A folder of pictures, by class."""
    rng = np.random.default_rng(0)
    for name, files in classes.items():
        (folder / name).mkdir(parents=True)
        for file in files:
            Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(folder / name / file)
    return folder


def of(path):
    return sources.folder(path, 8, 1)


@pytest.fixture
def animals(tmp_path):
    return photos(tmp_path / "animals", cats=["1.png", "2.png"], dogs=["1.png"])


def there(data):
    """A record's data as it comes back from a file."""
    return json.loads(json.dumps(records.record(small("run"), data)["data"]))


def test_data_is_the_same_wherever_it_lies(animals, tmp_path):
    known = there(of(animals))
    shutil.copytree(animals, tmp_path / "copy")
    for path in (f"{animals}/", animals / ".." / "animals", tmp_path / "copy"):
        assert records.other_data(known, of(path)) == []
    # without classes, the folder's name is nobody's class
    one = photos(tmp_path / "one", **{"": ["a.png", "b.png"]})
    shutil.copytree(one, tmp_path / "two")
    assert records.other_data(there(of(one)), of(tmp_path / "two")) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "cats").rename(root / "zebras"), r"classes: 2 -> 2.*without 'cats'.*with 'zebras'"),
        (lambda root: photos(root, birds=["1.png"]), r"classes: 2 -> 3.*with 'birds'"),
        (lambda root: shutil.rmtree(root / "dogs"), r"classes: 2 -> 1.*without 'dogs'"),
        (lambda root: (root / "cats" / "1.png").unlink(), r"images: 3 -> 2"),
        (lambda root: (root / "cats" / "1.png").rename(root / "cats" / "3.png"), "images of other names"),
        (lambda root: (root / "cats" / "1.png").rename(root / "dogs" / "0.png"), "images of other names"),
    ],
)
def test_data_that_became_other_data_is_told(animals, change, message):
    known = there(of(animals))
    change(animals)
    lines = records.other_data(known, of(animals))
    assert lines
    assert re.search(message, "\n".join(lines), re.DOTALL), lines


def test_every_source_says_what_it_is():
    different = [
        sources.digits("train").names,
        sources.digits("test").names,
        sources.photos(16, 1, "train", ["brick"]).names,
        sources.photos(16, 1, "test", ["brick"]).names,
        sources.photos(16, 1, "train", ["grass"]).names,
    ]
    assert all(different)
    assert len(set(different)) == len(different)
    assert sources.digits("train", 16).names == sources.digits("train").names  # shapes are told apart by themselves


def test_names_are_the_same_on_file_systems_that_compose_letters_otherwise():
    name = "cäts/1.png"
    forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    assert hashed([forms[0], "b"]) == hashed(["b", forms[1]]) != hashed([forms[0]])
    assert hashed([b"a\xff".decode(errors="surrogateescape")])  # a name that is no text


def test_a_run_goes_on_on_its_data_alone(animals, tmp_path):
    """Refused before anything is written, and nothing about the good run changes."""
    settings = {"data.name": "folder", "data.path": str(animals), "train.batch": 2}
    run = tmp_path / "run"
    begun(run, small(run, **settings), of(animals))
    before = (run / "run.json").read_bytes()
    photos(animals, birds=["1.png"])
    with pytest.raises(ValueError, match=r"(?s)holds a run of other settings or data.*classes: 2 -> 3.*with 'birds'"):
        train.run(small(run, **settings))
    assert (run / "run.json").read_bytes() == before
    shutil.move(animals, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "elsewhere" / "birds")
    config = small(run, **{**settings, "data.path": f"{tmp_path / 'elsewhere'}/", "data.on_error": "skip"})
    train.check_same(config, datasets.dataset(config))
    with pytest.raises(ValueError, match=r"data.size: 8 -> 16"):
        train.check_same(small(run, **{**settings, "data.size": 16}))


def test_a_start_that_fails_is_in_nobodys_way(tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "dataset", lambda *_: pytest.fail("the data was looked through"))
        with pytest.raises(FileNotFoundError, match="expected a trained run in nothing"):
            train.run(small(run, **{"train.init": "nothing"}))
    assert not (run / "run.json").exists()
    train.check_same(small(run))
    # nor is one that an earlier version recorded
    records.write(run, records.record(small(run, **{"train.init": "nothing"}), datasets.dataset(small(run))))
    train.check_same(small(run))


def test_what_a_run_is_survives_its_file(tmp_path):
    run = tmp_path / "run"
    begun(run, small(run))
    known = records.recorded(run)
    (run / "run.json").write_text("{")
    assert records.recorded(run) == known
    (run / "run.json").unlink()
    assert records.recorded(run) == known
    assert known["data"]["class_names"] == list("0123456789")
    with pytest.raises(ValueError, match=r"model\.depth: 1 -> 2"):
        train.run(small(run, **{"model.depth": 2}))


def test_seals():
    content = {"a": (1, 2.5), "b": {"c": None, 3: "x"}}
    written = json.loads(json.dumps(sealed(content)))
    assert unsealed(written) == {"a": [1, 2.5], "b": {"c": None, "3": "x"}}
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})
    for wrong in ({**written, "a": [1, 2.4]}, {**written, "d": 1}, {"a": written["a"]}, [], None, "x"):
        with pytest.raises(ValueError, match=r"expected a JSON object|not what was written"):
            unsealed(wrong)
