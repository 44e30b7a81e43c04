"""The mains on a tiny network with random weights: what they write, what they keep, what they refuse."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from asyncpatch_jax import timefield
from asyncpatch_jax.data import masks
from configs import digits
from launch import elbo
from launch.policy import rewarding, subjects
from launch.shared import build, datasets, pictures, plans, records
from tests import mains


@functools.cache
def run(log_variance=True):
    """A transformer that compiles in seconds, with no layer at zero, so that it answers something."""
    config = digits.get_config()
    with config.ignore_type():
        config.model = {"name": "dit", "preset": "", "dtype": "float32", "log_variance": log_variance}
        config.model.update(patch=2, width=8, depth=1, heads=2)
    config.sample.steps = 3
    made = build.untrained(config, datasets.dataset(config, "test"))
    params = build.init_params(made.model, jax.random.key(0), made.shape)
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32), jax.device_get(params))
    return made._replace(params=jax.tree.map(jnp.asarray, noisy))


@pytest.fixture
def command(monkeypatch, capsys):
    """`command("sample", "--num=3")` -> (exit code, stdout, stderr) of a main in this process, on the tiny network."""
    monkeypatch.setattr(build, "load_run", lambda *where, **more: _copy(run()))
    call = mains.command(monkeypatch, capsys)
    return lambda name, *arguments: call(name, "--workdir=run", *arguments)


def _copy(a_run):
    return a_run._replace(config=a_run.config.copy_and_resolve_references())


def folder_of(path):
    """A new folder at `path` that stands for the tiny network's: what it is trained on, and no weights."""
    path.mkdir()
    config = run().config
    records.write(path, records.record(config, datasets.dataset(config, "test")))
    return path


def _pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def _save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def _digit(i=0):
    return run_data()[i]["image"][..., 0]


@functools.cache
def run_data():
    return datasets.dataset(run().config, "test").source


def _hole(size=(8, 8)):
    hole = np.zeros(size, np.uint8)
    hole[2:6, 3:7] = 255
    return hole


def test_sampling_writes_what_it_says_and_images_do_not_depend_on_the_batch(command, tmp_path):
    code, out, _ = command("sample", "--num=3", "--batch=2", "--labels=7,1", f"--out={tmp_path / 'a'}")
    assert code == 0
    assert "3 PNG files" in out
    files = ["animation.gif", "grid.png", "images", "made.json", "samples.npz"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == files
    made = json.loads((tmp_path / "a" / "made.json").read_text())
    assert made["command"] == "launch.sample"
    wanted = {"schedule": "sync", "seed": 0, "labels": ["7", "1"], "checkpoint": 0, "workdir": "run", "tpm": None}
    assert wanted.items() <= made["settings"].items()
    assert made["settings"]["sample"]["steps"] == 3
    with Image.open(tmp_path / "a" / "images" / "0001.png") as image:
        said = json.loads(image.text["asyncpatch_jax"])
    assert said == made["settings"] | {"image": 1, "label": 1}
    with np.load(tmp_path / "a" / "samples.npz") as written:
        images = written["images"]
        # as ADM's evaluator takes them
        assert np.array_equal(written["arr_0"], np.repeat(images, 3, -1))
        assert written["labels"].tolist() == [7, 1, 7]
        assert int(written["seed"]) == 0
    assert images.shape == (3, 8, 8, 1)
    assert images.dtype == np.uint8
    for i, image in enumerate(images):
        assert np.array_equal(_pixels(tmp_path / "a" / "images" / f"{i:04d}.png"), image[..., 0])
    assert not np.array_equal(images[0], images[2])  # the same class, another key

    code, _, err = command("sample", f"--out={tmp_path / 'a'}")
    assert code == 1
    assert "--overwrite replaces" in err
    photo = _save(tmp_path / "a" / "images" / "20240101_dog.png", _digit())
    code, _, _ = command("sample", "--num=2", "--batch=1", "--labels=7,1", f"--out={tmp_path / 'a'}", "--overwrite")
    assert code == 0
    with np.load(tmp_path / "a" / "samples.npz") as written:
        # compiled for another batch: the same to rounding
        assert np.abs(written["images"].astype(int) - images[:2]).max() <= 1
    assert sorted(p.name for p in (tmp_path / "a" / "images").iterdir()) == ["0000.png", "0001.png", photo.name]
    assert np.array_equal(_pixels(photo), _digit())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels=ten"], "expected classes out of 0, 1, 2"),
        (["--solver=rk9"], "expected config.sample.solver out of"),
        (["--grid=log"], "expected config.sample.grid out of"),
        (["--steps=0"], "expected num_steps >= 1"),
        (["--num=0"], "expected a whole number >= 1 as --num, got '0'"),
        (["--stepz=3"], "did you mean --steps"),
        (["--schedule=up"], "schedule"),
        (["more"], "expected flags only"),
    ],
)
def test_sampling_refuses_before_it_works(command, tmp_path, arguments, message):
    code, _, err = command("sample", *arguments, f"--out={tmp_path / 'a'}")
    assert code == 1
    assert message in err
    assert err.startswith("error: ")
    assert not (tmp_path / "a").exists()


