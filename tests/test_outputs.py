"""Sets of outputs: only what a command made is replaced, all of it at once, whenever the command is killed."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asyncpatch_jax import files
from launch.shared import outputs, replacing
from tests.kills import COMMAND, make, no_exchange

ROOT = Path(__file__).parent.parent
OWN = ("images/20240101_dog.png", "1999-12-31.png", "images/².png", "best/0000.png", "images/0009.png")


def content(folder):
    """Of every file, links followed, by its name; but the record."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found.pop("made.json", None)
    return found


def own(folder, names=OWN):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"mine {name}")
    (folder / "link").symlink_to(folder.parent)
    return {name: f"mine {name}".encode() for name in names}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "above" / "out"


def made(count, text):
    return {name: f"{text} {name}".encode() for name in (*(f"images/{i:04d}.png" for i in range(count)), "grid.png")}


def test_only_what_was_made_is_replaced(folder):
    make(folder, 4, "old")
    mine = own(folder)
    inodes = {name: (folder / name).stat().st_ino for name in OWN}
    with pytest.raises(ValueError, match=r"nothing exists yet, got .*out .--overwrite replaces"):
        make(folder, 2, "new")
    make(folder, 2, "new", overwrite=True)
    assert content(folder) == made(2, "new") | mine
    assert {name: (folder / name).stat().st_ino for name in OWN} == inodes
    assert (folder / "link").readlink() == folder.parent
    assert os.listdir(folder.parent) == ["out"]
    record = json.loads((folder / "made.json").read_text())
    assert record["settings"] == {"seed": 3}
    assert set(record["files"]) == set(made(2, "new"))


def test_the_folder_of_a_link_is_replaced_and_the_link_stays(folder, tmp_path):
    make(folder, 2, "old")
    (tmp_path / "link").symlink_to(folder)
    make(tmp_path / "link", 1, "new", overwrite=True)
    assert (tmp_path / "link").readlink() == folder
    assert content(folder) == made(1, "new")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: (out / "grid.png").write_text("retouched"), r"as they were made, got grid.png changed since"),
        (lambda out: (out / "images/0007.png").write_text("mine"), r"your own under .* new ones, got images/0007.png"),
        (lambda out: (out / "grid.png").unlink() or (out / "grid.png").symlink_to("images/0000.png"), "changed since"),
        (lambda out: (out / "made.json").unlink(), "in which made.json lists what a command made"),
        *((lambda out, text=text: (out / "made.json").write_text(text), message) for text, message in (
            ("{", "in which made.json lists"),
            ("[]", "in which made.json lists"),
            ("[" * 9999, "in which made.json lists"),
            ('{"command": "launch.sample", "files": {"../../x": null}}', "names of files within the folder"),
            ('{"command": "launch.sample", "files": {"/etc/x": null}}', "names of files within the folder"),
            ('{"command": "launch.sample", "files": {"x": 3}}', "names of files within the folder"),
            ('{"command": "launch.evaluate", "files": {}}', "expected a folder of launch.sample, got one of"),
        )),
    ],
)  # fmt: skip
def test_what_somebody_did_is_not_replaced(folder, change, message):
    make(folder, 2, "old")
    change(folder)
    before = content(folder)
    with pytest.raises(ValueError, match=message):
        make(folder, 9, "new", overwrite=True)
    assert content(folder) == before
    assert os.listdir(folder.parent) == ["out"]


def test_a_file_where_a_folder_is_to_be_and_the_other_way_round(folder):
    make(folder, 1, "old")
    (folder / "images" / "0000.png").unlink()
    (folder / "images").rmdir()
    (folder / "images").write_text("mine")
    with pytest.raises(ValueError, match="got images; move"):
        make(folder, 1, "new", overwrite=True)
    (folder / "images").unlink()
    (folder / "grid.png").unlink()
    (folder / "grid.png").mkdir()
    (folder / "grid.png" / "mine").touch()
    with pytest.raises(ValueError, match=r"got grid.png/mine; move"):
        make(folder, 1, "new", overwrite=True)


def test_own_work_that_appears_meanwhile_keeps_its_place_and_the_new_set_gets_another(folder):
    make(folder, 2, "old")
    planned = outputs.plan(folder, COMMAND, ["grid.png", "notes.txt"], overwrite=True)

    def go_on():
        with outputs.making(planned, {}) as into:
            (into / "grid.png").write_text("new")
            (into / "notes.txt").write_text("new")
            (folder / "notes.txt").write_text("mine")

    with pytest.raises(ValueError, match=r"got notes.txt; move them away; what is new is in .*out_1"):
        go_on()
    assert content(folder) == made(2, "old") | {"notes.txt": b"mine"}
    assert content(folder.parent / "out_1") == {"grid.png": b"new", "notes.txt": b"new"}


