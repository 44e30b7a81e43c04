"""The command for images from prompts, on a tiny folder: its files, what they say of themselves, and its errors."""

import json
import os
import re
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from asyncpatch_jax.pretrained import pipelines, text2image
from asyncpatch_jax.pretrained.batch import Drawn
from asyncpatch_jax.pretrained.folders.loading import load_pretrained
from asyncpatch_jax.pretrained.requests import Request
from asyncpatch_jax.pretrained.settings import defaults
from asyncpatch_jax.pretrained.text import prompts
from asyncpatch_jax.pretrained.text.spans import reference_compat
from asyncpatch_jax.sampling import painting
from launch.shared import photos
from launch.text2image import mesh_of
from tests import OLDER_EMITTERS, mains, tiny_folders
from tests.programs import Program

ROOT = Path(__file__).parent.parent
NO_FIELDS = np.zeros((1, 2, 1, 1, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("folders") / "sd"
    tiny_folders.folder("sd", path)
    return path


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """`command(folder, "--prompt=...")`, which writes into `tmp_path / "out"`."""
    call = mains.command(monkeypatch, capsys)
    return lambda *arguments: call("text2image", *arguments, f"--out={tmp_path / 'out'}")


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_files_say_how_they_were_made(command, folder, tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps(["a red dog", "two cats and a dog"]))
    items = {
        "item_idx": {"a red dog": [2], "two cats and a dog": [1, 4]},
        "item_k": {"a red dog": [0.5], "two cats and a dog": [0.25, 0.5]},
    }
    (tmp_path / "items.json").write_text(json.dumps(items))
    asked = (
        folder,
        f"--prompts={tmp_path / 'prompts.json'}",
        f"--items={tmp_path / 'items.json'}",
        "--schedule=asyndm",
        "--num=2",
        "--seed=5",
        "--steps=3",
        "--show",
    )
    code, out, err = command(*asked)
    assert (code, err.count("error")) == (0, 0), err
    assert "4 PNG files" in out
    made = tmp_path / "out"
    each = [f"000{i}.png" for i in range(4)]
    assert sorted(path.name for path in made.rglob("*.png")) == sorted([*each, *each, "grid.png"])
    with Image.open(made / "images" / "0003.png") as image:
        assert image.size == (32, 32)
        said = json.loads(image.text["asyncpatch_jax"])
        assert image.text["prompt"] == "two cats and a dog"
    assert (said["seed"], said["objects"], said["omegas"]) == (6, ["cats", "dog"], [0.25, 0.5])
    assert (said["schedule"], said["num_steps"], said["model"]) == ("asyndm", 3, str(folder))
    assert {"mask", "strength", "mesh", "version"} <= said.keys()
    assert said["dtype"] == "float32"
    with Image.open(made / "grid.png") as image:
        whole = json.loads(image.text["asyncpatch_jax"])
    assert [(one["prompt"], one["seed"]) for one in whole["images"]] == [
        *(("a red dog", 5), ("a red dog", 6), ("two cats and a dog", 5), ("two cats and a dog", 6))
    ]
    assert whole["num_steps"] == 3
    first = pixels(made / "images" / "0000.png")
    assert first.std() > 0
    # nothing is replaced unless asked for, and the same command makes the same
    code, _, err = command(*asked)
    assert code == 1
    assert "--overwrite replaces" in err
    Image.fromarray(first).save(made / "images" / "².png")
    code, _, err = command(folder, "--prompt=a red dog", "--objects=dog", "--omega=0.5", *asked[3:], "--overwrite")
    assert code == 0, err
    assert np.abs(pixels(made / "images" / "0000.png").astype(int) - first).max() <= 1
    # of the longer run before, nothing is left
    assert sorted(path.name for path in made.rglob("*.png")) == sorted([*each[:2], *each[:2], "grid.png", "².png"])
    assert json.loads((made / "made.json").read_text())["settings"]["omega"] == 0.5


def test_a_part_of_an_image(command, folder, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    mask = np.zeros((32, 48), np.uint8)
    mask[8:24, 8:24] = 255
    Image.fromarray(picture).save(tmp_path / "picture.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    code, _, err = command(
        folder,
        "--prompt=a dog",
        "--steps=2",
        f"--image={tmp_path / 'picture.png'}",
        f"--mask={tmp_path / 'mask.png'}",
    )
    assert code == 0, err
    made = pixels(tmp_path / "out" / "images" / "0000.png")
    assert made.shape == picture.shape
    assert (made[mask == 0] == picture[mask == 0]).all()
    assert (made[mask > 0] != picture[mask > 0]).any()


@pytest.mark.parametrize("kind", ["RGB", "LA"])
def test_a_photo_of_any_size_comes_back_with_its_hole_filled_and_nothing_else_changed(command, folder, tmp_path, kind):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 223, 4), np.uint8), "RGBA").convert(kind)
    mask = np.zeros((37, 223), np.uint8)
    mask[5:20, 3:90] = mask[30, 200] = 255
    photo.save(tmp_path / "photo.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    files = (f"--image={tmp_path / 'photo.png'}", f"--mask={tmp_path / 'mask.png'}")
    code, out, err = command(folder, "--prompt=a dog", "--steps=1", "--batch=2", "--num=2", "--show", *files)
    assert code == 0, err
    assert re.search(r"2 images in [2-9] windows of 32 x 32", out)
    one, two = (Image.open(tmp_path / "out" / "images" / f"000{i}.png") for i in range(2))
    assert one.mode == kind
    before, first, second = (np.asarray(image.convert("RGBA")) for image in (photo, one, two))
    assert (first[mask == 0] == before[mask == 0]).all()
    assert (first[mask > 0] != before[mask > 0]).any(-1).mean() > 0.9
    assert (first != second).any()
    assert (tmp_path / "out" / "fields" / "0001.png").exists()


@pytest.mark.parametrize(("family", "more"), [("sd", ["--strength=0.5"]), ("kontext", ["--t5_length=32"])])
def test_a_whole_photo_of_any_size_changes(command, tmp_path, family, more):
    tiny_folders.folder(family, tmp_path / family)
    photo = np.random.default_rng(0).integers(0, 256, (45, 23, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    asked = (tmp_path / family, "--prompt=a dog", "--steps=1", f"--image={tmp_path / 'photo.png'}", *more)
    code, _, err = command(*asked)
    assert code == 0, err
    made = pixels(tmp_path / "out" / "images" / "0000.png")
    assert made.shape == photo.shape
    assert (made != photo).any(-1).mean() > 0.9


def test_a_window_of_its_own_has_a_seed_of_its_own_and_its_part_of_the_drawn_objects():
    rng = np.random.default_rng(0)
    drawn = (rng.random((40, 90, 2)) > 0.9).astype(np.float32)
    strength = np.zeros((40, 90, 1), np.float32)
    strength[3:35, 3:80] = 1
    original = photos.Original(rng.integers(0, 256, (40, 90, 3), np.uint8), strength, drawn)
    windows = photos.windows_of(original, (16, 16), local=True, detail=None)
    assert len(windows) > 1
    seeds = set()
    for i, window in enumerate(windows):
        shown = painting.Shown(0, i, *painting.look(original.photo, window, (16, 16)))
        asked = photos.windowed(Request("a dog", 5), shown, original, window, (16, 16))
        assert (asked.image == shown.image).all()
        assert (asked.mask == shown.strength).all()
        place = drawn[window.place]
        assert asked.object_masks.shape == (16, 16, 2)
        assert asked.object_masks.sum() > 0
        assert (asked.object_masks.max((0, 1)) == place.max((0, 1))).all()
        seeds.add(asked.seed)
        assert (asked.seed == 5) == (i == 0)
    assert len(seeds) == len(windows)


@pytest.mark.parametrize(
    ("size", "local", "wanted"),
    [
        ((512, 384), True, (512, 384)),  # legal, and no more than the network has seen
        ((1024, 1024), True, (512, 512)),
        ((223, 223), True, (512, 512)),
        ((223, 223), False, (512, 512)),
        ((1000, 250), False, (1024, 256)),
        ((10, 4000), False, (64, 10240)),
    ],
)
def test_photos_are_shown_at_a_size_that_the_network_takes(size, local, wanted):
    original = photos.Original(np.zeros((*size, 3), np.uint8), None, None)
    assert photos.shown_size(original, 64, 512, local) == wanted


def by_library(folder, request, **changes):
    pretrained = load_pretrained(folder, dtype=jnp.float32)
    (made,) = text2image(pretrained, [request], defaults(pretrained.family, 32, num_steps=3, **changes))
    return made.image.astype(int)


def by_command(command, tmp_path, *arguments):
    code, _, err = command(*arguments, "--steps=3", "--overwrite")
    assert code == 0, err
    return pixels(tmp_path / "out" / "images" / "0000.png").astype(int)


def test_objects_are_found_or_those_of_the_released_code(command, folder, tmp_path, monkeypatch):
    def parse(prompt):
        assert prompt == "a red dog"
        kinds = ("DET", "ADJ", "NOUN")
        words = prompt.split()
        chunk = [SimpleNamespace(text=w, idx=prompt.index(w), pos_=k) for w, k in zip(words, kinds, strict=True)]
        return SimpleNamespace(noun_chunks=[chunk])

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda model: parse))
    fixed = ("--schedule=asyndm", "--masks=fixed", "--omega=0.6")
    made = by_command(command, tmp_path, folder, "--prompt=a red dog", "--find_objects", *fixed)
    settings = {"schedule": "asyndm", "masks": "fixed", "omega": 0.6}
    wanted = by_library(folder, Request("a red dog", objects=("red dog",)), **settings)
    assert np.abs(made - wanted).max() <= 1
    # random weights attend to all words nearly alike, so images cannot tell which tokens were taken
    looked_at = []

    def recorded(*arguments):
        looked_at.append(arguments[:2])
        return reference_compat(*arguments)

    monkeypatch.setattr(pipelines, "reference_compat", recorded)
    (tmp_path / "p.json").write_text(json.dumps(["a red dog"]))
    (tmp_path / "i.json").write_text(json.dumps({"item_idx": {"a red dog": [2]}, "item_k": {"a red dog": [0.6]}}))
    files = (f"--prompts={tmp_path / 'p.json'}", f"--items={tmp_path / 'i.json'}")
    # so what becomes of them is not drawn
    monkeypatch.setattr(pipelines, "make", lambda *_, **__: Drawn(np.zeros((1, 32, 32, 3)), NO_FIELDS, None, None))
    by_command(command, tmp_path, folder, *files, *fixed[:2], "--reference_compat")
    assert looked_at
    assert all(asked == (["a red dog"], [(2,)]) for asked in looked_at)


def test_images_beyond_the_bound_are_refused(command, folder, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    image = f"--image={tmp_path / 'picture.png'}"
    code, _, err = command(str(folder), "--prompt=a dog", image, "--strength=0.5", "--max_pixels=1023")
    assert code == 1
    assert "picture.png (32x32 pixels, more than max_pixels = 1,023" in err


def test_drawn_objects_in_a_part_of_an_image(command, folder, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    drawn = np.zeros((32, 32), np.uint8)
    drawn[8:24, 8:24] = 255
    Image.fromarray(picture).save(tmp_path / "picture.png")
    Image.fromarray(drawn).save(tmp_path / "drawn.png")
    made = by_command(
        command,
        tmp_path,
        folder,
        "--prompt=a dog",
        "--schedule=asyndm",
        "--masks=drawn",
        "--show",
        f"--object_mask={tmp_path / 'drawn.png'}",
        f"--image={tmp_path / 'picture.png'}",
        "--strength=0.5",
    )
    request = Request(
        "a dog",
        objects=("dog",),
        image=picture,
        mask=np.full((32, 32, 1), 0.5, np.float32),
        object_masks=(drawn[..., None] > 0).astype(np.float32),
    )
    wanted = by_library(folder, request, schedule="asyndm", masks="drawn")
    assert np.abs(made - wanted).max() <= 1
    assert (tmp_path / "out" / "fields" / "0000.png").exists()  # the mask has a row of its own, without a name


def test_kontext_edits_an_image(command, tmp_path):
    folder = tmp_path / "kontext"
    tiny_folders.folder("kontext", folder)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    image = f"--image={tmp_path / 'picture.png'}"
    made = by_command(command, tmp_path, folder, "--prompt=a red dog", image, "--t5_length=32")
    assert np.abs(made - by_library(folder, Request("a red dog", image=picture), t5_length=32)).max() <= 1
    assert np.abs(made - by_library(folder, Request("a red dog", image=255 - picture), t5_length=32)).max() > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected --prompt (once or more often) or --prompts=FILE"),
        (("--prompt=a dog", "--prompts=x.json"), "expected --prompt (once"),
        (("--prompts=missing.txt",), "missing.txt"),
        (("--prompt=a dog", "--schedule=asyndm", "--objects=cat"), "'cat', which is there not at all"),
        (("--prompt=a dog", "--height=33"), "multiples of"),
        (("--prompt=a dog", "--mesh=rows=2"), "expected a mesh such as"),
        (("--prompt=a dog", "--sede=1"), "did you mean --seed?"),
        (("--prompt=a dog", "--items=x.json"), "expected --items with --prompts and --schedule=asyndm or concave"),
        (("--prompt=a dog", "--sample=1"), "expected --sample with --prompts"),
        (("--prompt=a dog", "--reference_compat"), "expected --reference_compat with --items and --schedule=asyndm or"),
        (("--prompt=a dog", "--objects=dog"), "expected --objects with --schedule=asyndm"),
        (("--prompt=a dog", "--t5_length=9"), "expected --t5_length with sd3, flux or kontext"),
        (("--prompt=a dog", "--omega=0.5"), "expected --omega with --schedule=asyndm or concave"),
        (("--prompt=a dog", "--text_time=max", "--schedule=concave"), "expected --text_time with sd3, flux or kontext"),
        (("--prompt=a dog", "--graded"), "expected --graded with --mask"),
        (("--prompt=a dog", "--masks=drawn", "--schedule=asyndm", "--objects=dog"), "expected a drawn mask"),
    ],
)
def test_mistakes_are_one_line(command, folder, tmp_path, arguments, message):
    code, _, err = command(folder, *arguments)
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not list((tmp_path / "out").rglob("*.png")) if (tmp_path / "out").exists() else True


def test_objects_of_a_file_say_how_slow_whole_images_go(command, folder, tmp_path):
    """The curve's own error tells which omega the command took: that of the slowest object."""
    (tmp_path / "p.json").write_text(json.dumps(["a red dog and a cat"]))
    items = {"item_idx": {"a red dog and a cat": [2, 5]}, "item_k": {"a red dog and a cat": [0.5, 0.9]}}
    (tmp_path / "i.json").write_text(json.dumps(items))
    asked = (folder, f"--prompts={tmp_path / 'p.json'}", f"--items={tmp_path / 'i.json'}", "--schedule=concave")
    err = command(*asked, "--steps=100")[2]
    assert re.search(r"expected 0 <= k <= 0\.\d+ .*got 0.8999", err), err
    assert "without --items, which have their own" in command(*asked, "--omega=0.5")[2]


def test_what_needs_no_weights_is_refused_before_they_are_read(command, folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (file,) = (broken / "unet").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-8])
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "small.png")
    slow = ("--prompt=a dog", "--schedule=asyndm")
    assert "'zebra', which is there not at all" in command(broken, *slow, "--objects=zebra")[2]
    drawn = ("--objects=dog", "--masks=drawn", f"--object_mask={tmp_path / 'small.png'}")
    assert "small.png" in command(broken, *slow, *drawn)[2]
    assert "expected 0 <= k <=" in command(broken, *slow, "--objects=dog", "--omega=1")[2]
    for flags in (("--image=gone.png", "--strength=1"), ("--image=gone.png", "--mask=gone.png"), ("--tpm=gone",)):
        name, path = flags[0].split("=")
        err = command(broken, "--prompt=a dog", *flags)[2]
        assert f"expected a path of something as {name}, got {path}, which does not exist" in err
    assert "it is truncated" in command(broken, "--prompt=a dog")[2]