def test_every_schedule_by_name_lasts_as_long_as_it_says():
    lengths = {name: plans.plan(name, run()) for name in plans.PLANS}
    assert {name: chosen.num_steps for name, chosen in lengths.items()} == {
        "sync": 3,
        "autoregressive": 16,
        "random_order": 16,
        "two_phases": 4,
        "uncertainty": 3,
        "dual_loop": 12,
        "look_ahead": 3,
    }
    assert all(chosen.schedule.num_steps == chosen.num_steps for chosen in lengths.values())
    # between the phases, half of the cells are done and the region is noise
    between = np.asarray(timefield.dense(lengths["two_phases"].schedule.field(2)))
    assert set(np.unique(between)) == {0, 1}
    assert between.mean() == 0.5
    with pytest.raises(ValueError, match="expected a schedule out of"):
        plans.plan("upwards", run())
    blind = run()._replace(model=dataclasses.replace(run().model, log_variance=False))
    with pytest.raises(ValueError, match="log-variance head for uncertainty"):
        plans.plan("uncertainty", blind)


def test_inpainting_keeps_known_pixels_and_refuses_to_overwrite(command, tmp_path):
    image = _save(tmp_path / "image.png", _digit())
    mask = _save(tmp_path / "mask.png", _hole())
    out = tmp_path / "out.png"
    base = ["inpaint", f"--image={image}", f"--mask={mask}", "--batch=1"]
    code, said, err = command(*base, f"--out={out}")
    assert (code, said) == (0, f"wrote {out}\n"), err
    made, known = _pixels(out), _hole() == 0
    assert np.array_equal(made[known], _digit()[known])
    assert not np.array_equal(made, _digit())

    code, _, err = command(*base, f"--out={out}")
    assert code == 1
    assert "nothing exists yet" in err
    code, _, err = command(*base, f"--out={image}", "--overwrite")
    assert code == 1
    assert "which is one of them" in err
    assert np.array_equal(_pixels(image), _digit())
    code, _, err = command(*base, f"--out={tmp_path / 'out.jpg'}")
    assert code == 1
    assert "ends in .png" in err


def test_a_folder_of_pairs_is_matched_by_name(command, tmp_path):
    for i in range(2):
        _save(tmp_path / "images" / f"{i}.bmp", _digit(i))
        _save(tmp_path / "masks" / f"{i}.png", _hole() if i else 255 - _hole())
    base = ["inpaint", f"--image={tmp_path / 'images'}", f"--mask={tmp_path / 'masks'}", "--batch=1"]
    code, _, err = command(*base, f"--out={tmp_path / 'out'}")
    assert code == 0, err
    assert set(json.loads((tmp_path / "out" / "made.json").read_text())["files"]) == {"0.png", "1.png"}
    for i, known in enumerate([_hole() > 0, _hole() == 0]):
        assert np.array_equal(_pixels(tmp_path / "out" / f"{i}.png")[known], _digit(i)[known])

    # a folder that holds something else is left alone
    (tmp_path / "out" / "made.json").unlink()
    code, _, err = command(*base, f"--out={tmp_path / 'out'}", "--overwrite")
    assert (code, "made.json lists" in err) == (1, True)

    _save(tmp_path / "images" / "lonely.png", _digit())
    _save(tmp_path / "masks" / "alone.png", _hole())
    code, _, err = command(*base, f"--out={tmp_path / 'again'}")
    assert code == 1
    assert "lonely.png has no mask" in err
    assert "alone.png has no image" in err
    assert not (tmp_path / "again").exists()
    _save(tmp_path / "masks" / "1.bmp", _hole())
    code, _, err = command(*base, f"--out={tmp_path / 'again'}")
    assert "several of 1" in err


