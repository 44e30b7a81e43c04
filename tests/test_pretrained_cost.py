"""What is compiled of pretrained networks without their weights, and how it is told."""

import json
import os
from functools import partial

import pytest

from asyncpatch_jax.pretrained.folders.presets import PRESETS
from launch.compiler import aot, pretrained_programs, report, topology
from launch.studies import pretrained_cost
from launch.studies.pretrained_cost import Place
from tests import mains, tiny_folders

os.environ.update(aot._ENVIRONMENT)


def tiny(family, path, **more):
    """A request for a tiny folder's network on four chips."""
    tiny_folders.folder(family, path)
    one = pretrained_cost.of_folder(path, Place("v6e:2x2", (1, 2, 2), 2, 32, 3))
    return {**one.request("", effort="EFFORT_O0"), **more}


@pytest.fixture(autouse=True)
def effort(monkeypatch):
    monkeypatch.setattr(pretrained_cost.flags, "FLAGS", type("Flags", (), {"effort": "O0", "only": ""}))


def test_a_sampler_costs_its_calls(tmp_path):
    """Dynamic masks of a transformer's joint attention, in one program for four chips."""
    asked = tiny("flux", tmp_path / "flux")
    run = pretrained_programs.answer({**asked, "program": "sampler", "schedule": "dynamic", "steps": 3})
    assert run["chips"] == 4
    assert run["images"] == 2
    assert sorted(run["loops"]) == [3, 4]  # steps, and single blocks
    assert report.fits(run, topology.parse("v6e:2x2"))
    net = pretrained_programs.network({**asked, "denoiser": {**asked["denoiser"], "num_layers": 4}})
    once = pretrained_programs.call(net, {**asked, "times": 4, "maps": True})
    assert once.args[3].spans.index.shape == (2, 4)
    assert once.args[2].index.shape == (2, 8, 8, 1)


@pytest.mark.parametrize("family", tiny_folders.FAMILIES)
def test_every_family_is_traced(tmp_path, family):
    """Under guidance, unless the network is told its scale; fields on the cells of the network."""
    asked = tiny(family, tmp_path / family, steps=2)
    net = pretrained_programs.network(asked)
    for times in (1, 8, "dense"):
        program = pretrained_programs.call(net, {**asked, "times": times, "maps": True})
        out, aux = program.fn.eval_shape(*program.args)
        assert out.shape == (2, 16, 16, 4)
        assert aux["maps"].shape[-1] == 2
    for schedule in ("sync", "dynamic"):
        program = pretrained_programs.sampler(net, {**asked, "schedule": schedule})
        found = program.fn.eval_shape(*program.args)
        side = 16 if family in ("sd", "sdxl") else 8
        assert found.latents.shape == (2, 16, 16, 4)
        assert found.fields.shape == (3, 2, *((1, 1) if schedule == "sync" else (side, side)), 1)
        assert (program.args[1].uncond is None) == (family in ("flux", "kontext"))
    program = pretrained_programs.decoder(asked)
    assert program.fn.eval_shape(*program.args).shape == (2, 32, 32, 3)


@pytest.mark.parametrize("name", PRESETS)
def test_the_public_checkpoints_have_a_place(name):
    one = pretrained_cost.subject(name, PRESETS[name], pretrained_cost._FAMILIES[name], pretrained_cost._PLACES[name])
    latents = {"sd1.5": 64, "sd2.1": 64}.get(name, 128)
    assert one.request("call")["latents"] == [latents, latents, 4 if "sd1 sd2 sdx".find(name[:3]) >= 0 else 16]


@pytest.fixture
def command(monkeypatch, capfd):
    """`command("--family=sd2.1", ...)` -> (exit code, stdout, stderr) of the main in this process."""
    monkeypatch.undo()
    return partial(mains.command(monkeypatch, capfd), "studies.pretrained_cost")


def fake(request, timeout, module):
    """An answer whose numbers are seen in the tables."""
    assert module == "launch.compiler.pretrained_programs"
    flops = {1: 1e12, 8: 1.01e12, "dense": 1.2e12}.get(request.get("times"), 5e13)
    if request.get("schedule") == "dynamic":
        return {"needs": 20 * 2**30, "has": 2**34, "message": "", "parameters": 5}
    total = {"flops": flops, "bytes": 2e9, "hbm": 2e9, "cycles": 0.0}
    memory = dict.fromkeys(("arguments", "outputs", "aliased", "temporaries", "code", "peak"), 2**30)
    return {
        "memory": memory,
        "once": total,
        "total": total,
        "xla": {"flops": flops, "bytes": 2e9},
        "collectives": {},
        "images": 4,
        "chips": 1,
        "parameters": 5_000_000,
        "model_flops": flops,
    }


def test_the_page(command, monkeypatch, tmp_path):
    monkeypatch.setattr(aot, "ahead", fake)
    code, out, err = command("--family=sd2.1", f"--out={tmp_path / 'o.json'}")
    assert code == 2  # one does not fit
    assert "## sd2.1\n\n5 M parameters, 4 images of 512 px, v5e:1x1 (one chip)." in out
    assert "| 8 times | 1.01 | 1.0100 | 2 | 1.0000 | 1.000 GiB |  |" in out
    assert "| dense | 1.2 | 1.2000 |" in out
    # 4 images, 20 heads, 16 x 16 cells, 77 tokens
    assert "| 8 times, maps | 1.01 | 1.0100 | 2 | 1.0000 | 1.000 GiB | 0.01 GiB |" in out
    assert "| sync | 1.00 GiB | 1.00 GiB | 1.00 GiB | 6% |" in out
    assert "| dynamic | does not fit: needs 20.0 GiB |" in out
    assert "| decoder | 1.00 GiB | 1.00 GiB | 1.00 GiB | 6% |" in out
    assert "sd2.1, sampler: dynamic" in err
    assert "sd2.1, decoder: decoder" in err
    assert json.loads((tmp_path / "o.json").read_text())["sd2.1"]["dense"]["total"]["flops"] == 1.2e12
    code, out, _ = command("--family=sdxl", "--only=call: .* time")
    assert code == 0
    assert [line.split(" |")[0] for line in out.splitlines() if line.startswith("| ")] == [
        *("| field", "| ---", "| 1 time", "| 8 times", "| 8 times, maps")
    ]


def test_a_compiler_that_dies_is_reported(command, monkeypatch):
    monkeypatch.setattr(aot, "ahead", lambda *_: {"failed": "killed by SIGABRT", "stderr": []})
    code, out, _ = command("--family=flux")
    assert code == 3
    assert "| 1 time | the compiler failed: killed by SIGABRT |" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family=sd9"], "expected one of all, sd1.5, sd2.1, "),
        (["--topology=v6e"], "expected a topology such as v6e:8x8"),
        (["--family=sd2.1", "--mesh=1,2,1", "--timeout=300"], "expected a mesh of at most 1 chips on v5e:1x1"),
        (["--mesh=2,2"], "expected --mesh=data,fsdp,tensor, got 2,2"),
        (["--size=100"], "expected --size to be a multiple of 16"),
        (["--folder=nowhere"], "expected a file nowhere/model_index.json, got none"),
    ],
)
def test_mistakes_are_one_line_and_code_1(command, arguments, message):
    code, _, err = command(*arguments)
    assert code == 1
    assert message in err
    assert "Traceback" not in err