def test_an_error_leaves_the_old_set_or_what_was_new_so_far(folder):
    def fail(overwrite):
        with outputs.making(outputs.plan(folder, COMMAND, ["a", "b"], overwrite=overwrite), {}) as into:
            if written:
                (into / "a").write_text("new")
            raise RuntimeError

    for written in (False, True):
        with pytest.raises(RuntimeError):
            fail(False)
        assert folder.exists() == written
    assert content(folder) == {"a": b"new"}
    with pytest.raises(ValueError, match="--overwrite replaces"):
        make(folder, 1, "new")
    make(folder, 2, "old", overwrite=True)
    with pytest.raises(RuntimeError):
        fail(True)
    assert content(folder) == made(2, "old")
    assert os.listdir(folder.parent) == ["out"]


@pytest.fixture(scope="module")
def making():
    """A small process that makes sets and is killed (`kills.py`): this one takes long to be forked."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.kills"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


def killed_at(event, folder, making, *, exchanges):
    """Whether `make(folder, 2, "new", overwrite=True)` is killed before its so-manieth change of files."""
    print(json.dumps({"event": event, "folder": str(folder), "exchanges": exchanges}), file=making.stdin, flush=True)
    return json.loads(making.stdout.readline())


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_kill_at_any_moment_leaves_the_old_set_or_the_new_one(tmp_path, monkeypatch, making, exchanges):
    if not exchanges:
        monkeypatch.setattr(replacing, "_exchange_at_once", no_exchange)
    event, seen = 1, set()
    while True:
        folder = tmp_path / str(event) / "out"
        make(folder, 1, "old")
        mine = own(folder, OWN[:1])
        killed = killed_at(event, folder, making, exchanges=exchanges)
        if not exchanges:  # the next command mends what is between two renames
            with pytest.raises(ValueError, match="nothing exists yet"):
                outputs.plan(folder, COMMAND, ["x"], overwrite=False)
        now = content(folder)
        assert now in (made(1, "old") | mine, made(2, "new") | mine), event
        seen.add(b"new" in now["grid.png"])
        make(folder, 1, "last", overwrite=True)
        assert content(folder) == made(1, "last") | mine
        assert os.listdir(folder.parent) == ["out"]
        if not killed:
            break
        event += 1
    assert seen == {False, True}
    assert event > 20


def test_parts_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    with subprocess.Popen(["true"]) as child:
        child.wait()
    here, dead, living = platform.node(), child.pid, os.getppid()
    gone = [f".a.png.asyncpatch.{here}-{dead}.part", f".b.asyncpatch.elsewhere-{living}.part"]
    stay = [
        f".a.png.asyncpatch.{here}-{living}.part",
        f".c.asyncpatch.elsewhere-{dead}.part",
        f".movie-{dead}.part",
        f"a.asyncpatch.{here}-{dead}.part",
        f".a.asyncpatch.{here}-{dead}.txt",
        f".a.asyncpatch.{here}-x.part",
    ]
    for name in (*gone, *stay):
        (tmp_path / name).write_text("part")
    yesterday = time.time() - 25 * 3600
    os.utime(tmp_path / gone[1], (yesterday, yesterday))
    files.write_json(tmp_path / "d.json", {})
    assert sorted(os.listdir(tmp_path)) == sorted([*stay, "d.json"])


def test_a_single_file_is_replaced_by_its_own_name(tmp_path):
    path = tmp_path / "new" / "a.png"
    with outputs.making(outputs.single(path, overwrite=False), {}) as into:
        assert not path.exists()
        (into / "a.png").write_text("a")
    with pytest.raises(ValueError, match="--overwrite replaces it"):
        outputs.single(path, overwrite=False)
    outputs.single(path, overwrite=True)
    assert os.listdir(path.parent) == ["a.png"]
    (tmp_path / "file").touch()
    planned = outputs.single(tmp_path / "file" / "a", overwrite=True)
    with pytest.raises(OSError, match="could not write"), outputs.making(planned, {}):
        pass


def test_a_folder_that_cannot_be_replaced_is_found_out_before_the_work(folder, monkeypatch):
    make(folder, 1, "old")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == folder)
    with pytest.raises(ValueError, match="choose one within it"):
        outputs.plan(folder, COMMAND, ["a"], overwrite=True)


def test_a_study_replaces_its_own_page_alone(tmp_path):
    page = tmp_path / "docs" / "page.md"
    outputs.check_page(page, "Results")
    page.write_text("# My diary\n")
    with pytest.raises(ValueError, match="an earlier page that begins with '# Results'; got another one"):
        outputs.check_page(page, "Results")
    page.write_text("# Results\n\nof before\n")
    outputs.check_page(page, "Results")
    assert page.read_text().endswith("of before\n")
