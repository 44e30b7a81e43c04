"""Folders of images: what is in them, and that nothing in them is left out without a word."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from asyncpatch_jax.data.folders import scan_folder
from tests.image_files import stored


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            Image.fromarray(np.full((4, 5), content, np.uint8)).save(path)


def test_classes_are_the_first_level_of_subdirectories(tmp_path):
    write(tmp_path, dog__b_png=1, dog__deep__a_jpg=2, cat__z_png=3, cat___hidden_png=b"x", _git__x=b"")
    found = scan_folder(tmp_path)
    assert [str(file.relative_to(tmp_path)) for file in found.files] == ["cat/z.png", "dog/b.png", "dog/deep/a.jpg"]
    assert found.labels == (0, 1, 1)
    assert found.class_names == ("cat", "dog")
    assert found.skipped == ()


def test_a_flat_folder_is_one_class(tmp_path):
    write(tmp_path, b_png=1, a_png=2)
    found = scan_folder(tmp_path)
    assert ([f.name for f in found.files], found.labels) == (["a.png", "b.png"], (0, 0))
    assert found.class_names == (tmp_path.name,)


def jpeg():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    return stored(Image.fromarray(pixels), format="jpeg").getvalue()


def test_all_bad_files_are_named_in_one_error_or_skipped_with_a_count(tmp_path):
    write(
        tmp_path,
        a__good_png=1,
        a__cut_jpg=jpeg()[:-300],
        b__notes_txt=b"shopping list",
        b__empty_png=b"",
        c__no_png=b"",
    )
    with pytest.raises(ValueError, match="got 4 others of 5") as error:
        scan_folder(tmp_path)
    for name in ("a/cut.jpg", "b/notes.txt", "b/empty.png", "c/no.png"):
        assert name in str(error.value)
    assert "good" not in str(error.value)
    with pytest.warns(UserWarning, match="left out 4 of 5; nothing is left of b, c:"):
        found = scan_folder(tmp_path, on_error="skip")
    assert len(found.skipped) == 4
    assert ([f.name for f in found.files], found.class_names) == (["good.png"], ("a",))


def test_a_long_list_of_bad_files_is_cut(tmp_path):
    write(tmp_path, **{f"f{i:02d}_png": b"" for i in range(14)})
    with pytest.raises(ValueError, match=r"got 14 others of 14(.|\n)*f09.png(.|\n)*and 4 more") as error:
        scan_folder(tmp_path)
    assert "f10.png" not in str(error.value)


def test_wrong_folders(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        scan_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="got none"):
        scan_folder(tmp_path)
    write(tmp_path, x_png=1, sub__y_png=2)
    with pytest.raises(ValueError, match="a file"):
        scan_folder(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"got both \(x.png beside sub"):
        scan_folder(tmp_path)
    with pytest.raises(ValueError, match="on_error = 'raise' or 'skip'"):
        scan_folder.__wrapped__(tmp_path, on_error="ignore")  # past the type check of the tests
    write(tmp_path / "bad", x_png=b"")
    with pytest.raises(ValueError, match=r"got 1 others of 1:\n  x\.png"):
        scan_folder(tmp_path / "bad", on_error="skip")


def said(folder, *parts):
    """The error under "raise" names all of it, and what is left under "skip", where that counts it."""
    with pytest.raises(ValueError, match=r"on_error='skip' leaves them out") as error:
        scan_folder(folder)
    with pytest.warns(UserWarning, match=rf"left out {len(parts)} of") as warned:
        found = scan_folder(folder, on_error="skip")
    for part in parts:
        assert part in str(error.value)
        assert part in str(warned[0].message)
        assert any(part in line for line in found.skipped)
    return [str(file.relative_to(folder)) for file in found.files]


def test_links_are_followed_and_dangling_ones_said(tmp_path):
    write(tmp_path / "data", cat__a_png=1)
    write(tmp_path / "elsewhere", dogs__b_png=2, c_png=3)
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere" / "dogs")
    (tmp_path / "data" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cat" / "one.png").symlink_to(tmp_path / "elsewhere" / "c.png")
    found = scan_folder(tmp_path / "data")
    names = [str(file.relative_to(tmp_path / "data")) for file in found.files]
    assert names == ["cat/a.png", "cat/more/c.png", "cat/more/dogs/b.png", "cat/one.png", "dog/b.png"]
    assert found.class_names == ("cat", "dog")
    (tmp_path / "data" / "cat" / "gone.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "data" / "lost").symlink_to("nowhere")
    (tmp_path / "data" / "cat" / "self").symlink_to("self")
    wrong = ("cat/gone.png (a link to nothing", "lost (a link to nothing: nowhere)", "cat/self (a link to nothing")
    assert said(tmp_path / "data", *wrong) == names


def test_links_in_a_circle_end(tmp_path):
    write(tmp_path, a__x_png=1, b__y_png=2)
    for name, target in (("a/up", ".."), ("a/self", "."), ("a/b", "../b"), ("b/a", "../a")):
        (tmp_path / name).symlink_to(target)
    read = "(a link to a folder that is read already)"
    files = said(tmp_path, f"a/up {read}", f"a/self {read}", f"a/b/a {read}", f"b/a/b {read}", "b/a/up", "b/a/self")
    assert files == ["a/b/y.png", "a/x.png", "b/a/x.png", "b/y.png"]


def test_what_is_no_file_is_said(tmp_path):
    write(tmp_path, a__x_png=1)
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert said(tmp_path, "a/pipe.png (no file, but a pipe, a socket or a device)") == ["a/x.png"]


def test_folders_that_cannot_be_listed_are_said(tmp_path, monkeypatch):
    write(tmp_path, cat__x_png=1, cat__deep__y_png=1, dog__z_png=2)
    closed = (tmp_path / "dog", tmp_path / "cat" / "deep")
    listdir = os.listdir

    def refused(path):
        if path in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refused)
    why = "(a folder that cannot be listed: Permission denied)"
    with pytest.warns(UserWarning, match="nothing is left of dog"):
        scan_folder(tmp_path, on_error="skip")
    assert said(tmp_path, f"dog {why}", f"cat/deep {why}") == ["cat/x.png"]


def test_other_files_beside_class_folders_can_be_skipped(tmp_path):
    write(tmp_path, cat__x_png=1, dog__y_png=2, labels_csv=b"x,cat\n", notes_txt=b"to do")
    assert said(tmp_path, "labels.csv (something else", "notes.txt (something else") == ["cat/x.png", "dog/y.png"]
    write(tmp_path, z_png=3)
    for on_error in ("raise", "skip"):  # which of both is meant, nobody can say
        with pytest.raises(ValueError, match=r"got both \(z\.png beside cat/"):
            scan_folder(tmp_path, on_error=on_error)


def test_images_beside_folders_of_other_files_are_one_class(tmp_path):
    write(tmp_path, x_png=1, labels__x_txt=b"0 .5 .5")
    (tmp_path / "empty").mkdir()
    assert said(tmp_path, "labels/x.txt (something else") == ["x.png"]


def test_a_class_without_files_is_said(tmp_path):
    write(tmp_path, cat__x_png=1)
    (tmp_path / "dog" / "deep").mkdir(parents=True)
    assert said(tmp_path, "dog (a folder without files)") == ["cat/x.png"]


def test_names_of_classes_are_those_of_any_copy(tmp_path):
    names = ["zebra", "épagneul", "chat"]
    for form in ("NFC", "NFD"):
        for name in names:
            write(tmp_path / form / unicodedata.normalize(form, name), x_png=1)
    copies = [scan_folder(tmp_path / form) for form in ("NFC", "NFD")]
    assert copies[0].class_names == copies[1].class_names == ("chat", "zebra", "épagneul")
    folders = [[unicodedata.normalize("NFC", file.parent.name) for file in copy.files] for copy in copies]
    assert folders[0] == folders[1] == list(copies[0].class_names)
    write(tmp_path / "NFC" / unicodedata.normalize("NFD", "épagneul"), y_png=1)
    with pytest.raises(ValueError, match=r"classes of different names in .*'épagneul' in two spellings"):
        scan_folder(tmp_path / "NFC")


GOOD = stored(Image.new("L", (3, 2))).getvalue()
kinds = st.sampled_from(["image", "image", "text", "empty", "dangling", "pipe", "hidden"])
trees = st.recursive(
    st.dictionaries(st.sampled_from("abc"), kinds, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), kinds | inner, max_size=4),
    max_leaves=8,
)


def planted(folder, tree):
    folder.mkdir()
    for name, what in tree.items():
        path = folder / name
        match what:
            case "image":
                path.write_bytes(GOOD)
            case "text":
                path.write_text("no image")
            case "empty":
                path.write_bytes(b"")
            case "dangling":
                path.symlink_to("nowhere")
            case "pipe":
                os.mkfifo(path)
            case "hidden":
                (folder / f".{name}").write_text("no image")
            case _:
                planted(path, what)


@settings(max_examples=30, deadline=None)
@given(tree=trees)
@pytest.mark.filterwarnings("ignore:left out")
def test_everything_in_a_folder_is_read_or_said(tmp_path_factory, tree):
    root = tmp_path_factory.mktemp("tree") / "root"
    planted(root, tree)
    there = {Path(at) / name for at, _, names in os.walk(root) for name in names if not name.startswith(".")}
    images = {path for path in there if path.is_file() and path.read_bytes() == GOOD}
    both = {len(path.relative_to(root).parts) == 1 for path in images} == {True, False}
    if both or not images:
        for on_error in ("raise", "skip"):
            with pytest.raises(ValueError, match=r"got both|expected images in"):
                scan_folder(root, on_error=on_error)
        return
    found = scan_folder(root, on_error="skip")
    assert set(found.files) == images
    named = {root / line.partition(" (")[0] for line in found.skipped}
    assert there - images <= named
    # of what is named beyond, each is a class without any file
    assert all(path.is_dir() and path.parent == root for path in named - there)
    if found.skipped:
        with pytest.raises(ValueError, match=rf"got {len(found.skipped)} others of"):
            scan_folder(root)
    else:
        assert scan_folder(root) == found
