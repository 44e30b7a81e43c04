"""The benchmark counts what really happens, and writes what it prints."""

import itertools
import json
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncpatch_jax import timefield
from asyncpatch_jax.models import UNet
from asyncpatch_jax.sampling import repaint_cost
from launch.bench import cases, text, timing
from launch.shared import pictures
from launch.shared.generate import Inputs, image_keys
from launch.shared.programs import Program
from tests.test_launch import _copy, command, run  # noqa: F401, a fixture


def test_model_calls_are_those_of_each_schedule():
    tiny = _copy(run())
    tiny.config.sample.steps = 4
    inputs = Inputs(image_keys(0, 2), jnp.zeros((2, *tiny.shape)), jnp.zeros(2, jnp.int32))
    found = cases.schedules(tiny)
    assert next(iter(found)) == "sync"
    counted = {name: cases.model_calls(case, pictures.net(tiny), inputs) for name, case in found.items()}
    assert counted == {
        "sync": 4,
        "table, a time per pixel": 4,
        "autoregressive": 16 * 1,
        "uncertainty": 4,
        "dual_loop": 4 * 4,
        "look_ahead": 4 * 2,
        "inpaint": 4,
        "inpaint, input guidance": 4 * 2,
        "graded": 4,
        "concave, drawn mask": 4,
        "concave, a time per cell": 4,
        "TPM": 4,
        "TPM, a deviation per patch": 4,
        "sync, classifier-free": 4 * 2,
        "repaint, jumps of 3": repaint_cost(4, 3)[0],
    }


def test_times_are_taken_in_turn_and_compared_within_a_turn(monkeypatch):
    order, clock = [], [0.0]
    slow = {"a": 1.0, "b": 3.0}

    def call(name):
        order.append(name)
        # the machine slows down from turn to turn
        clock[0] += slow[name] * len(order)
        return jnp.zeros(())

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    # of which this process has half
    monkeypatch.setattr(timing.time, "process_time", lambda: clock[0] / 2)
    taken = timing.interleaved({name: lambda name=name: call(name) for name in slow}, 2)
    assert order == ["a", "b"] * 3
    assert taken == {"a": ([3.0, 5.0], [1.5, 2.5]), "b": ([12.0, 18.0], [6.0, 9.0])}
    assert timing.ratio(taken["b"].seconds, taken["a"].seconds) == {"median": 3.8, "low": 3.6, "high": 4.0}


def test_memory_is_what_the_compiler_plans_and_flops_are_those_of_the_program():
    x = jnp.zeros((256, 1024))
    done = timing.compiled(jax.jit(lambda x: x + 1), x)
    assert done.seconds > 0
    assert done.mib == 2.0  # the argument and the result, 1 MiB each
    assert done.flops == 0
    twice = jax.jit(lambda x: x @ (x.T @ x))
    assert timing.compiled(twice, x).flops == 2 * (2 * 256 * 1024 * 1024)
    assert timing.compiled(twice, x, counted=lambda x: x @ x.T).flops == 2 * 256 * 1024 * 256


def test_utilisation_is_a_share_of_the_chips_peak(monkeypatch):
    assert timing.peak_flops("TPU v6 lite") == 918e12
    assert timing.peak_flops("TPU v5") == 459e12
    assert timing.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert timing.peak_flops("NVIDIA A100-SXM4-40GB") == 312e12
    assert timing.peak_flops("cpu") is None
    done = timing.Compiled(None, 1.0, 1.0, 91.8e12)
    monkeypatch.setattr(timing, "peak_flops", lambda kind: 918e12)
    taken, baseline = timing.Timed([0.2] * 3, [0.6] * 3), timing.Timed([0.1] * 3, [0.2] * 3)
    row = timing.row("a", 8, taken, baseline, done)
    assert (row["of_peak"], row["tflops"], row["images_per_s"], row["to_sync"]["median"]) == (0.5, 459.0, 40.0, 2.0)
    assert row["to_sync_processor"]["median"] == pytest.approx(3.0)
    assert "50.0 %" in timing.table([row])
    assert "n/a" in timing.table([{**row, "of_peak": None}])


