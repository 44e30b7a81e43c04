"""What is said of compiled programs against what is known of them; and every way in which compiling can end."""

import json
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from asyncpatch_jax import sharding
from configs import digits, imagenet64_60m
from launch.compile import classes
from launch.compiler import aot, cost, hlo, report, topology
from launch.compiler.flops import model_flops
from launch.shared import records
from tests import mains

os.environ.update(aot._ENVIRONMENT)
EFFORT = {"xla_optimization_level": "EFFORT_O0"}


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(devices=topology.parse("v6e:2x2").devices())


def compile_for(mesh, fn, *shapes, dtype=jnp.bfloat16):
    """Compile `fn` for arrays of (shape, partition)."""
    args = [jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec))) for shape, *spec in shapes]
    return jax.jit(fn).lower(*args).compile(compiler_options=EFFORT)


def counted(compiled, chips=4):
    return cost.count(hlo.parse(compiled.as_text()), chips)


def layers(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]


def test_a_loop_counts_as_often_as_it_runs(mesh):
    shapes = ((1024, 512), "data"), ((10, 512, 512),)
    products = 2 * 10 * (1024 / 4) * 512 * 512
    found = counted(compile_for(mesh, layers, *shapes))
    assert found.loops == [10]
    assert found.total.flops == pytest.approx(products, rel=0.01)
    assert found.once.flops == pytest.approx(products / 10, rel=0.01)

    def unrolled(x, w):
        for one in w:
            x = jnp.tanh(x @ one)
        return x

    flat = counted(compile_for(mesh, unrolled, *shapes))
    assert flat.loops == []
    assert flat.total == flat.once
    assert found.total.flops == pytest.approx(flat.total.flops, rel=0.01)
    # all weights are read either way; in the loop activations cannot stay on the chip from one turn to the next
    assert flat.total.bytes >= 10 * 512 * 512 * 2
    assert 10 * (512 * 512 + 2 * 256 * 512) * 2 <= found.total.bytes <= 3 * flat.total.bytes


def test_loops_in_loops_and_backwards(mesh):
    def loss(x, w):
        def again(x, _):
            return jax.checkpoint(layers)(x, w), None

        return jnp.mean(jax.lax.scan(again, x, None, length=3)[0].astype(jnp.float32) ** 2)

    found = counted(compile_for(mesh, jax.grad(loss, 1), ((512, 256), "data"), ((5, 256, 256),)))
    # 15 layers: forwards, forwards again, and two products for each backwards
    assert found.total.flops == pytest.approx(4 * 15 * 2 * 128 * 256 * 256, rel=0.05)
    assert None not in found.loops


def test_without_loops_the_count_is_the_compilers(mesh):
    def net(x, w, kernel):
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        q = jax.nn.silu(x.reshape(x.shape[0], -1, x.shape[-1]) @ w)
        q = q.reshape(*q.shape[:2], 4, -1)
        return jax.nn.dot_product_attention(q, q, q).astype(jnp.float32).mean()

    shapes = ((8, 16, 16, 128), "data"), ((128, 128),), ((3, 3, 128, 128),)
    compiled = compile_for(mesh, jax.grad(net, (1, 2)), *shapes)
    found, xla = counted(compiled), compiled.cost_analysis()
    assert found.total == found.once
    assert found.total.flops == pytest.approx(xla["flops"], rel=0.01)
    assert found.total.bytes == pytest.approx(xla["bytes accessed"], rel=0.02)


def test_a_loop_whose_length_nobody_knows_counts_once_and_is_said(mesh):
    def fn(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x.astype(jnp.float32)) < 1e6, lambda x: x @ x, x)

    found = counted(compile_for(mesh, fn, ((256, 256),)))
    assert found.loops == [None]
    assert found.total == found.once