@pytest.mark.parametrize(
    ("mask", "arguments", "message"),
    [
        (_hole((8, 9)), [], "8x8 pixels"),
        (np.zeros((8, 8), np.uint8), [], "something to generate"),
        (_hole(), ["--convention=alpha_keep"], "with transparency"),
        (_hole(), ["--feather=-1"], "feather"),
        (_hole(), ["--feather=nan"], "feather"),
        (_hole(), ["--detail=0.5"], "--detail >= 1"),
        (_hole(), ["--guidance=2"], "expected a --label"),
        (_hole(), ["--max_pixels=63"], "image.png (8x8 pixels, more than max_pixels = 63"),
        (_hole(), ["--mask=missing.png"], "does not exist"),
        (_hole(), ["--out="], "expected --image, --mask and --out"),
    ],
)
def test_inpainting_refuses_before_it_works(command, tmp_path, mask, arguments, message):
    image, hole = _save(tmp_path / "image.png", _digit()), _save(tmp_path / "mask.png", mask)
    code, _, err = command("inpaint", f"--image={image}", f"--mask={hole}", f"--out={tmp_path / 'o.png'}", *arguments)
    assert code == 1
    assert message in err
    assert not (tmp_path / "o.png").exists()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("inpaint", ["--image=gone.png", "--mask=hole.png", "--out=o.png"], "got gone.png, which does not exist"),
        ("inpaint", ["--image=hole.png", "--mask=gone/", "--out=o.png"], "got gone, which does not exist"),
        ("inpaint", ["--image=text.png", "--mask=hole.png", "--out=o.png"], "readable image file, got text.png"),
        ("inpaint", ["--image=hole.png", "--mask=text.png", "--out=o.png", "--thumbnail"], "got text.png"),
        ("texture", ["--image=gone.png", "--expand=8,0,0,0", "--out=o.png"], "got gone.png (no such file)"),
        ("texture", ["--image=hole.png", "--out=o.png"], "with a margin to paint"),
        ("texture", ["--size=²,8", "--out=o.png"], "expected --size = 2 numbers"),
        ("elbo", ["--images=gone", "--out=o.json"], "as --images, got gone, which does not exist"),
        ("sample", ["--tpm=gone", "--out=o"], "as --tpm, got gone, which does not exist"),
        ("evaluate", ["--denoiser=run", "--prompts=gone.txt"], "as --prompts, got gone.txt, which does not exist"),
        ("evaluate", ["--denoiser=run", "--real=gone"], "as --real, got gone, which does not exist"),
        (
            "evaluate",
            ["--denoiser=run", "--schedules=sync, tpm=gone*2"],
            "as --schedules, got gone, which does",
        ),
    ],
)
def test_what_is_not_there_is_told_before_a_network_is_loaded(monkeypatch, capsys, tmp_path, name, arguments, message):
    for module, load in ((build, "load_run"), (subjects, "load"), (rewarding, "parse")):
        monkeypatch.setattr(module, load, lambda *_, **__: pytest.fail("a network was loaded"))
    monkeypatch.chdir(tmp_path)
    _save(tmp_path / "hole.png", _hole())
    (tmp_path / "text.png").write_text("no image")
    code, _, err = mains.command(monkeypatch, capsys)(name, *arguments)
    assert (code, err.count("\n")) == (1, 1)
    assert message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hole.png", "text.png"]


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "LA", "L", "P"])
def test_a_photo_of_any_size_comes_back_with_its_hole_filled_and_nothing_else_changed(command, tmp_path, kind):
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (23, 29, 4), np.uint8), "RGBA")
    photo = photo.convert("RGB").convert("P") if kind == "P" else photo.convert(kind)
    photo.save(tmp_path / "photo.png")
    hole = np.zeros((23, 29), np.uint8)
    hole[3:9, 20:] = hole[21, 2] = 255
    mask = _save(tmp_path / "mask.png", hole)
    out = tmp_path / "out.png"
    code, _, err = command("inpaint", f"--image={tmp_path / 'photo.png'}", f"--mask={mask}", f"--out={out}")
    assert code == 0, err
    with Image.open(out) as made:
        assert made.mode == ("RGB" if kind == "P" else kind)
        made = np.asarray(made.convert("RGBA"))
    before = np.asarray(photo.convert("RGBA"))
    assert np.array_equal(made[hole == 0], before[hole == 0])
    assert (made[hole > 0] != before[hole > 0]).any(-1).mean() > 0.9
    # a network of greys fills with grey, which nothing shines through
    assert (made[hole > 0][:, :1] == made[hole > 0][:, :3]).all()
    assert (made[hole > 0][:, 3] == 255).all()


