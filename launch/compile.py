"""Compile the training step and the sampler for a TPU that is not there: does it fit, and how fast can it be at best?

  pip install libtpu        # the TPU's compiler; it runs on any x86 Linux machine
  python -m launch.compile --config=configs/imagenet64_600m.py --topology=v6e:8x8
  python -m launch.compile --config=configs/imagenet64_600m.py --topology=v5e:4x4 --slices=2 --config.mesh.data=2
  python -m launch.compile --config=configs/imagenet64_60m.py --program=train --against=times.name=synchronous
  python -m launch.compile --config=configs/imagenet64_60m.py --program=sample --against=configs/imagenet64_600m.py
  python -m launch.compile --config=configs/autoencoder_f8.py --topology=v6e:4x4       # of an autoencoder: its training

Prints for each chip: memory against what it has, FLOPs and bytes, what is sent to other chips, and the bounds on time
that follow from the chip's peak rates. They are bounds by the compiler's numbers, no measurements; docs/performance.md
says what is counted. No data is read. Ends with exit code 2 if a program does not fit, and says what to change; with 3
if the compiler fails.
"""

import ast
import math
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from asyncpatch_jax.files import check_writable, write_json
from launch.compiler import aot, report, topology
from launch.shared import cli, datasets, outputs, records

EFFORTS = ("O0", "O1", "O2", "O3", "default")
_DOES_NOT_FIT, _FAILED = 2, 3
_AUTOENCODER = "configs/autoencoder_fashion.py"


def classes(config: ConfigDict) -> int:
    """How many classes the configured data has: from the data, or from the description that TFDS has of it.

    Raises:
        ValueError: neither is at hand.
    """
    data = config.data
    if data.name == "tfds" and not data.path:
        import tensorflow_datasets

        try:
            features = dict(tensorflow_datasets.builder(data.dataset).info.features.items())
        except (tensorflow_datasets.core.DatasetNotFoundError, OSError) as error:
            raise ValueError(f"expected --classes=N, since TFDS does not know {data.dataset!r}") from error
        return getattr(features.get("label"), "num_classes", 1)
    if data.name == "captions":
        return 1
    if data.name == "folder" and not data.path:
        raise ValueError("expected --config.data.path=DIRECTORY to count its classes, or --classes=N")
    return datasets.dataset(config).num_classes


def request(config: ConfigDict, program: str, where: topology.Topology, **more: Any) -> dict[str, Any]:
    """What `launch.compiler.aot.ahead` takes; `more` are "classes", "effort", and for a sampler "batch"."""
    plain = records.plain(config)
    return {"config": plain, "topology": where.name, "slices": where.slices, "program": program, **more}


def changed(config: ConfigDict, against: str) -> ConfigDict:
    """The configuration that a name of a file, or `setting=value` words, or both, stand for.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown setting, or a value of another type.
    """
    words = against.split()
    if not words:
        raise ValueError("expected --against=FILE or --against='SETTING=VALUE ...', got nothing")
    if "=" not in words[0]:
        config = cli.load(cli.resolve(words.pop(0)))
    config = config.copy_and_resolve_references()
    for word in words:
        name, _, value = word.partition("=")
        name = name.removeprefix("--").removeprefix("config.")
        cli.check_name(name, cli.names(config))
        try:
            config.update_from_flattened_dict({name: _value(value)})
        except (TypeError, ValueError) as error:
            raise ValueError(f"--against={word}: {error}") from error
    return config


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # a word without quotes


def compiled(config: ConfigDict, program: str) -> dict[str, Any] | None:
    """Compile one program as the flags say, and print its report; None if the compiler failed."""
    values = flags.FLAGS
    where = topology.parse(values.topology, values.slices)
    if values.steps is not None:
        config = config.copy_and_resolve_references()
        config.sample.steps = values.steps
    batch = values.batch or config.train.batch
    coder = is_autoencoder(config)
    asked = request(
        config,
        program,
        where,
        classes=1 if coder else values.classes or classes(config),
        effort=None if values.effort == "default" else f"EFFORT_{values.effort}",
        batch=batch,
    )
    title = "training step" if program == "train" else f"sampler of {config.sample.steps} steps"
    print(f"\n{title}: {config.workdir.removeprefix('runs/')} on {where}, {_mesh(config, where)}", flush=True)
    module = "launch.compiler.autoencoder_programs" if coder else "launch.compiler.aot"
    answer = aot.ahead(asked, values.timeout, module)
    if "failed" in answer:
        print("\n".join([f"the compiler failed: {answer['failed']}; its last words:", *answer["stderr"]]))
        return None
    print(report.text(answer, where, asked["config"], program))
    return answer