def test_collectives_of_a_known_program(mesh):
    def fn(x):
        def turn(total, one):
            return total + jax.lax.psum(one, "data"), None

        return jax.lax.scan(turn, jnp.zeros(x.shape[1:]), x)[0]

    shared = jax.shard_map(fn, mesh=mesh, in_specs=P(None, "data"), out_specs=P(), check_vma=False)
    found = counted(compile_for(mesh, shared, ((7, 4 * 256, 128), None, "data"), dtype=jnp.float32))
    size = 256 * 128 * 4
    assert set(found.collectives) == {"all-reduce"}
    assert found.collectives["all-reduce"] == (7, 7 * size, 7 * size * 2 * 3 / 4)

    gathered = jax.jit(lambda x: x + 1, out_shardings=sharding.replicated(mesh))
    x = jax.ShapeDtypeStruct((4 * 256, 128), jnp.float32, sharding=sharding.batch(mesh))
    found = counted(gathered.lower(x).compile(compiler_options=EFFORT))
    assert found.collectives == {"all-gather": (1, size, 3 * size)}


def test_slices_talk_over_the_network():
    mesh = sharding.make_mesh(devices=topology.parse("v6e:2x2", slices=2).devices())
    assert mesh.size == 8
    gathered = jax.jit(lambda x: x.sum(0), out_shardings=sharding.replicated(mesh))
    x = jax.ShapeDtypeStruct((8, 1024, 128), jnp.float32, sharding=sharding.batch(mesh))
    found = counted(gathered.lower(x).compile(compiler_options=EFFORT), 8)
    # the sum of four chips, each of which sends its quarter at least
    assert found.collectives[cost.BETWEEN_SLICES].sent >= 1024 * 128 * 4 / 4


@pytest.mark.parametrize(
    ("groups", "chips"),
    [
        ("{{0,1},{2,3}}", 2),
        ("[4,16]<=[64]", 16),
        ("mesh['data'=4,'fsdp'=2] {'fsdp'}", 2),
        ("mesh['data'=4,'fsdp'=2] {'data','fsdp'}", 8),
        ("mesh['data'=8] {'data':(2)4}", 4),
        ("{}", 64),
    ],
)
def test_chips_of_a_collective(groups, chips):
    one = hlo.Instruction("a", "all-reduce", (), (), "", f", channel_id=1, replica_groups={groups}, use_global=true")
    assert cost._group(one, 64) == chips


def test_padding_of_arrays_in_memory():
    (array,) = hlo.arrays("bf16[30,3]{0,1:T(8,128)(2,1)}")
    assert (array.nbytes, array.padded) == (180, 8 * 128 * 2)
    (array,) = hlo.arrays("f32[2,9,130]{2,1,0:T(8,128)S(1)}")
    assert array.padded == 2 * 16 * 256 * 4
    assert array.on_chip
    assert [a.padded for a in hlo.arrays("(s32[]{:T(128)}, pred[5]{0}, token[], s4[8]{0})")] == [512, 5, 0, 4]
    with pytest.raises(ValueError, match="expected the text of a compiled program"):
        hlo.parse("nothing")


def test_model_flops_of_known_functions():
    f32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)

    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert model_flops(conv, f32((3, 8, 8, 5)), f32((3, 3, 5, 7))) == 2 * 3 * 4 * 4 * 7 * 3 * 3 * 5
    assert model_flops(layers, f32((6, 4)), f32((10, 4, 4))) == 2 * 10 * 6 * 4 * 4
    grad = jax.jit(jax.grad(lambda w, x: layers(x, w).sum()))
    # the gradient of the first layer's input is not asked for, but a loop over layers makes it
    assert model_flops(grad, f32((10, 4, 4)), f32((6, 4))) == 3 * 2 * 10 * 6 * 4 * 4
    both = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ x, x)  # noqa: E731
    assert model_flops(both, f32((4, 4))) == 2 * 4**3


def tiny(**more):
    """A request for a network that compiles in seconds, and a place to change it."""
    config = digits.get_config()
    with config.ignore_type():
        config.model = {"name": "dit", "preset": "", "dtype": "float32", "log_variance": False, "remat": "none"}
        config.model.update(patch=4, width=128, depth=2, heads=2, scan=True)
    config.times.name = "synchronous"  # to draw other fields is compiled for as long as the network
    config.train.batch = 16
    config.sample.update({"steps": 3, "guidance": 1.0})
    asked = {"config": records.plain(config), "topology": "v6e:2x2", "slices": 1, "classes": 10, "program": "train"}
    return {**asked, "effort": "EFFORT_O0", **more}