def test_a_prompt_is_encoded_once_however_its_images_are_ordered(folder, monkeypatch):
    encoded, in_chunks = [], prompts._in_chunks

    def counted(encode, ids, texts):
        encoded.extend(texts)
        return in_chunks(encode, ids, texts)

    def drawn(*arguments, **more):
        return Drawn(np.zeros((1, 32, 32, 3)), NO_FIELDS, None, None)

    monkeypatch.setattr(prompts, "_in_chunks", counted)
    monkeypatch.setattr(pipelines, "make", drawn)  # what becomes of the texts is not looked at
    pretrained = load_pretrained(folder, dtype=jnp.float32)
    asked = [Request(text, seed) for seed in range(2) for text in ("a dog", "two cats")]
    made = list(text2image(pretrained, asked, defaults("sd", 32, num_steps=1), batch=1))
    assert len(made) == 4
    assert sorted(encoded) == ["", "a dog", "two cats"]


def test_a_folder_is_needed(command, tmp_path):
    assert "expected FOLDER and flags" in command("--prompt=a dog")[2]
    assert str(tmp_path / "none") in command(tmp_path / "none", "--prompt=a dog")[2]


def test_the_example_of_the_docs(folder, capsys):
    text = (ROOT / "docs" / "text2image.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    small = [("stable-diffusion-2-1-base", str(folder)), (", 512,", ", 32,"), ("=50", "=2"), ("bfloat16", "float32")]
    for old, new in [*small, ("range(8)", "range(2)")]:
        assert old in block
        block = block.replace(old, new)
    exec(block, {})  # code of this repository's own docs
    assert capsys.readouterr().out.splitlines() == 2 * ["(32, 32, 3) (3, 16, 16, 1) (2, 4, 4, 2)"]


def test_two_processes_make_what_one_does(command, folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    asked = [str(folder), "--prompt=a red dog", "--objects=dog", "--schedule=asyndm", "--num=4", "--steps=2"]
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {OLDER_EMITTERS} --xla_force_host_platform_device_count=2",
        "COORDINATOR_ADDRESS": address,
        "NUM_PROCESSES": "2",
    }
    line = ["tests.split_images", *asked, "--mesh=data=1,fsdp=2,tensor=2", f"--out={tmp_path / 'two'}"]
    started = [Program(*line, environment={**environment, "PROCESS_ID": str(index)}, cwd=ROOT) for index in (0, 1)]
    said = [process.stdout.read().decode() for process in started]
    assert [process.wait() for process in started] == [0, 0], said
    code, _, err = command(*asked)
    assert code == 0, err
    for i in range(4):
        one, two = (pixels(tmp_path / name / "images" / f"000{i}.png").astype(int) for name in ("out", "two"))
        assert np.abs(one - two).max() <= 1


def test_a_mesh_by_its_axes():
    assert mesh_of(None) is None
    assert dict(mesh_of("data=1,fsdp=1,tensor=1").shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    with pytest.raises(ValueError, match="data x fsdp x tensor"):
        mesh_of("data=1,fsdp=3")