def is_autoencoder(config: ConfigDict) -> bool:
    """Whether it is a configuration of `launch.train_autoencoder`."""
    return cli.is_kind(cli.names(config), _AUTOENCODER)


def _mesh(config: ConfigDict, where: topology.Topology) -> str:
    known = math.prod(size for size in config.mesh.values() if size > 0)
    sizes = {name: where.chips // known if size == -1 else size for name, size in config.mesh.items()}
    return " x ".join(f"{name} {size}" for name, size in sizes.items() if size != 1) or "one chip"


def compare(config: ConfigDict, programs: Sequence[str], against: str | None) -> tuple[dict[str, Any], int]:
    """Compile the programs of a configuration, and of the one it is compared with; ({name: answer}, exit code)."""
    values = flags.FLAGS
    where = topology.parse(values.topology, values.slices)
    other = changed(config, against) if against else None
    answers, code = {}, 0
    for program in programs:
        pair = [compiled(config, program)]
        pair += [compiled(other, program)] if other else []
        for name, answer in zip((program, f"{program} against"), pair, strict=False):
            if answer is None:
                code = max(code, _FAILED)
                continue
            answers[name] = answer
            if report.fits(answer, where):
                answer["bounds"] = report.bounds(answer, where)._asdict()
            else:
                code = max(code, _DOES_NOT_FIT)
        if other and all(answer and "memory" in answer for answer in pair):
            print(f"\nratios to {against}\n{report.ratios(*pair, where)}")
    return answers, code


def main(config: ConfigDict) -> None:
    values = flags.FLAGS
    topology.parse(values.topology, values.slices)
    topology.check_compiler()
    if values.out:
        outputs.refuse_existing(values.out, values.overwrite)
        check_writable(values.out)
    print(f"compiled at effort {values.effort}; a run at the compiler's own effort may take less memory and time")
    if is_autoencoder(config):
        if values.program == "sample":
            raise ValueError("expected --program=train for an autoencoder, which has no sampler, got sample")
        programs: tuple[str, ...] = ("train",)
    else:
        programs = ("train", "sample") if values.program == "both" else (values.program,)
    answers, code = compare(config, programs, values.against)
    if values.out:
        write_json(values.out, answers, overwrite=values.overwrite)
        print(f"\nwrote {values.out}")
    sys.exit(code)


if __name__ == "__main__":
    flags.DEFINE_string("topology", "v6e:8x8", "Chips of a slice: v4:2x2x1, v5e:4x4, v5p:2x2x4, v6e:8x8, ...")
    flags.DEFINE_integer("slices", 1, "Slices of that shape.", lower_bound=1)
    flags.DEFINE_enum("program", "both", ["train", "sample", "both"], "What to compile.")
    flags.DEFINE_integer("batch", None, "Images of a sampler run; config.train.batch unless given.", lower_bound=1)
    flags.DEFINE_integer("steps", None, "Steps of a sampler run; config.sample.steps unless given.", lower_bound=1)
    flags.DEFINE_integer("classes", None, "Classes of the data, where it is not at hand.", lower_bound=1)
    flags.DEFINE_string("against", None, "Print ratios to FILE, or to this configuration with 'SETTING=VALUE ...'.")
    flags.DEFINE_enum("effort", "O0", EFFORTS, "The compiler's; O0 is the fastest to compile.")
    flags.DEFINE_float("timeout", 3600.0, "Seconds that compiling a program may take.")
    flags.DEFINE_string("out", None, "JSON file to write.")
    flags.DEFINE_bool("overwrite", False, "Replace --out.")
    cli.main(main, __doc__, others=(_AUTOENCODER,))