def test_the_training_step(mesh):
    asked = tiny()
    answer = aot.answer(asked)
    where = topology.parse("v6e:2x2")
    assert answer["chips"] == 4
    assert answer["images"] == 16
    # parameters, their average and two moments in float32, a quarter of the batch, and counters
    weights = 4 * 4 * answer["parameters"]
    assert weights <= answer["argument_bytes"] <= weights + 4 * (8 * 8 + 1) * 4 + 100
    assert answer["memory"]["arguments"] >= answer["argument_bytes"]
    assert answer["memory"]["aliased"] >= weights
    assert answer["loops"] == [2, 2]
    # gradients in float32; those of what embeds the knots, which all images share, are of sums already
    assert answer["collectives"]["all-reduce"]["operands"] >= 0.9 * 4 * answer["parameters"]
    found = report.bounds(answer, where)
    assert found.least == max(found.seconds.values())
    assert found.images_per_second == pytest.approx(16 / found.least)
    assert found.chip_hours(3600, 4) == pytest.approx(4 * found.least * 3600 / 16 / 3600)
    assert 0 < found.utilisation < 1
    text = report.text(answer, where, asked["config"], "train")
    assert "fits" in text
    assert f"bound by {found.limit}" in text
    assert f"all {asked['config']['train']['steps']:,} steps: at least" in text


def test_the_sampler_costs_its_steps_and_the_field_its_times():
    few = aot.answer(tiny(program="sample", batch=8))
    many = tiny(program="sample", batch=8)
    many["config"]["sample"]["steps"] = 30
    many = aot.answer(many)
    assert sorted(few["loops"]) == [2, 3]
    assert sorted(many["loops"]) == [2, 30]
    assert many["model_flops"] == 10 * few["model_flops"]
    where = topology.parse("v6e:2x2")
    a, b = report.bounds(few, where), report.bounds(many, where)
    assert b.flops == pytest.approx(10 * a.flops, rel=0.1)
    assert b.bytes == pytest.approx(10 * a.bytes, rel=0.2)
    once = aot.answer(tiny(program="forward", batch=8, times=1))
    assert few["model_flops"] == 3 * once["model_flops"]


def test_what_does_not_fit_is_said_by_the_compiler_and_answered_with_advice():
    asked = tiny(topology="v5e:1x1")
    asked["config"]["train"]["batch"] = 2**19
    answer = aot.answer(asked)
    assert "memory" not in answer
    assert answer["needs"] > answer["has"]
    assert 15 * topology.GIB < answer["has"] < 16 * topology.GIB
    where = topology.parse("v5e:1x1")
    assert not report.fits(answer, where)
    lines = report.text(answer, where, asked["config"], "train").splitlines()
    changes = [line.split("--config.")[1].split("=")[0] for line in lines if line.startswith("  --config.")]
    assert changes == ["model.remat", "optim.accumulate"]
    assert "a smaller --config.train.batch (now 524288)" in lines[-2]
    parts = int(next(line for line in lines if "accumulate" in line).split("accumulate=")[1].split(":")[0])
    assert answer["needs"] / parts < answer["has"]


def test_weights_that_fill_a_chip_are_to_be_spread():
    gib = topology.GIB
    asked = tiny()["config"]
    answer = {"chips": 4, "images": 16, "argument_bytes": 30 * gib, "memory": {"peak": 40 * gib}}
    lines = report.advice(answer, topology.parse("v6e:2x2"), asked, "train")
    assert "30.00 GiB are arguments, 10.00 GiB temporaries" in lines[0]
    assert "--config.mesh.fsdp=4: each chip keeps 1/4 of the 30.00 GiB" in lines[1]
    assert "--batch" in "".join(report.advice(answer, topology.parse("v6e:2x2"), asked, "sample"))


@pytest.fixture
def command(monkeypatch, capfd):
    """`command("--program=train", ...)` -> (exit code, stdout, stderr) of the main in this process."""
    return partial(mains.command(monkeypatch, capfd), "compile")


def _here(request, timeout, module="launch.compiler.aot"):
    """`aot.ahead`, but in this process, which has imported everything."""
    return aot.answer(request)


def _served(command, **_):
    """`subprocess.run` of a module that answers, but in this process: request and answer are files all the same."""
    aot.serve(aot.answer, command[-3:])
    return subprocess.CompletedProcess(command, 0)


