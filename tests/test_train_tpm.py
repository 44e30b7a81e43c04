"""Training a timestep policy, resuming it, looking at it and deploying it, on a tiny network with random weights."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from asyncpatch_jax.pretrained.folders.loading import load_pretrained
from asyncpatch_jax.pretrained.plans import background
from asyncpatch_jax.sampling.schedules.tpm import ConstantDeviation, deviation
from asyncpatch_jax.training import policies, stored
from configs import tpm_digits
from launch import evaluate, train_tpm
from launch.policy import iteration, rewarding, subjects
from launch.policy.pages import Made, numbers
from launch.shared import build, cli
from launch.studies import tpm, tpm_page
from launch.studies.tpm_page import LIFTED, PAPER, PLAIN, SPATIAL, Row, Study, table, verdict
from tests import OLDER_EMITTERS, mains, test_launch, tiny_folders
from tests.policy_runs import STEPS, begun, config_of, init

update = iteration.update


def bright(images, prompts):
    """A reward that any deviation changes."""
    return images.mean((1, 2, 3)) / 255 + 0.01 * np.array([len(prompt) for prompt in prompts])


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    """A folder that stands for the tiny network's."""
    return test_launch.folder_of(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="module", autouse=True)
def loaded():
    """The tiny network for any folder, and parameters to begin with that are not drawn again for each training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "load_run", lambda *where, **more: test_launch._copy(test_launch.run()))
        patch.setattr(policies, "init", lambda module, key, shape: begun(module, shape))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, denoiser):
    """A policy's folder, with its pages."""
    workdir = tmp_path_factory.mktemp("policies") / "policy"
    train_tpm.run(config_of(workdir, denoiser, **{"train.sample_every": STEPS}))
    return workdir


def leaves(workdir, step=None):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(policies.load(workdir, step).params)]


def test_a_training_moves_writes_its_pages_and_continues_exactly(trained, denoiser, tmp_path, monkeypatch):
    first, last = leaves(trained, 2), leaves(trained)
    assert any((a != b).any() for a, b in zip(first, last, strict=True))
    train_tpm.run(config_of(tmp_path / "parts", denoiser, **{"train.steps": 2}))
    train_tpm.run(config_of(tmp_path / "parts", denoiser))
    for a, b in zip(last, leaves(tmp_path / "parts"), strict=True):
        np.testing.assert_array_equal(a, b)
    monkeypatch.setattr(policies, "init", init)
    train_tpm.run(config_of(tmp_path / "other", denoiser, seed=1))
    assert any((a != b).any() for a, b in zip(last, leaves(tmp_path / "other"), strict=True))
    folder = trained / "pages" / f"{STEPS:07d}"
    page = json.loads((folder / "page.json").read_text())
    (scores,) = page["scores"].values()
    assert scores["0.0"]["low"] < scores["0.0"]["mean"] < scores["0.0"]["high"]
    assert len(page["deviations"]["mean"]) == 2  # of three calls, the first is told its own time
    for name in ("deviations.png", "gamma.png"):
        with Image.open(folder / name) as image:
            assert min(image.size) > 300
    # a training that was killed after its last checkpoint still gets its pages
    (folder / "gamma.png").unlink()
    train_tpm.run(config_of(trained, denoiser, **{"train.sample_every": STEPS}))
    assert (folder / "gamma.png").exists()


def test_draws_begin_with_one_noise(denoiser, tmp_path, monkeypatch):
    """And differ by what the module draws alone; another noise, prompt or iteration has another key."""
    seen, roll = [], iteration.roll

    def spied(net, params, schedule, asked, begin, keys, shape):
        if isinstance(begin, jax.core.Tracer):  # looked at before the first iteration
            return roll(net, params, schedule, asked, begin, keys, shape)
        seen.append((*(np.asarray(jax.random.key_data(k)) for k in (begin, keys)), np.asarray(asked.cond.label)))
        return roll(net, params, schedule, asked, begin, keys, shape)

    monkeypatch.setattr(iteration, "roll", spied)
    train_tpm.run(config_of(tmp_path / "policy", denoiser, **{"train.steps": 2}))
    begin, keys, label = map(np.stack, zip(*seen, strict=True))
    assert begin.shape[:2] == (2, 8)
    np.testing.assert_array_equal(begin[:, ::2], begin[:, 1::2])
    assert len(np.unique(begin.reshape(16, -1), axis=0)) == 8
    assert len(np.unique(keys.reshape(16, -1), axis=0)) == 16
    for one in label:
        assert (one == np.repeat(one[::4], 4)).all()
        assert one[0] != one[4]


