"""Inpainting methods by name: what a command line may say, what a run can serve; and the page of the study."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from asyncpatch_jax.process import RectifiedFlow
from asyncpatch_jax.sampling import Heun, inpainting
from configs import digits
from launch.shared import build, datasets, inpainters
from launch.studies import gaussian
from tests import drawn, mains


def run(times="asyncpatch", **sample):
    """A transformer that compiles in seconds, with no layer at zero, on digits."""
    config = digits.get_config()
    config.times.name = times
    with config.ignore_type():
        config.model = {"name": "dit", "preset": "", "dtype": "float32", "log_variance": False}
        config.model.update(patch=4, width=8, depth=1, heads=1)
    config.sample.update({"steps": 3, **sample})
    made = build.untrained(config, datasets.dataset(config, "test"))
    return made._replace(params=drawn.params_like(made.params))


def test_a_method_is_named_with_its_settings():
    found = {
        "score_sde": inpainting.ScoreSDE(),
        "score_sde:corrections=2, snr=0.1": inpainting.ScoreSDE(corrections=2, snr=0.1),
        "repaint:jump=2,resample=3": inpainting.RePaint(2, 3),
        "ddrm": inpainting.DDRM(),
        "ddnm:eta=0": inpainting.DDNM(0.0),
        "deqir:iterations=4": inpainting.DeqIR(4),
        "mcg": inpainting.MCG(),
        "dps:step_size=.3": inpainting.DPS(0.3),
        "pigdm:weight=1e-1": inpainting.PiGDM(0.1),
    }
    synchronous = run("synchronous")
    assert {text: inpainters.method(synchronous, text) for text in found} == found
    assert {text.split(":")[0] for text in found} | {"asyncpatch"} <= set(inpainters.METHODS)
    fields = run(solver="heun")
    fields.config.times.grid = (4, 4)
    assert inpainters.method(fields, "asyncpatch") == inpainting.AsyncPatch(Heun(RectifiedFlow()), (4, 4))


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("pigmd", {}, r"expected --method out of asyncpatch, .*, got 'pigmd'; did you mean pigdm\?"),
        (":eta=1", {}, "expected --method out of asyncpatch, .*, got ''$"),
        ("ddnm:0.5", {}, "expected --method=ddnm:setting=value,setting=value, got 'ddnm:0.5'"),
        ("ddnm:eta=1,", {}, "expected --method=ddnm:setting=value,setting=value"),
        ("ddnm:eta=1,eta=0", {}, "expected each setting of ddnm once"),
        ("dps:step=1", {}, "expected settings of dps out of step_size, eta, got 'step'"),
        ("dps:step_size=much", {}, "expected dps:step_size as a number, got 'much'"),
        ("ddnm:travel=1.5", {}, "expected ddnm:travel as a whole number, got '1.5'"),
        ("dps:step_size=nan", {}, "expected .*step_size.*, got nan"),
        ("ddrm:eta=2", {}, "expected 0 <= eta <= 1, got 2"),
        ("repaint", {"steps": 8}, "expected 1 <= jump <= 7.* for repaint in 8 steps"),
        ("ddnm:travel=9,repeat=2", {"steps": 8}, "for ddnm:travel=9,repeat=2 in 8 steps"),
        ("asyncpatch:eta=1", {}, "expected no settings of asyncpatch, whose flags are --solver and --eta, got eta"),
        ("asyncpatch", {"times": "synchronous"}, "expected a run that was trained on time fields .*: repaint, "),
        ("dps", {"input_guidance": 1.0}, "expected input guidance with the method asyncpatch alone, got it with dps"),
    ],
)
def test_what_cannot_be_is_refused_at_once(text, changes, message):
    with pytest.raises(ValueError, match=message):
        inpainters.method(run(**changes), text)


def test_launch_inpaint_by_a_method_keeps_known_pixels(monkeypatch, capsys, tmp_path):
    made = run("synchronous")
    monkeypatch.setattr(build, "load_run", lambda *where, **more: made)
    command = mains.command(monkeypatch, capsys)
    pixels, hole = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3, np.zeros((8, 8), np.uint8)
    hole[2:5, 1:6] = 255
    paths = [tmp_path / name for name in ("image.png", "mask.png", "out.png")]
    Image.fromarray(pixels).save(paths[0])
    Image.fromarray(hole).save(paths[1])
    flags = ["--workdir=run", *(f"--{name}={path}" for name, path in zip(("image", "mask", "out"), paths, strict=True))]
    for method, message in (
        ("asyncpatch", "trained on time fields"),
        ("mcg --eta=0", "expected --eta with --method=asyncpatch alone, got it with mcg"),
        ("mcg --detail=1", "expected --detail with --method=asyncpatch alone"),
    ):
        code, _, err = command("inpaint", *flags, *f"--method={method}".split())
        assert code == 1
        assert message in err
    # the derivative of the network has a part in it, and every pixel of the hole in its noise
    made_of = []
    for seed in (0, 1):
        code, _, err = command(
            "inpaint", *flags, "--method=mcg:step_size=0.1", "--batch=1", f"--seed={seed}", "--overwrite", "--feather=0"
        )
        assert code == 0, err
        with Image.open(paths[2]) as image:
            made_of.append(np.asarray(image))
        assert np.array_equal(made_of[-1][hole == 0], pixels[hole == 0])
    assert (made_of[0] != made_of[1])[hole > 0].mean() > 0.8


def test_the_page_says_what_was_measured():
    methods = {row.method for row in gaussian.rows()}
    assert all(isinstance(method, inpainting.Inpainter) for method in methods)
    # of a perfect network, these two are the time field
    trained = {inpainting.Supervised, inpainting.RAD}
    assert {type(method) for method in methods} | trained == {
        kind for kind in vars(inpainting).values() if dataclasses.is_dataclass(kind)
    }
    row = gaussian.Row("DDRM", "eta .85", inpainting.DDRM(), (4,))
    ((steps, score),) = gaussian.measure(row, 50, 0)
    page = gaussian.page("python -m launch.studies.gaussian", [(row, steps, score)], 50)
    assert page.startswith(f"# {gaussian.TITLE}\n")
    assert f"| DDRM | eta .85 | 4 | 4 |  | {score.mean:.3f} | {score.spread:.3f} | {score.distance:.3f} |" in page
    # of the law itself: the expected distance of so many images
    rng, d = np.random.default_rng(0), 5
    truth = gaussian.Law(np.zeros(d), np.eye(d))
    drawn_ones = rng.normal(size=(200, 500, d))
    distances = [gaussian.score(gaussian.Law(x.mean(0), np.cov(x.T)), truth).distance for x in drawn_ones]
    assert np.mean(distances) == pytest.approx(gaussian.noise_floor(500), rel=0.05)