SMALL = ("--config=configs/imagenet256_dit_xl2.py:smoke", "--topology=v6e:2x2", "--program=sample", "--classes=5")
SMALL += ("--batch=8", "--steps=2", "--config.model.depth=1")


def test_the_command_compares_two_configurations(command, monkeypatch, tmp_path):
    """One is compiled in a process of its own, as all are when nothing is exchanged."""
    ahead = aot.ahead

    def once(*request):
        monkeypatch.setattr(aot, "ahead", _here)
        return ahead(*request)

    monkeypatch.setattr(aot, "ahead", once)
    path = tmp_path / "o.json"
    code, out, err = command(*SMALL, "--against=sample.steps=6 model.log_variance=False", f"--out={path}")
    assert code == 0, err
    assert "sampler of 2 steps" in out
    assert "fits" in out
    answers = json.loads(path.read_text())
    assert set(answers) == {"sample", "sample against"}
    assert answers["sample against"]["parameters"] < answers["sample"]["parameters"]
    flops = [answers[name]["bounds"]["flops"] for name in ("sample", "sample against")]
    assert f"FLOPs                {flops[0] / flops[1]:.3f}" in out
    code, _, err = command(*SMALL, f"--out={path}")
    assert code == 1
    assert "nothing exists yet" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v6e:3x3"], "expected a slice that libtpu knows, got v6e:3x3"),
        (["--topology=v9:2x2"], "expected a topology such as v6e:8x8"),
        (["--topology=v6e"], "expected a topology such as v6e:8x8"),
        (["--config.mesh.fsdp=3"], "data x fsdp x tensor = 4"),
        (["--against=sample.stepz=3"], "did you mean --config.sample.steps?"),
        (["--against=train.batch=many"], "--against=train.batch=many"),
        (["--against=configs/none.py"], "expected a configuration file"),
        (["--config.train.batch=6", "--program=train"], "to be a multiple of 4"),
    ],
)
def test_mistakes_are_one_line_and_code_1(command, monkeypatch, arguments, message):
    if arguments == ["--topology=v6e:3x3"]:  # a mistake that the other side reports
        monkeypatch.setattr(aot.subprocess, "run", _served)
    else:
        monkeypatch.setattr(aot, "ahead", _here)
    code, _, err = command(*SMALL, *arguments)
    assert code == 1
    assert message in err
    assert "Traceback" not in err


def test_a_compiler_that_dies_is_reported(command, monkeypatch):
    def child(source):
        monkeypatch.setattr(aot, "_CHILD", [sys.executable, "-c", source])

    child("import os, sys; sys.stderr.write('Check failed: shapes\\n'); sys.stderr.flush(); os.abort()")
    code, out, _ = command(*SMALL)
    assert code == 3
    assert "the compiler failed: killed by SIGABRT (exit code -6); its last words:\nCheck failed: shapes" in out
    child("raise RuntimeError('no such thing')")
    code, out, _ = command(*SMALL)
    assert code == 3
    assert "exit code 1" in out
    assert "no such thing" in out
    child("import time; time.sleep(60)")
    code, out, _ = command(*SMALL, "--timeout=0.5")
    assert code == 3
    assert "not done after 0.5 s" in out


def test_exit_code_2_when_it_does_not_fit(command, monkeypatch):
    small = topology.CHIPS["v6e"]._replace(hbm=1e5)
    monkeypatch.setitem(topology.CHIPS, "v6e", small)
    monkeypatch.setattr(aot, "ahead", _here)
    code, out, _ = command(*SMALL)
    assert code == 2
    assert "does not fit" in out
    assert "--config.mesh.fsdp=4" in out
    assert "a smaller --batch (now 8)" in out


def test_without_libtpu_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(ValueError, match="pip install libtpu"):
        topology.check_compiler()


def test_classes_without_data():
    config = imagenet64_60m.get_config()
    assert classes(config) == 1000
    config.data.dataset = "nothing/at_all"
    with pytest.raises(ValueError, match="expected --classes=N"):
        classes(config)
    config.data.name = "folder"
    with pytest.raises(ValueError, match="or --classes=N"):
        classes(config)
    assert classes(digits.get_config()) == 10


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_every_chip_is_one_device(name):
    where = topology.parse(name)
    assert len(where.devices()) == where.chips == 4
    assert np.isfinite(where.chip[1:]).all()