def test_a_soft_edge_that_is_its_own_mask_keeps_its_colours(command, tmp_path):
    photo = np.random.default_rng(1).integers(0, 256, (12, 12, 4), np.uint8)
    photo[0, 0, 3] = 255
    path, out = _save(tmp_path / "photo.png", photo), tmp_path / "out.png"
    code, _, err = command(
        "inpaint", f"--image={path}", f"--mask={path}", "--convention=alpha_generate", f"--out={out}"
    )
    assert code == 0, err
    made, kept = _pixels(out), photo[..., 3] >= 128
    assert np.array_equal(made[kept], photo[kept])
    assert (made[~kept][:, 3] == 255).all()


def test_strengths_of_a_photo_that_is_smaller_than_a_window_and_closer_looks(command, tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (5, 40), np.uint8)
    strength = np.zeros((5, 40), np.uint8)
    strength[1:4, 3:36] = 128
    image, mask = _save(tmp_path / "image.png", photo), _save(tmp_path / "mask.png", strength)
    out = tmp_path / "out.png"
    base = ["inpaint", f"--image={image}", f"--mask={mask}", f"--out={out}", "--overwrite"]
    base += ["--graded", "--mask_values=0,255"]
    for more in ([], ["--detail=1"]):
        code, _, err = command(*base, *more)
        assert code == 0, err
        made = _pixels(out)
        assert np.array_equal(made[strength == 0], photo[strength == 0])
        assert not np.array_equal(made, photo)


