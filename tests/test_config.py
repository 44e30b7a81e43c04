"""Every configuration builds and its :smoke variant trains; a slip on the command line gets one helpful line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from launch import train
from launch.shared import autoencoders, build, cli, datasets, plans, programs, texts
from launch.shared.meanings import meanings
from tests import mains, tiny_autoencoder

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(
    path.stem
    for path in (ROOT / "configs").glob("[!_]*.py")
    if path.stem != "base" and not path.stem.startswith(("tpm", "autoencoder"))
)


def load(name, arg=""):
    return cli.load(f"{ROOT}/configs/{name}.py" + (f":{arg}" if arg else ""))


@pytest.fixture
def images(tmp_path):
    """Two classes of odd sizes and modes."""
    rng = np.random.default_rng(0)
    for i, mode in enumerate(["RGB", "L", "RGBA"] * 4):
        folder = tmp_path / "images" / ("a", "b")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 256, (70 + i, 66, {"RGB": 3, "L": 1, "RGBA": 4}[mode]), np.uint8)
        Image.fromarray(noise.squeeze(), mode).save(folder / f"{i}.png")
    return tmp_path / "images"


def test_the_experiments_are_those_that_are_documented():
    assert {"digits", "photos", "folder", "imagenet64_60m", "imagenet64_600m"} <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_opens_with_its_command_and_everything_builds(name):
    text = (ROOT / "configs" / f"{name}.py").read_text()
    assert f"    python -m launch.train --config=configs/{name}.py" in text.split('"""')[1]
    config = load(name)
    network = build.model(config, 10)
    assert build.field_grid(config)[0] % network.multiple == 0
    process = build.process(config)
    build.solver(config, process)
    assert len(build.grid(config, config.sample.steps, process)) == config.sample.steps + 1
    assert build.field_grid(config) == (config.data.size // (config.data.factor or 1),) * 2
    build.loss(config, network)
    build.optimizer(config)
    build.kind(config)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return tiny_autoencoder.folder(tmp_path_factory.mktemp("vae") / "vae", channels=3)


def online(config, vae):
    """In the latents of a tiny autoencoder, if in any."""
    if config.data.latents:
        config.data.update({"autoencoder": str(vae), "latents": "online", "factor": None, "latent_channels": None})
    return config


@pytest.fixture
def unoptimized():
    """To see that it runs at all, code that is compiled three times faster will do."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def smokes():
    """The configurations whose :smoke variants differ by more than their folder, each once."""
    found = {}
    for name in CONFIGS:
        config = load(name, "smoke")
        config.workdir = ""
        found.setdefault(config.to_json(sort_keys=True), name)
    return list(found.values())


# one of each network, through all that training does; below, the step of every one is traced as it stands
@pytest.mark.usefixtures("unoptimized")
@pytest.mark.parametrize("name", ["digits", "imagenet256_dit_xl2"])
def test_smoke_trains(name, vae, tmp_path, monkeypatch):
    config = online(load(name, "smoke"), vae)
    monkeypatch.setattr(autoencoders, "_MEASURED", 32)
    config.workdir = str(tmp_path / "run")
    config.train.update({"steps": 2, "checkpoint_every": 2, "sample_every": 0})
    mains.begin_with_drawn_parameters(monkeypatch)
    if name == "digits":  # with the fields that all share
        config.model.update({"multipliers": (1,), "attention": (0,)})
    else:
        config.times.name = "synchronous"
    train.run(config)
    assert build.load_run(config.workdir).step == 2


@pytest.mark.parametrize("name", smokes())
def test_the_step_of_a_smoke_run_fits_its_network_and_its_images(name, images, vae, tmp_path, monkeypatch):
    """A program that can be traced for the batches that come, and that gives back a state like its own, can train."""
    monkeypatch.setattr(autoencoders, "_MEASURED", 32)
    config = online(load(name, "smoke"), vae)
    if name == "folder":
        config.data.path = str(images)
    if name == "captions":
        from tests.test_text_encoder import bert

        config.text.update({"encoder": str(bert(tmp_path)[1]), "length": 8})
    mesh = build.mesh(config)
    encoder, coder = texts.chosen(config, mesh), autoencoders.chosen(config, mesh)
    source = texts.with_texts(config, datasets.dataset(config))
    data, coder = autoencoders.measured(config, source, coder, None)
    network = build.untrained(config, data)._replace(autoencoder=coder, encoder=encoder)
    program = programs.training(config, network, mesh)
    train.check(config, program)
    state, asked, _ = program.args
    made, metrics = jax.eval_shape(program.fn, *program.args)
    typed = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    assert typed(made) == typed(state)
    assert metrics["loss"].shape == ()
    batch = next(train.stream(config, source, mesh, encoder))
    assert -1 <= batch["image"].min() < batch["image"].max() <= 1
    assert typed(train.seen(network, batch)) == typed(asked)


def test_a_smoke_run_has_a_folder_of_its_own():
    for name in CONFIGS:
        assert load(name, "smoke").workdir.endswith("_smoke")
    folders = [load(name, arg).workdir for name in CONFIGS for arg in ("", "smoke")]
    assert len(set(folders)) == len(folders)


def test_an_argument_that_no_config_takes():
    for name in CONFIGS:
        with pytest.raises(ValueError, match="smoke after the configuration's name, got :smok"):
            load(name, "smok")


def test_budgets_of_imagenet_are_those_that_the_page_on_pods_prices():
    """Chip-hours from the compiler's numbers on the other page, for what the configurations run."""
    number = lambda cell: float(cell.strip().replace(",", "").removeprefix("about "))  # noqa: E731
    page = (ROOT / "docs" / "performance.md").read_text().splitlines()
    rows = [line.split("|")[1:-1] for line in page if "| training step | v6e:8x8 |" in line]
    a_million = {row[0].strip().split()[1].lower(): number(row[12]) for row in rows}
    priced = dict(re.findall(r"^\| `imagenet64_(.*)` \|(.*)\|$", (ROOT / "docs" / "pods.md").read_text(), re.MULTILINE))
    assert set(priced) == {f"{size}.py{arg}" for size in ("60m", "600m") for arg in ("", ":long")}
    for name, line in priced.items():
        size, arg = name.split(".py")
        config = load(f"imagenet64_{size}", arg.removeprefix(":"))
        steps, hours, paper, dollars, wall = line.split("|")
        assert number(steps) == config.train.steps
        assert config.train.batch == 2048
        found = config.train.steps * 2048 / 1e6 * a_million[size]
        np.testing.assert_allclose([number(hours), number(wall)], [found, found / 64], rtol=0.01, atol=0.05)
        np.testing.assert_allclose(number(dollars), 2.7 * found, rtol=0.01, atol=0.5)
        if paper.strip():  # what the paper spent is enough, if the chips do not do much less than they can
            assert 0.8 * number(paper) < found < number(paper)
        assert not arg or config.workdir.endswith("_long")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("train.setps", "train.steps"),
        ("steps", "sample.steps or --config.train.steps"),
        ("optim.lerning_rate", "optim.learning_rate"),
        ("model.batch", "train.batch"),
        ("modle.base", "model.base"),
        ("worrkdir", "workdir"),
        ("optim.lr", "optim.learning_rate"),
        ("lr", "optim.learning_rate"),
        ("train.batch_size", "train.batch"),
        ("data.image_size", "data.size"),
        ("optim.beta1", "optim.b1"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_nearest(wrong, right):
    with pytest.raises(ValueError, match=rf"unknown setting --config.{wrong}: did you mean --config.{right}\?"):
        cli.check_name(wrong, cli.names(load("digits")))


@pytest.mark.parametrize("name", ["zzzzzz", "optim.weight_decay"])
def test_what_is_like_nothing_points_to_the_help(name):
    with pytest.raises(ValueError, match="see --help"):
        cli.check_name(name, cli.names(load("digits")))


def test_a_config_file_that_is_missing_or_broken(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"got 'configs/digit.py'; there are .* did you mean configs/digits.py"):
        cli.resolve("configs/digit.py")
    for elsewhere in ("mytypo/folder.py", "folder.py", "/configs/folder.py", "other/configs/folder.py"):
        with pytest.raises(FileNotFoundError, match=rf"got '{elsewhere}'; .* did you mean configs/folder.py"):
            cli.resolve(elsewhere)
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_that_name\n")
    with pytest.raises(ValueError, match=r"broken.py does not run: ModuleNotFoundError"):
        cli.load(str(broken))
    broken.write_text("x = 1\n")
    with pytest.raises(ValueError, match="expected a function get_config"):
        cli.load(str(broken))


def test_a_configuration_of_another_kind_is_refused_with_the_command_that_takes_it():
    for given, example, other in (("tpm_digits", "digits", "train_tpm"), ("digits", "tpm_digits", "train")):
        file = f"configs/{given}.py"
        with pytest.raises(
            ValueError, match=f"got {file}, which lacks .*; it is one for python -m launch.{other} --con"
        ):
            cli.check_kind(file, cli.names(load(given)), f"configs/{example}.py")
    for name in CONFIGS:
        cli.check_kind(name, cli.names(load(name, "smoke")), "configs/digits.py")
    with pytest.raises(ValueError, match=r"which lacks data.augment, .* \.\.\.$"):
        cli.check_kind("mine.py", ["seed"], "configs/digits.py")


NUMBERS = [k for k, v in cli._values(load("digits")).items() if isinstance(v, float)]


def test_a_tuple_is_of_finite_numbers(monkeypatch, capsys):
    call = mains.command(monkeypatch, capsys)
    for value, message in (
        ("(1e999,1.0)", "expected a finite number"),
        ("(a,b)", "numbers such as (1, 2)"),
        ("('a',1)", "numbers such as (1, 2)"),
    ):
        code, _, err = call("train", f"--config.times.spread={value}")
        assert (code, err.count("\n")) == (1, 1)
        assert message in err
        assert "--config.times.spread" in err


@pytest.mark.parametrize(
    ("command", "flag", "said"),
    [
        ("sample", "--seed=1e30", "a whole number as --seed, got '1e30'"),
        ("sample", "--seed=-1", "0 <= --seed <= 18446744073709551615 (2^64 - 1), got -1"),
        ("sample", "--steps=1e9", "a whole number as --steps, got '1e9'"),
        ("sample", "--steps=", "a whole number as --steps, got ''"),
        ("sample", f"--steps={'9' * 5000}", f"a whole number as --steps, got '{'9' * 60}...'"),
        ("sample", "--num=0", "a whole number >= 1 as --num, got '0'"),
        ("sample", "--num", "--num=VALUE, got nothing after --num"),
        ("sample", "--gamma=-1", "a number >= 0 as --gamma, got '-1'"),
        ("sample", "--eta=little", "a number as --eta, got 'little'"),
        ("sample", "--schedule=none", "one of sync, "),
        ("sample", "--overwrite=perhaps", "true or false as --overwrite, got 'perhaps'"),
        ("sample", "--nooverwrite=1", "--nooverwrite without a value, got '1'"),
        ("text2image", "--strength=2", "a number from 0 to 1 as --strength, got '2'"),
        ("train", "--config.train.steps=1e9", "a whole number as --config.train.steps, got '1e9'"),
        ("train", "--config.optim.learning_rate=small", "a number as --config.optim.learning_rate, got 'small'"),
        (
            "train",
            "--config.model.multipliers=(1,2",
            "numbers such as (1, 2) as --config.model.multipliers, got '(1,2'",
        ),
    ],
)
def test_what_a_flag_cannot_be_is_said_as_all_else_is(monkeypatch, capsys, command, flag, said):
    code, _, err = mains.command(monkeypatch, capsys)(command, flag)
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith(f"error: expected {said}")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_number_is_nan_or_infinite(monkeypatch, capsys, value):
    """Of settings, also those that are placeholders, and of flags of every type of command."""
    call = mains.command(monkeypatch, capsys)
    assert len(NUMBERS) > 10
    for name in (*NUMBERS, "model.dropout", "times.loc"):
        code, _, err = call("train", f"--config.{name}={value}")
        assert (code, err) == (1, f"error: expected a finite number as --config.{name}, got {value}\n")
    for command, flag in (
        ("sample", "guidance"),
        ("inpaint", "feather"),
        ("text2image", "omega"),
        ("compile", "timeout"),
    ):
        code, _, err = call(command, f"--{flag}={value}")
        assert code == 1
        assert f"--{flag}" in err


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("folder", {"data.split": "test"}, "has no other, got 'test'"),
        ("photos", {"data.channels": 4}, r"1 \(grey\) or 3 \(RGB\), got 4"),
        ("digits", {"data.channels": 3}, "= 1 for digits, got 3"),
        ("digits", {"model.multipliers": (1, 0)}, "multipliers of at least 1"),
        (
            "digits",
            {"model.multipliers": ()},
            r"multipliers of one level or more, such as \(1, 2\), got \(\)$",
        ),
        ("digits", {"model.attention": (2,)}, r"attention on levels out of 0 \.\.\. 1, got \(2,\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, changed, message):
    config = load(name)
    config.data.path = "somewhere"
    config.update_from_flattened_dict(changed)
    with pytest.raises(ValueError, match=message):
        build.untrained(config, datasets.dataset(config))


def test_cells_that_are_judged_are_made_of_those_of_the_training_fields():
    config = load("digits")
    data = datasets.dataset(config, "test")
    assert plans.cells(build.untrained(config, data)) == (8, 8)
    config.times.grid = (4, 2)
    assert plans.cells(build.untrained(config, data)) == (4, 2)


def launch(*arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "launch.train", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/digits.py", "--config.train.setps=3"], "did you mean --config.train.steps?"),
        (["--config.train.steps=many"], "expected a whole number as --config.train.steps, got 'many'"),
        (["--confg=configs/digits.py"], "unknown flag --confg, did you mean --config?"),
        (["--config=configs/none.py"], "expected a configuration file, got 'configs/none.py'"),
        (["--config.times.grid=(3,3)"], "tile 8x8 pixels, got (3, 3)"),
        (["configs/digits.py"], "expected flags only"),
    ],
)
def test_a_slip_on_the_command_line_is_one_line_and_code_1(monkeypatch, capsys, tmp_path, arguments, message):
    code, out, err = mains.command(monkeypatch, capsys)("train", *arguments, f"--config.workdir={tmp_path / 'run'}")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_all_share_the_fields_that_one_trains_with():
    assert len({load(name, "smoke").times.to_json(sort_keys=True) for name in CONFIGS}) == 1


def test_debug_shows_where_in_a_program_of_its_own(tmp_path):
    code, _, err = launch("--config.times.grid=(3,3)", "--debug", f"--config.workdir={tmp_path / 'run'}")
    assert code == 1
    assert "Traceback" in err


def test_help_shows_the_configuration_that_was_asked_for_from_any_folder(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, _ = mains.command(monkeypatch, capsys)("train", "--config=configs/photos.py:smoke", "--help")
    assert code == 0
    assert "python -m launch.train --config=configs/digits.py" in out
    assert "data.name = 'photos'" in out
    assert "train.steps = 8" in out


@pytest.mark.parametrize("name", ["base", "tpm_base", "autoencoder_base"])
def test_help_says_of_every_setting_what_it_means(name):
    module = cli._module(str(ROOT / "configs" / f"{name}.py"))
    found = meanings(module)
    assert sorted(found) == sorted(cli.names(module.settings()))
    assert all(found.values())


def test_a_remark_is_that_of_its_own_setting(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def settings():\n"
        "    config = ConfigDict()\n"
        "    config.a = a = ConfigDict()  # a section\n"
        "    a.x = 1  # the first\n"
        "    a.y = 2\n"
        "    config.z = 3  # the last\n"
        "    return config\n"
        "get_config = settings\n"
    )
    assert meanings(cli._module(str(file))) == {"a.x": "the first", "z": "the last"}


@pytest.mark.parametrize(
    ("command", "listed"), [("sample", {"workdir", "sample"}), ("elbo", {"workdir"}), ("times", set())]
)
def test_help_lists_the_settings_that_a_command_looks_at(monkeypatch, capsys, command, listed):
    call = mains.command(monkeypatch, capsys)
    code, out, _ = call(command, "--help")
    assert code == 0
    assert {
        line.strip().split(".")[0].split(" ")[0] for line in out.partition("changed by")[2].splitlines()[1:]
    } == listed
    code, _, err = call(command, "--config.train.steps=3")
    free = ["--config.workdir", "--config.sample.*"][: len(listed)]
    wanted = (
        f"expected {' and '.join(free)} alone to change, got --config.train.steps"
        if listed
        else "unknown flag --config"
    )
    assert (code, wanted in err) == (1, True)