def test_prompts_come_in_new_orders_and_from_any_position():
    stream = train_tpm.Prompts(5, 2, seed=3)
    seen = np.concatenate([next(stream) for _ in range(10)])
    for epoch in seen.reshape(4, 5):
        assert sorted(epoch) == list(range(5))
    assert len({tuple(epoch) for epoch in seen.reshape(4, 5)}) > 1
    again = train_tpm.Prompts(5, 2, seed=3)
    again.set_state({"next_index": 6})
    np.testing.assert_array_equal(next(again), seen[12:14])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"denoiser": ""}, "expected --config.denoiser=FOLDER and --config.rewards"),
        ({"grpo.noises": 1, "grpo.draws": 1}, "groups of 2 or more, got prompts = 2, noises = 1, draws = 1"),
        ({"grpo.draws": 0}, "a draw or more"),
        ({"grpo.minibatch": 3}, "a minibatch that divides 8 images, got 3"),
        ({"grpo.clip": 1.5}, "0 < clip < 1"),
        ({"grpo.prompts": 12}, "expected config.grpo.prompts <= 10 prompts, got 12"),
        ({"policy.patch": 3}, "multiples of 3"),
        ({"rewards": "hps_v2"}, "It needs"),
        ({"rewards": "hsp"}, "expected a reward out of digits, digits_judge, scenes_judge, clip, clip_score"),
        ({"rewards": "digits*x"}, "expected a number as the weight of digits, got 'x'"),
        ({"rewards": "digits, digits"}, "digits twice"),
        ({"rewards": "digits*0"}, "not all 0"),
        ({"rewards": "digits=folder"}, "a folder of a public network's reward alone, got folder for digits"),
        ({"sample.steps": 1}, "two steps or more"),
        ({"sample.solver": "ddpm"}, "a solver without fresh noise"),
        ({"policy.space": "x"}, "expected space out of time, velocity, got 'x'"),
        ({"optim.b1": 2.0}, "0 <= b1, b2 < 1"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(denoiser, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train_tpm.run(config_of(tmp_path / "policy", denoiser, **changes))
    assert not (tmp_path / "policy").exists()


def test_another_training_is_not_overwritten(trained, denoiser):
    with pytest.raises(ValueError, match=r"policy.width: 8 -> 16"):
        train_tpm.run(config_of(trained, denoiser, **{"policy.width": 16}))
    with pytest.raises(FileNotFoundError, match="expected a trained policy in nowhere"):
        policies.load("nowhere")


def test_what_a_policy_is_trained_on_may_lie_anywhere_and_be_nothing_else(trained, denoiser, tmp_path, monkeypatch):
    def refused(folder=denoiser, **changes):
        config = config_of(trained, folder, **changes)
        choice = subjects.Choice(**config.sample)
        subject, rewards = (
            subjects.load(config.denoiser, train_tpm.texts(config), choice),
            rewarding.parse(config.rewards),
        )
        module = policies.module(config.policy.to_dict(), subject.net.model.num_classes, 0)
        try:
            train_tpm.check_same(config, train_tpm.record(config, module, subject, rewards))
        except ValueError as error:
            return str(error)

    shutil.copytree(denoiser, tmp_path / "moved")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(test_launch.run().class_names))
    assert refused(f"{tmp_path / 'moved'}/") is None
    assert refused(prompts=str(prompts)) is None
    prompts.write_text("1\n2")
    assert "prompts: '10, " in refused(prompts=str(prompts))
    assert "rewards.tests.test_train_tpm:bright: 2.0 -> 3.0" in refused(rewards="tests.test_train_tpm:bright*3")
    # the same folder, trained on
    run = test_launch.run()
    other = run._replace(params=jax.tree.map(lambda leaf: leaf * 1.5, run.params))
    monkeypatch.setattr(build, "load_run", lambda *where, **more: test_launch._copy(other))
    assert "denoiser: " in refused()


def test_a_policy_is_what_its_checkpoints_say(trained, tmp_path, monkeypatch):
    """policy.json is for people, and a damaged newest checkpoint is not used."""
    monkeypatch.setattr(stored, "_forget", lambda: None)  # takes its time
    folder = tmp_path / "policy"
    shutil.copytree(trained, folder)
    (folder / "policy.json").write_text("{")
    for a, b in zip(leaves(folder), leaves(trained), strict=True):
        np.testing.assert_array_equal(a, b)
    (folder / "checkpoints" / str(STEPS) / "about" / "metadata").write_text("{}")
    with pytest.warns(UserWarning, match=f"checkpoint {STEPS} .* Using checkpoint 2, the newest that is whole"):
        found = leaves(folder)
    for a, b in zip(found, leaves(trained, 2), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match=f"checkpoint {STEPS} in .* is damaged"):
        policies.load(folder, fall_back=False)


def made_sure(monkeypatch, policy):
    """From now on it is read as one that deviates: four iterations moved it by less than an image's 8 bits show."""
    sure = {**policy.params, "belief": {**policy.params["belief"], "bias": jnp.array([-3.0, 3.0])}}
    monkeypatch.setattr(policies, "load", lambda folder, mesh, fall_back: policy._replace(params=sure))


def test_a_table_of_schedules(trained, denoiser, monkeypatch, capsys, tmp_path):
    made_sure(monkeypatch, policies.load(trained))
    call = mains.command(monkeypatch, capsys)
    asked = (f"--denoiser={denoiser}", "--steps=3", "--guidance=1", "--num=6", "--seeds=2", f"--out={tmp_path}")
    schedules = f"--schedules=sync, constant=.5, constant=0*2, tpm={trained}*0, tpm={trained}, concave=.3"
    code, out, err = call("evaluate", *asked, schedules, "--rewards=tests.test_train_tpm:bright")
    assert code == 0, err
    found = json.loads((tmp_path / "evaluation.json").read_text())["schedules"]
    scores = {name: np.array(one["scores"]["tests.test_train_tpm:bright"]) for name, one in found.items()}
    # what deviates by nothing is the synchronous run
    for name in ("constant=.5", f"tpm={trained}*0"):
        np.testing.assert_array_equal(scores[name], scores["sync"])
    for name in ("constant=0*2", f"tpm={trained}"):
        assert np.abs(scores[name] - scores["sync"]).max() > 1e-3
    assert found["constant=0*2"]["deviations"] == [0.0, -0.5, -0.5]
    assert "| sync | " in out
    assert "residual, difference" in out
    assert (tmp_path / "evaluation.md").read_text().strip() in out
    assert "nothing exists yet" in call("evaluate", *asked)[2]
    assert "expected sync, constant=RHO" in call("evaluate", *asked, "--overwrite", "--schedules=fast")[2]


def test_deployed_in_the_command_that_samples(trained, monkeypatch, capsys, tmp_path):
    call = mains.command(monkeypatch, capsys)
    made_sure(monkeypatch, policies.load(trained))
    asked = ("--workdir=run", "--steps=3", "--guidance=1", "--eta=0", "--num=3")
    plain, none, some = (tmp_path / name for name in ("plain", "none", "some"))
    for out, more in (
        (plain, ()),
        (none, (f"--tpm={trained}", "--gamma=0")),
        (some, (f"--tpm={trained}", "--gamma=2")),
    ):
        code, _, err = call("sample", *asked, *more, f"--out={out}")
        assert code == 0, err
    images = [np.load(out / "samples.npz")["images"].astype(int) for out in (plain, none, some)]
    np.testing.assert_array_equal(images[0], images[1])
    assert np.abs(images[2] - images[0]).max() > 0


@pytest.mark.parametrize("name", ["tpm_digits", "tpm_text", "tpm_scenes"])
def test_a_config_opens_with_its_command(name):
    file = Path(__file__).parent.parent / "configs" / f"{name}.py"
    assert f"    python -m launch.train_tpm --config=configs/{name}.py" in file.read_text().split('"""')[1]
    whole, small = cli.load(str(file)), cli.load(f"{file}:smoke")
    assert cli.names(whole) == cli.names(small)
    assert small.workdir == f"{whole.workdir}_smoke"
    with pytest.raises(ValueError, match="no argument or :smoke"):
        cli.load(f"{file}:fast")


def anywhere(*args, **settings):
    """In the place of `iteration.update`, which it only traces: another policy, wherever that may lead."""
    state, metrics = update.eval_shape(*args, **settings)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, args[1])
    params = jax.tree.map(lambda leaf: leaf + np.float32(0.1), args[1].params)
    return args[1].replace(step=args[1].step + 1, params=params), {
        name: np.ones(one.shape, one.dtype) for name, one in metrics.items()
    }


