"""Say what a folder of pretrained networks holds, whether it will load, and what memory it needs; reads headers only.

  python -m launch.check_checkpoint stable-diffusion-xl-base-1.0
  python -m launch.check_checkpoint stable-diffusion-xl-base-1.0/unet --variant=fp16
  python -m launch.check_checkpoint FLUX.1-dev --tensor=4

FOLDER has the layout of diffusers (model_index.json), or is one component's (config.json); an id such as "org/name"
works where the Hub's client has it. The exit code is 1 if anything will not load. The memory is that of the parameters,
split over chips by fsdp, and by --tensor; they fit if they leave a quarter of a chip to everything else.
"""

from absl import flags

from asyncpatch_jax.pretrained.folders import inspection
from asyncpatch_jax.pretrained.folders.inspection import Folder
from launch.compiler import topology
from launch.shared import cli

_CHIPS = (1, 4, 8, 16)
_DTYPES = ("bfloat16", "float32")
_ROOM = 0.75  # of a chip's memory that parameters may take


def main(folder: str) -> None:
    found = inspection.inspect(folder, variant=flags.FLAGS.variant)
    print("\n".join([*_components(found), "", *_memory(found, flags.FLAGS.tensor)]))
    if not found.loads:
        broken = [component.name for component in found.components if component.problems]
        raise ValueError(f"{found.path} will not load: {', '.join(broken) or found.problems[0]}")


def _components(found: Folder) -> list[str]:
    lines = [f"{found.path}: {found.family or ('one component' if found.components else 'no known pipeline')}"]
    for part in found.components:
        kind = f"{part.name:15} {part.class_name or 'unknown':28} {part.parameters / 1e6:,.1f} M parameters"
        disk = f"{part.dtypes or 'no tensors'}, {part.disk / 1e9:.2f} GB on disk"
        renamed = f", {part.renamed} tensors renamed" if part.renamed else ""
        loads = "will load" if not part.problems else "WILL NOT LOAD"
        lines.append(f"  {kind}, {disk}{renamed}: {loads}")
        lines += [f"    - {problem}" for problem in part.problems]
        lines += [f"    note: {note}" for note in part.notes]
    if found.scheduler is not None:
        scheduler = found.scheduler
        lines.append(f"  {'scheduler':15} {type(scheduler.process).__name__}, the network predicts {scheduler.kind}")
    lines += [f"  note: {note}" for note in found.notes]
    return lines + [f"  - {problem}" for problem in found.problems]


def _memory(found: Folder, tensor: int) -> list[str]:
    shapes = {part.name: part.shapes for part in found.components if part.shapes is not None}
    if not shapes:
        return []
    meshes = [(chips // tensor, tensor) for chips in _CHIPS if chips % tensor == 0]
    if not meshes:
        raise ValueError(f"expected --tensor to divide one of {', '.join(map(str, _CHIPS))} chips, got {tensor}")
    header = "".join(f"{fsdp * tensor:>6} chip{'s' if fsdp * tensor > 1 else ' '}" for fsdp, tensor in meshes)
    lines = [f"Parameters in GiB per chip (fsdp x tensor = chips / {tensor} x {tensor}):", f"{'':26}{header}"]
    for dtype in _DTYPES:
        sizes = [inspection.bytes_per_chip(shapes, dtype, *mesh) for mesh in meshes]
        lines.append(f"  {dtype:24}" + "".join(f"{size / topology.GIB:11.2f}" for size in sizes))
        for chip in topology.CHIPS.values():
            fits = "".join(f"{'fits' if size <= _ROOM * chip.hbm else '-':>11}" for size in sizes)
            lines.append(f"    {chip.name:5} {chip.hbm / topology.GIB:.0f} GiB{'':11}{fits}")
    return lines


if __name__ == "__main__":
    flags.DEFINE_string("variant", None, "Of the files: fp16 for model.fp16.safetensors.")
    flags.DEFINE_integer("tensor", 1, "In how many parts each layer is split, of the chips.", lower_bound=1)
    cli.main_of_flags(main, __doc__, takes=("FOLDER",))
