"""The study of inpainting on the tiny network: cells are made once, what is measured is right, the page says it."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits
from launch import train
from launch.shared import build, datasets
from launch.studies import inpainting, inpainting_page, inpainting_scores
from launch.studies.inpainting_page import Cell, Results
from tests import mains, test_launch


def test_what_is_filled_is_kept_measured_and_written(tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(train, "run", lambda config: trained.append((config.times.name, config.seed)))

    def load_run(folder, mesh=None):
        run = test_launch._copy(test_launch.run())
        run.config.train.steps = 0
        run.config.times.name = trained[-1][0]
        return run

    monkeypatch.setattr(build, "load_run", load_run)
    call = mains.command(monkeypatch, capsys)
    where = (f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'page.md'}")
    sizes = ("--test=4", "--num=4", "--reference=9", "--tune=2", "--config.train.steps=0", "--config.sample.steps=2")
    asked = (
        "studies.inpainting",
        "--config=configs/digits.py",
        "--networks=patchwise",
        "--masks=square,thin",
        "--seeds=2",
    )
    code, said, err = call(*asked, *where, *sizes)
    assert code == 0, err
    assert trained == [("patchwise", 0), ("patchwise", 1)]
    assert said.count("s an image") == 4

    for mask in ("square", "thin"):
        with np.load(tmp_path / "runs" / "masks" / f"{mask}.npz") as archive:
            hole = archive["arr_0"]
        source = datasets.dataset(test_launch.run().config, "test").source
        places = np.linspace(0, len(source) - 1, 4).round()
        real = np.stack([source[int(i)]["image"] for i in places])
        errors = []
        for seed in (0, 1):
            with np.load(tmp_path / "runs" / f"patchwise_{seed}" / "filled" / f"own-{mask}.npz") as archive:
                made = archive["arr_0"]
            assert np.array_equal(made[hole == 0], real[hole == 0])
            squares = (((made.astype(float) - real) / 127.5) ** 2 * hole).sum((1, 2, 3)) / hole.sum((1, 2, 3))
            errors.append(np.sqrt(squares).mean())
        line = next(
            line for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("| patchwise |")
        )
        wanted = f"{np.mean(errors):.3f} ± {np.std(errors, ddof=1):.3f}"
        assert line.split(" | ")[1 + ("square", "thin").index(mask)].removesuffix(" |") == wanted
    with Image.open(tmp_path / "images" / "results.png") as picture:
        assert picture.size[0] > 100

    # the page is made again of what is there, and only what changes is sampled anew
    again = call(*asked, *where, *sizes)[1]
    assert "s an image" not in again
    other = call(*asked, *where, *sizes[:-1], "--config.sample.steps=3")[1]
    assert other.count("s an image") == 4


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--networks=synchronus", "expected --networks out of synchronous, "),
        ("--masks=oval", "expected --masks out of "),
        ("--masks=", "expected --masks each once, at least one, got none"),
        ("--networks=perlin,perlin", "expected --networks each once"),
    ],
)
def test_what_is_unknown_is_told_before_anything_is_trained(tmp_path, monkeypatch, capsys, flag, says):
    monkeypatch.setattr(train, "run", lambda config: pytest.fail("trained"))
    call = mains.command(monkeypatch, capsys)
    code, _, err = call("studies.inpainting", "--config=configs/digits.py", flag, f"--out={tmp_path / 'page.md'}")
    assert code == 1
    assert says in err


def test_networks_differ_in_what_they_are_for_whatever_the_configuration_was_for(tmp_path):
    config = digits.get_config()
    config.supervised.update({"masks": "wide", "whole": 0.5})
    found = {name: inpainting.configured(config, name, 3, tmp_path) for name in ("perlin", "supervised")}
    assert found["perlin"].supervised.to_dict() == {"masks": None, "whole": None}
    assert found["supervised"].supervised.to_dict() == {"masks": "square,thin,wide", "whole": None}


def test_a_record_never_speaks_of_another_array(tmp_path, monkeypatch):
    """Stopped between the two files, a later call for the first array makes it again."""
    like = jax.ShapeDtypeStruct((1,), np.float32)

    def kept(about, number):
        return inpainting.kept(tmp_path, "x", {"of": about}, like, lambda: (np.full(1, number, np.float32), 0.5))

    def stop(*what, **more):
        raise KeyboardInterrupt

    assert kept("a", 1.0) == (1.0, 0.5)
    assert kept("a", 2.0) == (1.0, 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(inpainting, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            kept("b", 3.0)
    assert kept("a", 4.0) == (4.0, 0.5)


def test_settings_are_chosen_by_the_decisive_score(monkeypatch, tmp_path):
    """Of each method with a step size, that value whose holes are nearest to what was there."""
    best = {"mcg": 0.1, "dps": 0.3, "pigdm": 0.5}

    def filled(run, folder, text, how, task, mask, seed):
        name, _, rest = text.partition(":")
        off = abs(float(rest.partition("=")[2]) - best[name]) * 100
        return Cell(np.where(task.holes[mask] > 0, off, task.images).astype(np.uint8), 1, 1, 0.0)

    black = np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, np.int32)
    monkeypatch.setattr(inpainting, "some", lambda config, split, count: black)
    monkeypatch.setattr(inpainting, "filled", filled)
    monkeypatch.setattr(inpainting.inpainters, "method", lambda run, text: text)
    monkeypatch.setattr(inpainting.flags, "FLAGS", type("Values", (), {"tune": 2}))
    found = inpainting.tuned(test_launch.run(), tmp_path, None, inpainting_scores.read(None, None))
    assert found == {"mcg": "mcg:step_size=0.1", "dps": "dps:step_size=0.3", "pigdm": "pigdm:weight=0.5"}


def test_small_images_are_enlarged_whole_pixels_at_a_time():
    image = np.arange(2 * 24 * 28, dtype=np.uint8).reshape(1, 24, 28, 2)
    large = inpainting_scores.enlarged(image)
    assert large.shape == (1, 72, 84, 2)
    assert np.array_equal(large[:, 2::3, ::3], image)
    assert inpainting_scores.enlarged(np.zeros((1, 64, 80, 1))).shape == (1, 64, 80, 1)


def test_the_page_names_what_numbers_depend_on():
    config = test_launch.run().config
    images = np.zeros((2, 8, 8, 1), np.uint8)
    results = Results(
        config,
        "test",
        images,
        {"square": np.ones((2, 8, 8, 1), np.float32)},
        9,
        {"hole RMSE": "an error", "FID": "a distance"},
    )
    for distance in (1.0, 3.0):
        results.add_made("perlin", {"FID": distance})
        for method, calls in (("ddnm", 5), ("dps", 7)):
            results.add_filled(
                ("synchronous", method), "square", Cell(images, calls, calls - 5, 0.25), {"hole RMSE": distance / 2}
            )
    results.tuned = {"dps": "dps:step_size=0.3"}
    text = inpainting_page.text("python -m it", results)
    assert "| perlin | 2.000 ± 1.414 |" in text
    assert "| synchronous + dps | 1.000 ± 0.707 |" in text
    assert "| synchronous + dps | 7 | 2 | 0.250 |" in text
    assert f"| square | 1.00 | {inpainting_scores.digest(np.ones(128))} |" in text
    assert "dps:step_size=0.3" in text
    assert "of its split test" in text
    assert json.dumps(config.train.steps) in text.replace(",", "")
