"""Make the tables of docs/performance.md: what the TPU compiler says of the networks at their real size.

  python -m launch.studies.performance
  python -m launch.studies.performance --only='60M|DiT'      # compile these alone; the tables show what is there

Each program is compiled as `launch.compile` does it, one after another: hours on two cores, minutes at a time. Answers
go to --runs and stay there, so that a run that was stopped goes on, and what is there is not compiled again. They do
not know when the code changes: give another --runs, or remove the folder.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from asyncpatch_jax.files import write_json, writing
from asyncpatch_jax.texts import read_text
from launch import compile
from launch.compiler import aot, report, topology
from launch.shared import cli, fields, markdown

NETWORKS = {
    "UNet 60M": "configs/imagenet64_60m.py",
    "UNet 600M": "configs/imagenet64_600m.py",
    "DiT-XL/2": "configs/imagenet256_dit_xl2.py",
}
PLACES = {
    "UNet 60M": (topology.parse("v6e:8x8"),),
    "UNet 600M": (topology.parse("v6e:8x8"), topology.parse("v6e:4x8", slices=2)),
    "DiT-XL/2": (topology.parse("v5e:4x4"), topology.parse("v5p:2x2x4")),
}
FIELDS = {1: "synchronous", 2: "2 times", 4: "4 times", fields.PIXELS: "a time for each pixel"}
STEPS = 50  # of a sampler
IMAGES = 32  # on one chip, where fields are compared
EFFORT = "EFFORT_O0"
_CLASSES = 1000


class Case(NamedTuple):
    """One program: what the tables call it, and what is compiled."""

    network: str
    what: str
    request: dict[str, Any]

    @property
    def name(self) -> str:
        """Of its file."""
        request = self.request
        words = (self.network, self.what, str(self.where), request["effort"])
        return re.sub(r"\W+", "_", " ".join(words)).strip("_")

    @property
    def where(self) -> topology.Topology:
        return topology.parse(self.request["topology"], self.request["slices"])


def sizes() -> list[Case]:
    """The training step and the sampler of each network where it is to be trained."""
    found = []
    for network, places in PLACES.items():
        for place in places:
            config = cli.load(cli.resolve(NETWORKS[network]))
            config.sample.steps = STEPS
            config.mesh.data = place.slices
            found.append(_case(network, "training step", config, "train", place))
            if place.slices > 1:
                continue
            if network != "DiT-XL/2":
                plain = compile.changed(config, "times.name=synchronous")
                found.append(_case(network, "training step, synchronous", plain, "train", place))
            found.append(_case(network, f"sampler, {STEPS} steps", config, "sample", place, batch=config.train.batch))
    return found


def prices() -> list[Case]:
    """Calls and gradients of each network for fields of each kind, on one chip."""
    found = []
    for network, name in NETWORKS.items():
        config = cli.load(cli.resolve(name))
        config.mesh.update({"data": -1, "fsdp": 1, "tensor": 1})
        one = topology.parse("v6e:1x1")
        for program in ("forward", "gradient"):
            for times, field in FIELDS.items():
                what = f"{program}, {field}"
                found.append(_case(network, what, config, program, one, batch=IMAGES, times=times))
    return found


def _case(network: str, what: str, config: Any, program: str, where: topology.Topology, **more: Any) -> Case:
    versions = {name: version(name) for name in ("jax", "libtpu")}
    request = compile.request(config, program, where, classes=_CLASSES, effort=EFFORT, versions=versions, **more)
    return Case(network, what, request)


def stored(case: Case, runs: Path) -> dict[str, Any] | None:
    """The answer to this very request, if it is there."""
    path = runs / f"{case.name}.json"
    if not path.exists():
        return None
    content = json.loads(read_text(path))
    return content["answer"] if content["request"] == case.request else None


def compile_all(cases: list[Case], runs: Path, timeout: float, say: Callable[[str], None] = print) -> None:
    """Compile what is not there yet. A compiler that fails is told, and asked again by the next run."""
    for at, case in enumerate(cases, 1):
        title = f"[{at}/{len(cases)}] {case.network} on {case.where}: {case.what}"
        if stored(case, runs) is not None:
            say(f"{title}: is there")
            continue
        say(title)
        answer = aot.ahead(case.request, timeout)
        if "failed" in answer:
            say("\n".join([f"the compiler failed: {answer['failed']}", *answer["stderr"]]))
            continue
        write_json(runs / f"{case.name}.json", {"request": case.request, "answer": answer}, overwrite=True)
        say(report.text(answer, case.where, case.request["config"], case.request["program"]))


def size_table(cases: list[Case], runs: Path) -> str:
    """Markdown: one row for each program that was compiled."""
    titles = ("network", "program", "chips", "images", "peak memory", "TFLOP a chip", "GB a chip", "sent by a chip, GB")
    titles += ("at least", "bound by", "images/s at most", "MFU at most", "chip-hours a million images", "compile s")
    rows = []
    for case in cases:
        answer = stored(case, runs)
        if answer is None:
            continue
        start = [case.network, case.what, str(case.where), str(answer["images"])]
        if "memory" not in answer:
            rows.append([*start, _refusal(answer), *["" for _ in titles[5:]]])
            continue
        found = report.bounds(answer, case.where)
        sent = sum(one["sent"] for one in answer["collectives"].values())
        peak = answer["memory"]["peak"]
        rows.append(
            [
                *start,
                f"{peak / topology.GIB:.1f} of {case.where.chip.hbm / topology.GIB:.0f} GiB",
                f"{found.flops / 1e12:.3g}",
                f"{found.bytes / 1e9:.4g}",
                f"{sent / 1e9:.3g}",
                f"{1e3 * found.least:.3g} ms",
                found.limit,
                f"{found.images_per_second:,.0f}",
                f"{found.utilisation:.0%}",
                f"{found.chip_hours(1e6, answer['chips']):.3g}",
                f"{answer['seconds']['compile']:.0f}",
            ]
        )
    return markdown.table(titles, rows)


def _refusal(answer: dict[str, Any]) -> str:
    needs = answer["needs"]
    return "does not fit" if needs is None else f"does not fit: {needs / topology.GIB:.1f} GiB"


def price_table(cases: list[Case], runs: Path) -> str:
    """Markdown: FLOPs, bytes and the compiler's cycles over those of the synchronous program of the same network."""
    titles = ("network", "program", "field", "FLOPs", "bytes", "cycles", "temporaries", "GFLOP", "GB")
    rows = []
    synchronous: dict[tuple[str, str], dict[str, Any]] = {}
    for case in cases:
        answer = stored(case, runs)
        if answer is None or "memory" not in answer:
            continue
        key = (case.network, case.request["program"])
        if case.request["times"] == 1:
            synchronous[key] = answer
        found = report.bounds(answer, case.where)
        row = [*key, FIELDS[case.request["times"]]]
        base = synchronous.get(key)
        if base is None:
            row += [""] * 4
        else:
            plain = report.bounds(base, case.where)
            temporaries = answer["memory"]["temporaries"] / base["memory"]["temporaries"]
            pairs = ((found.flops, plain.flops), (found.bytes, plain.bytes), (found.cycles, plain.cycles))
            row += [f"{a / b:.3f}" for a, b in pairs] + [f"{temporaries:.3f}"]
        rows.append([*row, f"{found.flops / 1e9:.4g}", f"{found.bytes / 1e9:.4g}"])
    return markdown.table(titles, rows)