def test_what_a_masks_numbers_mean_is_asked_for(command, tmp_path):
    image = _save(tmp_path / "image.png", np.tile(_digit(), (2, 2)))
    mask = _save(tmp_path / "mask.png", np.tile(_hole() // 255, (2, 2)))
    base = ["inpaint", f"--image={image}", f"--mask={mask}", f"--out={tmp_path / 'o.png'}"]
    code, _, err = command(*base)
    assert code == 1
    assert "--mask_values=0,1" in err
    for wrong in ("1", "0,one", "1,0"):
        code, _, err = command(*base, f"--mask_values={wrong}")
        assert code == 1
        assert "mask_values" in err
    code, _, err = command(*base, "--mask_values=0,1")
    assert code == 0, err
    known = np.tile(_hole(), (2, 2)) == 0
    made = _pixels(tmp_path / "o.png")
    assert np.array_equal(made[known], _pixels(image)[known])
    assert not np.array_equal(made, _pixels(image))


def test_the_whole_photo_as_a_thumbnail_if_asked(command, tmp_path):
    wide = np.tile(_digit(), (1, 2))[:, :12]
    image, mask = _save(tmp_path / "image.png", wide), _save(tmp_path / "mask.png", _hole((8, 12)))
    base = ["inpaint", f"--image={image}", f"--mask={mask}", "--batch=1"]
    code, _, err = command(*base, f"--out={tmp_path / 'a.png'}", "--thumbnail")
    assert code == 0, err
    made = _pixels(tmp_path / "a.png")
    assert made.shape == (8, 8)
    assert np.array_equal(made[:, 5:], wide[:, 7:10])  # what the centre square has of the known part


def test_outpainting_keeps_the_image_and_fills_the_canvas(command, tmp_path):
    image = _save(tmp_path / "image.png", _digit())
    out = tmp_path / "wide.png"
    arguments = ["--expand=3,4,0,2", "--overlap=4", "--batch=1", "--steps=2"]
    code, said, err = command("texture", f"--image={image}", f"--out={out}", *arguments)
    assert code == 0, err
    assert f"wrote {out}" in said
    made = _pixels(out)
    assert made.shape == (10, 15)
    assert np.array_equal(made[:8, 3:11], _digit())
    assert made[8:].std() > 0
    assert made[:, :3].std() > 0
    assert made[:, 11:].std() > 0
    with Image.open(out) as image:
        assert json.loads(image.text["asyncpatch_jax"])["expand"] == ["3", "4", "0", "2"]
    code, said, err = command("texture", "--size=12,8", "--num=2", "--steps=2", "--batch=1", f"--out={tmp_path / 't'}")
    assert code == 0, err
    first, second = (_pixels(tmp_path / "t" / f"000{i}.png") for i in range(2))
    assert first.shape == (8, 12)
    assert not np.array_equal(first, second)


def test_texture_refuses_images_beyond_the_bound(command, tmp_path):
    image = _save(tmp_path / "image.png", _digit())
    out = tmp_path / "o.png"
    code, _, err = command("texture", f"--image={image}", "--expand=8,0,0,0", "--max_pixels=63", f"--out={out}")
    assert code == 1
    assert "image.png (8x8 pixels, more than max_pixels = 63" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size=4,8"], "8x8 pixels or more"),
        (["--size=16"], "expected --size = 2 numbers"),
        (["--size=²,8"], "expected --size = 2 numbers of pixels >= 0, got ²,8"),
        (["--size=16,16", "--overlap=8"], "overlap in 0 ... 7"),
        (["--image=brick"], "with a margin to paint"),
        (["--image=brick", "--expand=1,1,1,-1"], "expected --expand = 4 numbers"),
        (["--image=brick", "--size=16,16"], "either --image"),
        (["--image=brick", "--crop=9999", "--expand=8,0,0,0"], "expected --crop of at most"),
        (["--image=bricks", "--expand=8,0,0,0"], "bricks"),
    ],
)
def test_texture_refuses_before_it_works(command, tmp_path, arguments, message):
    code, _, err = command("texture", f"--out={tmp_path / 'o.png'}", *arguments)
    assert code == 1
    assert message in err


def test_pages_show_the_run(tmp_path):
    tiny = _copy(run())
    tiny.config.sample.steps = 2
    paths = pictures.write_all(tmp_path, tiny, datasets.dataset(tiny.config, "test"), jax.random.key(0))
    names = ["samples.png", "inpainting.png", "autoregressive.png", "autoregressive.gif"]
    assert [path.name for path in paths] == [*names, "uncertainty.png", "uncertainty.gif"]
    # rows start below the column names; in the first row every mask is a square of half the side
    page = _pixels(tmp_path / "inpainting.png")
    left = page.shape[1] - 9 * 68
    tiles = [page[26:90, left + 68 * i : left + 68 * i + 64] for i in range(9)]
    holes = np.repeat(np.repeat(masks.draw("square", 0, 3, 8)[..., 0] > 0.5, 8, 1), 8, 2)
    for i, hole in enumerate(holes):
        original, hidden, inpainted = tiles[3 * i : 3 * i + 3]
        assert np.array_equal(original[~hole], inpainted[~hole])
        assert np.array_equal(original[~hole], hidden[~hole])
        assert (hidden[hole][:, 0] < hidden[hole][:, 2]).all()  # striped in blue
    assert pictures.write_all(tmp_path, tiny, datasets.dataset(tiny.config, "test"), jax.random.key(0)) == paths


