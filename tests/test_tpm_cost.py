"""What is compiled of a TPM's training without any weights, and the page that tells of it."""

import jax
import numpy as np
import pytest

from asyncpatch_jax.pretrained.folders.presets import PRESETS
from launch.compiler import aot, tpm_programs
from launch.studies import pretrained_cost, tpm_cost
from launch.studies.pretrained_cost import Place
from tests import mains, tiny_folders

POLICY = {"patch": 2, "width": 16, "depth": 1, "heads": 2}


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_an_iteration_is_traced(family, tmp_path, monkeypatch):
    for name, value in aot._ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pretrained_cost.flags, "FLAGS", type("Flags", (), {"effort": "O0"}))
    tiny_folders.folder(family, tmp_path / family)
    one = pretrained_cost.of_folder(tmp_path / family, Place("v6e:2x2", (2, 2, 1), 8, 32, 4))
    asked = {**one.request("rollout"), "steps": 4, "minibatch": 4, "policy": POLICY}
    net = tpm_programs.pretrained_programs.network(asked)
    program = tpm_programs.rollout(net, asked)
    rolled = program.fn.eval_shape(*program.args)
    assert rolled.images.shape == (8, 16, 16, 4)
    assert rolled.trajectory.rho.shape == (8, 3, 1, 1)
    assert (program.args[2].uncond is None) == (family == "flux")
    program = tpm_programs.update(net, asked)
    state, metrics = program.fn.eval_shape(*program.args)
    assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, program.args[0])
    assert metrics["ratio_mean"].shape == ()
    for one_call in (tpm_programs.module_call, tpm_programs.network_call):
        program = one_call(net, asked)
        assert program.fn.eval_shape(*program.args)[0].shape[0] == 8


def test_the_page(monkeypatch, capfd):
    shares = {"network": 1e12, "module": 2.4e9, "rollout": 3e13, "update": 6e11}

    def fake(request, timeout, module):
        assert module == "launch.compiler.tpm_programs"
        assert request["latents"] == [64, 64, 16]
        total = {"flops": 918e12 / 16 * 36, "bytes": 1.0, "hbm": 1.0, "cycles": 0.0}  # 36 s / 16 of a v6e's peak
        return {
            "memory": dict.fromkeys(("arguments", "outputs", "aliased", "temporaries", "code", "peak"), 2**30),
            "once": total,
            "total": total,
            "xla": {"flops": total["flops"], "bytes": 1.0},
            "collectives": {},
            "images": 16,
            "chips": 16,
            "parameters": 4_700_000,
            "model_flops": shares[request["program"]],
        }

    monkeypatch.setattr(aot, "ahead", fake)
    code, out, err = mains.command(monkeypatch, capfd)("studies.tpm_cost")
    assert code == 0, err
    assert set(tpm_cost.PLACES) <= set(PRESETS)
    assert out.count("| rollout |  | 30 | 1.00 GiB | 1.00 GiB | 1.00 GiB | 2.25 s |") == 2
    assert "A call of the module has **0.24%** of the FLOPs" in out
    assert "100.00% counted in what a chip runs" in out
    assert "largest peak is 1.00\nof a chip's 32 GiB" in out
    # 4,000 iterations of twice 2.25 s on 16 chips
    assert "take at least\n**80 chip-hours**" in out
