"""`launch.train_autoencoder` and `launch.leakage`: a run goes on bit for bit; what it writes is read and measured."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from asyncpatch_jax.metrics.leakage import leakage
from asyncpatch_jax.models import autoencoder
from asyncpatch_jax.pretrained.autoencoders import read_autoencoder
from asyncpatch_jax.training import autoencoding
from launch import train_autoencoder
from launch.autoencoding import coders, parts
from launch.compiler import aot, autoencoder_programs
from launch.shared import cli
from tests import drawn, mains, tiny_autoencoder

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("autoencoder_*.py") if p.stem != "autoencoder_base")
SMALL = {
    "data.size": 16,
    "model.base": 4,
    "model.multipliers": (1, 2),
    "model.windows": (3, 1),
    "model.codes": 8,
    "discriminator.width": 4,
    "discriminator.layers": 1,
    "loss.start": 1,
    "optim.schedule": "constant",
    "train.batch": 4,
    "train.checkpoint_every": 2,
    "train.sample_every": 4,
    "train.held_out": 4,
}


def load(name, arg=""):
    return cli.load(f"{ROOT}/configs/{name}.py" + (f":{arg}" if arg else ""))


def small(workdir, **more):
    config = load("autoencoder_fashion", "smoke")
    config.update_from_flattened_dict({**SMALL, "workdir": str(workdir), **more})
    return config


def drawn_state(config, made, mesh, like):
    """The first state without a program that draws it."""
    params, judged = drawn.params_like(made.params), drawn.params_like(made.judge)
    state = autoencoding.create(params, judged, made.step.optimizer)
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, like))


def test_a_run_goes_on_bit_for_bit_and_its_folder_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_autoencoder, "first", drawn_state)
    training, made = train_autoencoder.training, {}  # one program serves both
    monkeypatch.setattr(train_autoencoder, "training", lambda *args: made.get(0) or made.setdefault(0, training(*args)))
    train_autoencoder.run(small(tmp_path / "once", **{"train.steps": 4}))
    # as if it had been killed after its second step
    shutil.copytree(tmp_path / "once" / "checkpoints" / "2", tmp_path / "twice" / "checkpoints" / "2")
    train_autoencoder.run(small(tmp_path / "twice", **{"train.steps": 4, "train.sample_every": 0}))
    (module, once), (_, twice) = (autoencoder.load(tmp_path / name / "autoencoder") for name in ("once", "twice"))
    jax.tree.map(np.testing.assert_array_equal, once, twice)
    assert (module.channels, module.factor, module.codes) == (1, 2, 8)
    assert "continuing" in capsys.readouterr().out
    samples = tmp_path / "once" / "samples" / "0000004"
    found = json.loads((samples / "measures.json").read_text())
    assert {"psnr_hole", "psnr_known", "ssim_hole", "ssim_known", "latents", "pixels"} <= set(found)
    assert found["latents"][0]["moved"] > 0
    # a cell of 2 pixels sees 3 pixels further: two cells
    assert [ring["moved"] for ring in found["latents"][2:]] == [0.0] * len(found["latents"][2:])
    assert Image.open(samples / "autoencoder.png").size[1] > 4 * 64
    with pytest.raises(ValueError, match=r"loss\.commitment: 0\.25 -> 0\.5"):
        train_autoencoder.run(small(tmp_path / "once", **{"train.steps": 8, "loss.commitment": 0.5}))
    # the same folder by the command
    out = tmp_path / "leakage.json"
    folder = tmp_path / "once" / "autoencoder"
    arguments = [folder, "--data=digits", "--size=16", "--num=4", "--mask=square", f"--out={out}"]
    code, said, _ = mains.command(monkeypatch, capsys)("leakage", *arguments)
    assert code == 0
    assert "sees 3 pixels beyond its own" in said
    rings = json.loads(out.read_text())[str(folder)]["latents"]
    assert rings[0]["moved"] > rings[-1]["moved"] == 0.0
    assert f"| {rings[0]['moved']:.4f} |" in said


def test_of_diffusers_autoencoder_latents_are_compared_with_grey_holes(tmp_path):
    found = read_autoencoder(tiny_autoencoder.folder(tmp_path))
    coder = coders.coder(found)
    assert (coder.index, coder.factor) == (None, 2)
    images = np.array(drawn.uniform(2, 8, 8, 1, low=-1))
    hole = np.zeros((2, 8, 8, 1), np.float32)
    hole[:, :2] = 1
    leaks = leakage(coder, images, hole, batch=2, longest=3)
    whole, grey = (np.asarray(found.encode(x)) for x in (images, images * (1 - hole)))
    moved = np.sqrt((((grey - whole) / whole.std((0, 1, 2))) ** 2).mean(-1))
    np.testing.assert_allclose([ring.largest for ring in leaks.latents], moved[:, 1:].max((0, 2)), rtol=1e-4)
    # its group norms see the whole image
    assert leaks.latents[-1].moved > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_opens_with_its_command_and_everything_builds(name):
    text = (ROOT / "configs" / f"{name}.py").read_text()
    assert f"    python -m launch.train_autoencoder --config=configs/{name}.py" in text.split('"""')[1]
    for arg in ("", "smoke"):
        config = load(name, arg)
        model = parts.model(config)
        parts.optimizer(config)
        assert model.reach <= model.factor
        assert abs(sum(parts.masks(config).values()) - 0.75) < 1e-6
    assert "smoke" in config.workdir