def test_elbo_reports_three_paths_with_their_errors(command, tmp_path):
    out = tmp_path / "elbo.json"
    for i in range(6):
        _save(tmp_path / "mine" / "37"[i % 2] / f"{i}.png", _digit(i))
    code, said, err = command("elbo", f"--images={tmp_path / 'mine'}", "--batch=4", "--samples=4", f"--out={out}")
    assert code == 0, err
    report = json.loads(out.read_text())
    assert (report["folder"], report["images"], report["given_class"]) == (str(tmp_path / "mine"), 6, True)
    assert [row["path"] for row in report["paths"]] == ["diagonal", "raster", "random environment"]
    assert all(row["bits_per_dim"] > 0 and row["error"] > 0 and row["error_of_draws"] > 0 for row in report["paths"])
    assert said.count("+-") == 3
    for arguments, message in (
        (["--num=100000"], "--num of at most"),
        (["--samples=3"], "even number"),
        (["--num=1"], "at least 2 images"),
        ([f"--out={out}"], "nothing exists yet"),
    ):
        code, _, err = command("elbo", f"--out={tmp_path / 'no.json'}", *arguments)
        assert code == 1
        assert message in err
    assert not (tmp_path / "no.json").exists()


def test_images_of_ones_own_have_the_classes_of_their_folders(command, monkeypatch, tmp_path):
    for i, folder in enumerate(("mine/3", "mine/7", "flat", "one/7", "other/3", "other/dog")):
        _save(tmp_path / folder / f"{i}.png", _digit(i))
    for folder, wanted in (("mine", [3, 7]), ("flat", [10]), ("one", [7])):
        data, classes = elbo.held_out(run(), str(tmp_path / folder), "test")
        assert (len(data.source), classes) == (len(wanted), wanted)
    nameless = run()._replace(num_classes=0, class_names=())
    assert elbo.held_out(nameless, str(tmp_path / "mine"), "test")[1] == [0, 0]
    with pytest.raises(ValueError, match=r"named as the run's classes, 0, 1, 2.*got dog"):
        elbo.held_out(run(), str(tmp_path / "other"), "test")
    # what the error for a run on a folder says can be done
    own = _copy(run())
    own.config.data.update({"name": "folder", "path": str(tmp_path / "mine")})
    monkeypatch.setattr(build, "load_run", lambda *where, **more: own)
    code, _, err = command("elbo", f"--out={tmp_path / 'a.json'}")
    assert (code, "expected --images=FOLDER of images that were not" in err, "or --split=train" in err) == (
        1,
        True,
        True,
    )
    assert elbo.held_out(own, None, "train")[0].class_names == ("3", "7")


def test_elbo_of_one_level_is_refused(command, tmp_path):
    code, _, err = command("elbo", "--levels=1", f"--out={tmp_path / 'b.json'}")
    assert (code, "expected --levels of at least 2" in err) == (1, True)


def test_a_trained_run_takes_folder_and_sampling_from_a_config_and_nothing_else(command, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(build, "load_run", lambda *where, **more: asked.append(where[0]) or _copy(run()))
    arguments = ["--workdir=", "--config=configs/photos.py", "--config.sample.steps=2", "--num=1"]
    code, _, err = command("sample", *arguments, f"--out={tmp_path / 'out'}")
    assert code == 0, err
    assert asked == ["runs/photos"]
    with np.load(tmp_path / "out" / "samples.npz") as written:
        assert len(written["images"]) == 1
    code, _, err = command("sample", "--config.train.steps=3")
    assert code == 1
    assert "expected --config.workdir and --config.sample.* alone to change, got --config.train.steps" in err
    code, _, err = command("sample", "--config.sample.step=3")
    assert code == 1
    assert "did you mean --config.sample.steps" in err


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("sample", ["--workdir=run", "--num=1"]),
        ("elbo", ["--workdir=run"]),
        ("benchmark", ["--workdir=run"]),
        ("evaluate", ["--denoiser=run", "--rewards=digits"]),
    ],
)
def test_commands_that_read_a_run_can_refuse_to_fall_back(monkeypatch, capsys, tmp_path, name, arguments):
    command = mains.command(monkeypatch, capsys)

    def asked(*where, fall_back, **more):
        raise ValueError(f"asked with {fall_back}")

    monkeypatch.setattr(build, "load_run", asked)
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "run")
    for flag, value in ((None, True), ("--nofall_back", False)):
        code, _, err = command(name, *arguments, *filter(None, [flag]), f"--out={tmp_path / 'out'}")
        assert code == 1
        assert f"asked with {value}" in err