def fill(page: str, tables: dict[str, str]) -> str:
    """The page with each table between its marks, `<!-- NAME -->` and `<!-- end of NAME -->`; the rest as it was.

    Raises:
        ValueError: a mark is missing.
    """
    for name, content in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if page.count(start) != 1 or page.count(end) != 1 or page.index(start) > page.index(end):
            raise ValueError(f"expected {start} and then {end} in the page, once each")
        before, after = page[: page.index(start) + len(start)], page[page.index(end) :]
        page = f"{before}\n{content}\n{after}"
    return page


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/performance"), help="folder for the answers")
    parser.add_argument("--page", type=Path, default=Path("docs/performance.md"), help="its tables are replaced")
    parser.add_argument("--only", default="", help="compile only what matches this expression, e.g. '600M.*gradient'")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds that a program may take")
    given = parser.parse_args(arguments)
    try:
        topology.check_compiler()
        page = read_text(given.page)
        large, small = sizes(), prices()
        wanted = [case for case in (*large, *small) if re.search(given.only, f"{case.network} {case.what}")]
        compile_all(wanted, given.runs, given.timeout)
        versions = ", ".join(f"{name} {number}" for name, number in large[0].request["versions"].items())
        tables = {
            "versions": f"{versions}, effort {EFFORT}",
            "sizes": size_table(large, given.runs),
            "prices": price_table(small, given.runs),
        }
        with writing(given.page, overwrite=True) as stream:
            stream.write(fill(page, tables).encode())
    except (ValueError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    print(f"wrote {given.page}")


if __name__ == "__main__":
    main(sys.argv[1:])