def test_its_step_is_what_launch_compile_asks_the_compiler_about(monkeypatch, capsys):
    asked = []

    def ahead(request, timeout, module):
        asked.append((request, module))
        return {"failed": "it was never asked", "stderr": []}

    monkeypatch.setattr(aot, "ahead", ahead)
    call = mains.command(monkeypatch, capsys)
    code, out, _ = call("compile", "--config=configs/autoencoder_f4.py:smoke", "--topology=v6e:2x2")
    assert (code, "it was never asked" in out) == (3, True)
    ((request, module),) = asked
    assert module == "launch.compiler.autoencoder_programs"
    assert (request["program"], request["classes"]) == ("train", 1)
    code, _, err = call("compile", "--config=configs/autoencoder_f4.py", "--program=sample")
    assert (code, "has no sampler" in err) == (1, True)
    # of what is compiled, in this process
    compiled = []
    monkeypatch.setattr(aot, "compiled", lambda program, chips, effort: compiled.append((program, chips)) or {})
    monkeypatch.setattr(autoencoder_programs.Topology, "devices", lambda self: jax.devices())
    config = small("unused", **{"loss.adversarial": 0.0, "model.remat": "blocks"})
    found = autoencoder_programs.answer({**request, "config": config.to_dict()})
    ((program, chips),) = compiled
    assert (found["images"], chips, program.args[2]["image"].shape) == (4, 1, (4, 16, 16, 1))
    count = sum(leaf.size for leaf in jax.tree.leaves(program.args[0].ema))
    assert found["parameters"] == count
    # more than twice the products of one pass, and no more than is there
    assert found["model_flops"] > 2 * 4 * 16 * 16 * 9 * 4 * 4


def test_mistakes_are_said_before_anything_is_read(tmp_path):
    for changes, message in (
        ({"masks.thin": 0.9}, "1 at most in all"),
        ({"masks.thin": -0.1}, "0 or more"),
        ({"model.preset": "f3"}, "config.model.preset out of tiny, f4, f8"),
        ({"data.size": 15}, "config.data.size to be a multiple of 2"),
        ({"discriminator.layers": 4}, "48 pixels a side or more for 4 layers"),
        ({"train.held_out": 1}, "held_out of 2 images"),
        ({"loss.lpips": str(tmp_path / "none")}, "cannot read LPIPS"),
        ({"optim.ema": 1.0}, "config.optim.ema"),
    ):
        with pytest.raises(ValueError, match=message):
            train_autoencoder.run(small(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