@pytest.mark.parametrize(("on_cpu", "rate", "relative"), [(True, 4.0, 2.0), (False, 8.0, 1.0)])
def test_arithmetic_in_a_second_is_of_processors_where_these_are_what_computes(monkeypatch, on_cpu, rate, relative):
    monkeypatch.setattr(timing, "on_cpu", lambda: on_cpu)
    one, two = (timing.Compiled(None, 1.0, 1.0, flops) for flops in (4e9, 8e9))
    taken, baseline = timing.Timed([1.0] * 3, [2.0] * 3), timing.Timed([0.5] * 3, [2.0] * 3)
    row = timing.speed_row("two", taken, two, baseline, one)
    assert (row["gflop"], row["gflops"], row["of_first"]["median"]) == (8.0, rate, relative)


def test_a_networks_depth_changes_its_blocks_alone():
    tiny = _copy(run())
    assert cases.block_programs(tiny, 2) == {}  # no UNet
    tiny = tiny._replace(model=UNet(base=4, multipliers=(1,), blocks=1, attention=(), num_classes=tiny.num_classes))
    made = cases.block_programs(tiny, 2)
    assert [(other.model.blocks, other.model.scan) for other, _ in made.values()] == [
        (1, False),
        (2, False),
        (3, False),
        (3, True),
    ]
    for name, (other, _) in made.items():
        blocks = other.model.blocks
        assert name.startswith(f"{blocks} block")
        stacked = other.params.get("encode_0")
        assert stacked is None if blocks == 1 else stacked["res"]["conv_in"]["kernel"].shape[0] == blocks - 1
    other, program = made["3 blocks, as a loop"]
    grads = jax.eval_shape(program.fn, *cases.arguments(other, program))[1]
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, other.params)


@pytest.fixture
def smaller_text(monkeypatch):
    monkeypatch.setattr(text, "_UNET", {**text._UNET, "block_out_channels": [8, 8, 8], "norm_num_groups": 4})


def test_schedules_of_the_text_network_have_fields_as_few_as_their_names_say(smaller_text):
    steps, batch = 4, 2
    distinct, told = {}, {}
    for name, program in text.programs(batch, steps).items():
        schedule = program.args[1].schedule
        distinct[name] = getattr(schedule, "distinct", None)
        result = jax.eval_shape(program.fn, *program.args)
        assert result.latents.shape == (batch, *text._SHAPE)
        assert result.fields.shape[0] == steps + 1
        times, _ = jax.eval_shape(schedule.init, program.args[1].keys, program.args[1].noise)
        told[name] = jax.tree.leaves(times.told)[-1].shape[1:3]  # of few times, of their places
        assert (result.maps is not None) == name.startswith("AsynDM")
    assert distinct == {
        "sync": 1,
        "TPM": 1,
        "TPM, a deviation per patch": None,
        "concave, drawn mask": 2,
        "AsynDM, one omega": 1 + steps,
        "AsynDM, an omega per object": None,
    }
    assert told["sync"] == told["TPM"] == (1, 1)
    assert told["TPM, a deviation per patch"] == (8, 8)
    assert {told[name] for name in list(told)[3:]} == {(16, 16)}


@pytest.mark.parametrize(
    ("shape", "cells"), [((8, 8, 1), 4), ((16, 16, 4), 8), ((64, 64, 3), 8), ((64, 48, 3), 8), ((7, 7, 1), 1)]
)
def test_a_policy_divides_images_of_any_size(shape, cells):
    module, params = cases.policy(shape, 1, num_classes=3)
    assert max(module.grid(*shape[:2])) == cells
    assert params["patches"]["kernel"].shape == (3 * module.patch**2 * shape[2], module.width)


def test_fields_have_as_many_times_as_their_names_say():
    tiny = _copy(run())
    for programs in cases.field_programs(tiny, 2).values():
        for name, program in programs.items():
            given = cases.arguments(tiny, program)
            distinct = {len(np.unique(field)) for field in np.asarray(timefield.dense(given[3]))}
            assert distinct == {{"synchronous": 1, "a time per pixel": 64}.get(name) or int(name[0])}
        jax.eval_shape(program.fn, *given)  # the programs take what is made for them


@pytest.fixture
def smallest_text(monkeypatch):
    """Of one level, which is not the one whose maps are read."""
    one = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    monkeypatch.setattr(text, "_UNET", {**text._UNET, **one, "block_out_channels": [8], "norm_num_groups": 4})


