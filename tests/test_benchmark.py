"""The benchmark counts what really happens, and writes what it prints."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from asyncpatch_jax import timefield
from asyncpatch_jax.sampling import repaint_cost
from launch.bench import cases, timing
from launch.shared import pictures
from launch.shared.generate import Inputs, image_keys
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
    seconds = timing.interleaved({name: lambda name=name: call(name) for name in slow}, 2)
    assert order == ["a", "b"] * 3
    assert seconds == {"a": [3.0, 5.0], "b": [12.0, 18.0]}
    assert timing.ratio(seconds["b"], seconds["a"]) == {"median": 3.8, "low": 3.6, "high": 4.0}


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
    row = timing.row("a", 8, [0.2, 0.2, 0.2], [0.1, 0.1, 0.1], done)
    assert (row["of_peak"], row["tflops"], row["images_per_s"], row["to_sync"]["median"]) == (0.5, 459.0, 40.0, 2.0)
    assert "50.0 %" in timing.table([row])
    assert "n/a" in timing.table([{**row, "of_peak": None}])


def test_fields_have_as_many_times_as_their_names_say():
    tiny = _copy(run())
    for programs in cases.field_programs(tiny, 2).values():
        for name, program in programs.items():
            told = cases.arguments(tiny, program)[3]
            distinct = {len(jnp.unique(field)) for field in timefield.dense(told)}
            assert distinct == {{"synchronous": 1, "a time per pixel": 64}.get(name) or int(name[0])}
        # the programs take what is made for them
        jax.block_until_ready(program.fn(*cases.arguments(tiny, program)))


def test_the_command_prints_a_table_and_writes_it(command, tmp_path, monkeypatch):  # noqa: F811
    # two of each stand for all: compiling is what takes time
    schedules, steps = cases.schedules, cases.train_steps
    few = lambda rows, names: {name: rows[name] for name in names}  # noqa: E731
    monkeypatch.setattr(cases, "schedules", lambda run: few(schedules(run), ["sync", "inpaint"]))

    def few_steps(run):
        state, jitted = steps(run)
        assert len(jitted) == 7
        return state, few(jitted, ["synchronous", "independent"])

    monkeypatch.setattr(cases, "train_steps", few_steps)
    monkeypatch.setattr(cases, "FIELDS", few(cases.FIELDS, ["synchronous", "a time per pixel"]))
    out = tmp_path / "benchmark.json"
    code, said, err = command("benchmark", "--batch=2", "--repeats=2", "--steps=2", f"--out={out}")
    assert code == 0, err
    report = json.loads(out.read_text())
    assert [row["name"] for row in report["sampling"]] == ["sync", "inpaint"]
    assert [row["name"] for row in report["training"]] == ["synchronous", "independent"]
    calls = report["fields"]["one call"]
    assert [row["name"] for row in calls] == ["synchronous", "a time per pixel"]
    for row in (*report["sampling"], *report["training"], *calls):
        assert len(row["seconds"]) == 2
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
    assert "expected --parts out of sampling, training, fields, torch, got speed" in err
    code, _, err = command("benchmark", "--parts=torch", "--out=never.json")
    assert code == 1
    assert "expected a UNet to compare with PyTorch's, got DiT" in err


def test_a_table_lines_its_columns_up():
    row = {"name": "x", "ms_per_step": 1.5, "to_sync": {"median": 1, "low": 1, "high": 1}}
    lines = timing.table([row, {**row, "name": "a longer name", "ms_per_step": 1234.5}]).splitlines()
    assert len({len(line) for line in lines}) == 1
    with pytest.raises(KeyError):
        timing.table([row, {"name": "incomplete"}])
