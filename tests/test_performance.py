"""The command behind docs/performance.md: what it compiles, keeps and writes. The compiler is a stand-in."""

import json
from pathlib import Path

import pytest

from launch.compiler import aot
from launch.shared import fields
from launch.studies import performance

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"


def answer(flops, moved):
    cost = {"flops": flops, "bytes": moved, "hbm": moved, "cycles": flops / 10}
    memory = {"peak": 2**30, "temporaries": moved, "arguments": 5, "outputs": 5, "aliased": 5, "code": 5}
    return {
        **{"chips": 64, "images": 64, "parameters": 3, "argument_bytes": 5, "model_flops": 64 * flops},
        **{"memory": memory, "xla": {"flops": flops, "bytes": moved}, "once": cost, "total": cost},
        **{"collectives": {}, "kernels": 0, "loops": [], "conditionals": 0, "host_bytes": 1},
        "seconds": {"trace": 1.0, "compile": 2.0},
    }


@pytest.fixture
def compiler(monkeypatch):
    """Counts the requests; arbitrary fields cost a quarter more bytes, and samplers do not fit."""
    asked = []

    def ahead(request, timeout):
        asked.append(request)
        found = answer(918e9, 1640e6 * (1.25 if request.get("times") == fields.PIXELS else 1.0))
        if request["program"] == "sample":
            del found["memory"]
            found |= {"needs": 40 * 2**30, "has": 31 * 2**30, "message": "no"}
        return found

    monkeypatch.setattr(aot, "ahead", ahead)
    return asked


def run(tmp_path, *arguments):
    page = tmp_path / "page.md"
    if not page.exists():
        page.write_text(PAGE.read_text())
    performance.main([f"--runs={tmp_path / 'runs'}", f"--page={page}", *arguments])
    return page.read_text()


def rows(page, *words):
    lines = [line for line in page.splitlines() if line.startswith("| ") and all(word in line for word in words)]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]


def test_the_page_is_filled_and_what_is_there_is_not_compiled_again(compiler, tmp_path):
    page = run(tmp_path)
    asked = len(compiler)
    assert asked == len(performance.sizes()) + len(performance.prices())
    # everything beside the tables is as it was
    assert page.split("<!--")[0] == PAGE.read_text().split("<!--")[0]
    row = rows(page, "UNet 600M", "training step |", "| v6e:8x8")[0]
    assert row[3:8] == ["64", "1.0 of 32 GiB", "0.918", "1.64", "0"]
    assert row[8:] == ["1 ms", "arithmetic", "64,000", "100%", f"{64 / 64000 * 1e6 / 3600:.3g}", "2"]
    assert rows(page, "UNet 600M", "sampler")[0][4] == "does not fit: 40.0 GiB"
    for network in performance.NETWORKS:
        for program in ("forward", "gradient"):
            price = rows(page, f"{network} | {program}")
            assert [line[2] for line in price] == list(performance.FIELDS.values())
            assert [line[4] for line in price] == ["1.000", "1.000", "1.000", "1.250"]
    assert run(tmp_path) == page
    assert len(compiler) == asked


def test_a_part_can_be_compiled_and_a_failure_is_asked_again(compiler, tmp_path, monkeypatch, capsys):
    page = run(tmp_path, "--only=600M gradient")
    assert len(compiler) == len(performance.FIELDS)
    assert {request["program"] for request in compiler} == {"gradient"}
    assert rows(page, "UNet 600M | gradient")
    assert not rows(page, "UNet 60M")
    monkeypatch.setattr(aot, "ahead", lambda *_: {"failed": "killed by SIGABRT", "stderr": ["Check failed"]})
    page = run(tmp_path, "--only=60M forward")
    assert "the compiler failed: killed by SIGABRT\nCheck failed" in capsys.readouterr().out
    assert not rows(page, "UNet 60M")
    assert rows(page, "UNet 600M | gradient")


def test_an_answer_to_another_question_does_not_count(compiler, tmp_path):
    run(tmp_path, "--only=60M forward, synchronous")
    (path,) = (tmp_path / "runs").glob("*.json")
    content = json.loads(path.read_text())
    content["request"]["config"]["model"]["dropout"] = 0.5
    path.write_text(json.dumps(content))
    page = run(tmp_path, "--only=nothing")
    assert not rows(page, "UNet 60M | forward")


def test_a_page_without_marks_is_refused():
    assert performance.fill("a<!-- x -->b<!-- end of x -->c", {"x": "t"}) == "a<!-- x -->\nt\n<!-- end of x -->c"
    for page in ("", "<!-- x -->", "<!-- end of x --><!-- x -->", "<!-- x --><!-- x --><!-- end of x -->"):
        with pytest.raises(ValueError, match="expected <!-- x --> and then"):
            performance.fill(page, {"x": "t"})


def test_the_largest_programs_are_those_that_are_asked_for():
    cases = {(case.network, case.what, case.request["topology"]): case.request for case in performance.sizes()}
    assert cases["UNet 600M", "training step", "v6e:8x8"]["config"]["train"]["batch"] == 2048
    sampler = cases["DiT-XL/2", "sampler, 50 steps", "v5e:4x4"]
    assert sampler["config"]["sample"]["steps"] == 50
    assert len({case.name for case in (*performance.sizes(), *performance.prices())}) == len(cases) + 24