def test_the_command_prints_a_table_and_writes_it(command, smallest_text, tmp_path, monkeypatch):  # noqa: F811
    # one of each, and inpainting, stand for all: compiling is what takes time. Beside it stands a product of matrices,
    # of the same arguments, so that a table has two rows
    schedules, steps = cases.schedules, cases.train_steps
    few = lambda rows, names: {name: rows[name] for name in names}  # noqa: E731
    monkeypatch.setattr(cases, "schedules", lambda run: few(schedules(run), ["sync", "inpaint"]))
    product = jnp.ones((64, 64))
    light = jax.jit(lambda *_: product @ product)

    def beside(programs, real, other):
        return {real: programs[real], other: Program(light, programs[other].args)}

    def few_steps(run):
        state, jitted = steps(run)
        assert len(jitted) == 8
        state_too = jax.jit(lambda state, *_: (state, product @ product))
        return state, {"synchronous": jitted["synchronous"], "independent": state_too}

    monkeypatch.setattr(cases, "train_steps", few_steps)
    programs, fields = text.programs, cases.field_programs
    monkeypatch.setattr(text, "programs", lambda *settings: beside(programs(*settings), "sync", "TPM"))
    monkeypatch.setattr(cases, "FIELDS", few(cases.FIELDS, ["synchronous", "a time per pixel"]))
    monkeypatch.setattr(
        cases,
        "field_programs",
        lambda *of: {what: beside(made, "synchronous", "a time per pixel") for what, made in fields(*of).items()},
    )
    out = tmp_path / "benchmark.json"
    code, said, err = command("benchmark", "--batch=2", "--repeats=2", "--steps=2", f"--out={out}")
    assert code == 0, err
    report = json.loads(out.read_text())
    assert [row["name"] for row in report["sampling"]] == ["sync", "inpaint"]
    assert [row["name"] for row in report["training"]] == ["synchronous", "independent"]
    assert list(report["fields"]) == ["one call", "one gradient"]
    for calls in report["fields"].values():
        assert [row["name"] for row in calls] == ["synchronous", "a time per pixel"]
    assert [row["name"] for row in report["text"]] == ["sync", "TPM"]
    tables = [report["sampling"], report["text"], report["training"], *report["fields"].values()]
    for first, second in tables:
        # each has its own times, and its own arithmetic
        assert first["seconds"] != second["seconds"]
        assert second["to_sync"] == timing.ratio(second["seconds"], first["seconds"])
    for _, second in tables[1:]:
        flops = 1e12 * second["tflops"] * statistics.median(second["seconds"])
        assert flops == pytest.approx(2 * 64**3)
    for row in itertools.chain(*tables):
        assert len(row["seconds"]) == len(row["processor_seconds"]) == 2
        assert all(math.isfinite(row[key]) and row[key] > 0 for key in ("images_per_s", "memory_mib", "tflops"))
        assert row["of_peak"] is None
        assert row["name"] in said
    assert report["sampling"][0]["to_sync"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert report["repaint_as_published"] == {"steps": 250, "model_calls": 2410, "renoised_levels": 2160}
    code, _, err = command("benchmark", f"--out={out}")
    assert code == 1
    assert "nothing exists yet" in err


def test_parts_that_do_not_exist_and_networks_without_a_counterpart_are_told(command):  # noqa: F811
    code, _, err = command("benchmark", "--parts=speed", "--out=never.json")
    assert code == 1
    assert "expected --parts out of sampling, text, training, fields, torch, got speed" in err
    code, _, err = command("benchmark", "--parts=torch", "--out=never.json")
    assert code == 1
    assert "expected a UNet to compare with PyTorch's, got DiT" in err


def test_a_table_lines_its_columns_up():
    row = {"name": "x", "ms_per_step": 1.5, "to_sync": {"median": 1, "low": 1, "high": 1}}
    lines = timing.table([row, {**row, "name": "a longer name", "ms_per_step": 1234.5}]).splitlines()
    assert len({len(line) for line in lines}) == 1
    with pytest.raises(KeyError):
        timing.table([row, {"name": "incomplete"}])