def test_the_page_of_results(denoiser, monkeypatch, tmp_path):
    monkeypatch.setattr(iteration, "update", anywhere)
    short = config_of(tmp_path, denoiser, rewards="digits", **{"train.steps": 2})
    monkeypatch.setattr(tpm_digits, "get_config", lambda arg="": short)
    monkeypatch.setattr(tpm, "SEEDS", (0,))
    monkeypatch.setattr(tpm, "_BATCH", 5)  # as many as few are, so that both are made by one program
    values = SimpleNamespace(denoiser=str(denoiser), runs=str(tmp_path / "runs"), num=20, tiny=False)
    study = tpm.digits(values, 3)
    found = tpm.results(values, study)
    (out,) = tpm_page.write(tmp_path / "page.md", "python -m ...", [found], 1)
    text = out.read_text()
    names = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    assert names[2] == PLAIN
    assert [name for name in names if name.startswith("TPM, γ")] == ["TPM, γ = 0.5", "TPM, γ = 1", "TPM, γ = 2"]
    assert names[-2:] == [SPATIAL, PAPER]
    assert text.count("Against the best constant deviation") == 2
    assert len(list((tmp_path / "images").glob("results_tpm_digits_*_3.png"))) == 2
    recorded = {kind: policies.recorded(tpm.config_of(values, study, kind, 0).workdir) for kind in study.kinds}
    sizes = {kind: [one["config"]["grpo"][name] for name in ("noises", "draws")] for kind, one in recorded.items()}
    assert sizes == {kind: [4, 1] if kind == PAPER else [2, 2] for kind in study.kinds}
    assert recorded[SPATIAL]["config"]["train"]["steps"] == 2 * recorded[PAPER]["config"]["train"]["steps"] == 4
    # what is finished is read, not made again, but for other settings
    monkeypatch.setattr(tpm.pages, "make", mocked := Mock(side_effect=LookupError))
    again = tpm.results(values, study)
    for one, other in zip(found.rows, again.rows, strict=True):
        np.testing.assert_array_equal(one.scores("digits"), other.scores("digits"))
    changed = study._replace(config=config_of(tmp_path, denoiser, rewards="digits", seed=7))
    assert not mocked.called
    with pytest.raises(LookupError):
        tpm.results(values, changed)


def test_prompts_of_images_are_spread_evenly():
    np.testing.assert_array_equal(numbers(5, 2), [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(numbers(3, 9), [0, 3, 6])
    np.testing.assert_array_equal(numbers(250, 950), np.arange(250) * 950 // 250)


def test_what_a_table_of_results_says():
    """Means over seeds and images, intervals over scenes, and pairs with the same noise."""
    rng = np.random.default_rng(0)
    # what a scene is worth is shared by its images and captions, so that their intervals are wide, and those of pairs
    # are not
    groups = np.array([0, 0, 1, 2])
    worth = np.array([0.0, 0.0, 1.0, 2.0])[np.arange(12) % 4]

    def made(gain):
        scores = {"r": (worth + gain).astype(np.float32), "j": worth.astype(np.float32)}
        return Made(rng.integers(0, 255, (12, 4, 4, 1), np.uint8), scores, None)

    rows = [
        Row(PLAIN, [made(0.0)]),
        Row("best constant: ρ = 0", [made(0.25)]),
        Row("best constant, lifted bound: ρ = 0", [made(5.0)]),
        Row("TPM, γ = 1", [made(4.0), made(4.5)]),
        Row(LIFTED, [made(5.0)]),
    ]
    real = rng.integers(0, 255, (8, 4, 4, 1), np.uint8)
    study = Study("scenes", None, {}, None, None, {"r": None, "j": None}, 12, groups, real)
    line = next(line for line in table(study, rows).splitlines() if line.startswith("| TPM, γ = 1"))
    _, mean, seeds, paired, judged, against, _ = line.strip("| ").split(" | ")
    assert mean == "5.0000 [4.2500, 6.2500]"  # of three scenes, one of which has half of the images
    assert seeds == "4.7500, 5.2500"
    assert paired == "+4.2500 [+4.2500, +4.2500]"
    assert judged == "0.7500 [0.0000, 2.0000]"
    assert against == "+0.0000 [+0.0000, +0.0000]"
    text = verdict(study, rows)
    assert "(γ = 1) lies above that of synchronous sampling; of the 2 seeds' own intervals, 2 lie above that" in text
    assert "does better than it, +4.0000" in text
    assert "cannot be told from it, +0.0000" in text
    assert "(γ = 1) lies below" in verdict(study, [Row(PLAIN, [made(9.0)]), *rows[1:]])
    assert "(γ = 1) overlaps" in verdict(study, [Row(PLAIN, [made(4.0)]), *rows[1:]])


@pytest.fixture(scope="module")
def of_texts(tmp_path_factory):
    """A text-to-image folder, prompts, a policy that two processes trained for them, and what these said."""
    at = tmp_path_factory.mktemp("texts")
    folder, prompts, policy = at / "sd3", at / "prompts.txt", at / "policy"
    tiny_folders.folder("sd3", folder)
    prompts.write_text("a red dog\ntwo cats\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {OLDER_EMITTERS} --xla_force_host_platform_device_count=2",
        "COORDINATOR_ADDRESS": address,
        "NUM_PROCESSES": "2",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.policy_runs", str(policy), str(folder), str(prompts)],
        env=environment,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(folder=folder, policy=policy, said=done.stderr)


def test_two_processes_learn_the_same_of_a_reward_that_each_would_give_otherwise(of_texts):
    # rewards and parameters; beside a progress bar
    first, second = re.findall("learned True (.*)", of_texts.said)
    assert first == second
    assert len(first.split()) > 10


def test_a_text_to_image_folder(of_texts, tmp_path, monkeypatch, capsys):
    """Trained on texts with guidance, then told by the command that makes images from prompts."""
    folder, policy = of_texts.folder, of_texts.policy
    pretrained = load_pretrained(folder, dtype=jnp.float32)
    subject = subjects.of_folder(pretrained, ["a red dog"], subjects.Choice(3, 3.0, None, 32))
    assert subject.behind == background(pretrained.scheduler, 3, 64)
    entry = evaluate.Entry("", lambda base, known: ConstantDeviation(base, np.float32(0.5)), True)
    rewards = rewarding.parse("tests.test_train_tpm:bright")
    found, _ = evaluate.evaluate(subject, rewards, [entry], None, count=2, seeds=[0], batch=2)
    call = mains.command(monkeypatch, capsys)
    asked = (folder, "--prompt=a red dog", "--num=2", "--steps=3", "--guidance=3", "--height=32", "--width=32")
    made = []
    for gamma in (0, 2):  # without deviation, they are those that are made without a policy
        out = tmp_path / f"gamma_{gamma}"
        code, _, err = call("text2image", *asked, f"--tpm={policy}", f"--gamma={gamma}", f"--out={out}")
        assert code == 0, err
        with Image.open(out / "images" / "0001.png") as image:
            made.append(np.asarray(image).astype(int))
            said = json.loads(image.text["asyncpatch_jax"])
    assert np.abs(made[1] - made[0]).max() > 0
    assert (said["tpm"], said["gamma"]) == (str(policy), 2.0)
    assert found[""].of["tests.test_train_tpm:bright"].shape == (2,)
    # the pipeline and what policies are trained on make the same images of the same keys
    keys = jax.vmap(jax.random.key)(np.arange(2, dtype=np.uint32))
    wanted = subject.ask(np.zeros(2, np.int32))
    schedule = entry.follow(subject.base, wanted.known)
    latents, _ = subjects.drawn(subject.net, subject.params, schedule, wanted, keys, subject.shape, deviation)
    assert np.abs(subject.pictures(latents)[1].astype(int) - made[0]).max() <= 1
    # what the network is told does not depend on what was asked before, bit for bit
    both = [subjects.of_folder(pretrained, ["a red dog", "two cats"], subjects.Choice(3, 3.0, None, 32)) for _ in "ab"]
    asked = [both[0].ask(np.array([0, 1])), both[1].ask(np.array([1, 1]))]
    np.testing.assert_array_equal(*(one.cond.tokens[1] for one in asked))
    # real images are read as those that are made: in pixels, not as latents
    real = tmp_path / "real"
    real.mkdir()
    for i in range(3):
        Image.fromarray(np.full((40, 40, 3), 80 * i, np.uint8)).save(real / f"{i}.png")
    assert evaluate.real_images(str(real), str(folder), subject).shape == (3, 32, 32, 3)
