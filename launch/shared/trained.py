"""The flags that name a trained run and say how to sample from it: the same for every main that needs one."""

from collections.abc import Callable
from functools import partial
from typing import Any

from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags

from asyncpatch_jax.sampling.schedules.tpm import TPMSchedule
from asyncpatch_jax.texts import composed
from asyncpatch_jax.training import policies
from launch.shared import build, seeding, texts

flags.disclaim_key_flags()  # they belong to the main that asks for them, and show in its --help

# of config.sample, each with its own flag
_SETTINGS = {
    "solver": (flags.DEFINE_string, "Solver: ddim, ddpm, euler, heun, dpm2m"),
    "eta": (flags.DEFINE_float, "Share of fresh noise of ddim"),
    "steps": (flags.DEFINE_integer, "Steps that each cell takes"),
    "grid": (flags.DEFINE_string, "Times of the steps: linear, shifted, cosine, logsnr"),
    "guidance": (flags.DEFINE_float, "Scale of classifier-free guidance, 1 for none"),
    "input_guidance": (flags.DEFINE_float, "Scale of guidance by what is known, 0 for none"),
}


def define_fall_back() -> None:
    """Define --fall_back, for every main that reads checkpoints."""
    flags.DEFINE_bool(
        "fall_back", True, "If the newest checkpoint is damaged, use the newest whole one; --nofall_back refuses."
    )


def define_flags(*settings: str) -> None:
    """Define --workdir, --checkpoint, --autoencoder, --seed, --fall_back, and the named ones of `config.sample`."""
    flags.DEFINE_string("workdir", None, "Folder of a trained run; --config's unless given.")
    flags.DEFINE_integer("checkpoint", None, "Step of the checkpoint to use; the newest unless given.")
    flags.DEFINE_string("autoencoder", None, "Of a run in latents: where its autoencoder lies now, if it was moved.")
    seeding.define("Seed of all noise.")
    define_fall_back()
    for name in settings:
        define, about = _SETTINGS[name]
        define(name, None, f"{about}; the run's own unless given.")


def define_prompts() -> None:
    """Define --prompt and --text_encoder, for mains that make images of a run that learned from texts."""
    flags.DEFINE_multi_string("prompt", [], "Of a run with texts: what to show; several, in turn.")
    flags.DEFINE_string("text_encoder", None, "Of a run with texts: where its encoder lies now, if it was moved.")


def load() -> build.Run:
    """The run of the flags, its sampling settings replaced by those that were given; sets --workdir if it was not.

    With --prompt, where a main has it, what the run's labels are the indices of.

    Raises:
        ValueError: a setting that does not exist.
        FileNotFoundError: no run or no such checkpoint in it.
    """
    values = flags.FLAGS
    values.workdir = values.workdir or values.config.workdir
    where = {"fall_back": values.fall_back, "autoencoder": values.autoencoder}
    run = build.load_run(values.workdir, values.checkpoint, **where)
    overrides = config_flags.get_override_values(values["config"])
    run.config.update_from_flattened_dict({name: v for name, v in overrides.items() if name.startswith("sample.")})
    given = values.flag_values_dict()
    run.config.sample.update({name: given[name] for name in _SETTINGS if given.get(name) is not None})
    if given.get("prompt"):
        run = run._replace(encoder=texts.of_run(run.config, run.mesh, given["text_encoder"])).told(given["prompt"])
    elif build.text_width(run.config) and given.get("guidance") is None:
        run.config.sample.guidance = 1.0  # without a prompt the run's own guidance has no direction
    check(run)
    return run


def settings(run: build.Run) -> dict[str, Any]:
    """What the images of a run depend on, beside their own flags: for the record of what was made."""
    found = {"workdir": str(flags.FLAGS.workdir), "checkpoint": run.step, "sample": run.config.sample.to_dict()}
    return {**found, "prompts": run.prompts.texts} if run.prompts else found


def follow(folder: str | None, mesh: Mesh | None, gamma: float) -> Callable[..., TPMSchedule] | None:
    """Of the flags --tpm and --gamma: `(base, known) -> schedule` that follows a trained policy; None without one.

    Raises:
        ValueError, FileNotFoundError: as `policies.load`.
    """
    if folder is None:
        return None
    return partial(policies.load(folder, mesh=mesh, fall_back=flags.FLAGS.fall_back).schedule, gamma=gamma)


def check(run: build.Run) -> None:
    """Refuse sampling settings before anything is computed.

    Raises:
        ValueError: unknown solver or grid, no steps, or guidance of a model without classes.
    """
    settings = run.config.sample
    build.solver(run.config, run.process)
    build.grid(run.config, settings.steps, run.process)
    if settings.guidance != 1.0 and not run.kinds:
        what = "without a --prompt" if build.text_width(run.config) else "for a model without classes"
        raise ValueError(f"expected --guidance=1 {what}, got {settings.guidance}")


def labels(run: build.Run, names: list[str]) -> list[int]:
    """Classes by name, as it looks, or number.

    Raises:
        ValueError: a class that the model does not have, or any for a model without classes.
    """
    indices = {str(i): i for i in range(run.num_classes)} | {
        composed(name): i for i, name in enumerate(run.class_names)
    }
    names = [composed(name) for name in names]
    unknown = [name for name in names if name not in indices or not run.num_classes]
    if unknown:
        there = ", ".join(run.class_names[:20]) if run.num_classes else "none (the model was trained without)"
        raise ValueError(f"expected classes out of {there}, got {', '.join(unknown)}")
    return [indices[name] for name in names]


def label(run: build.Run, name: str | None) -> int:
    """The only prompt; or one class, or the index of "no class", where the run's own guidance has no direction.

    Raises:
        ValueError: as `labels`; or --guidance towards no class.
    """
    if run.prompts is not None:
        if len(run.prompts.texts) > 1 or name is not None:
            raise ValueError(f"expected one --prompt and no --label, got {len(run.prompts.texts)} and {name}")
        return 0
    if name is not None:
        return labels(run, [name])[0]
    if flags.FLAGS["guidance"].value not in (None, 1.0):
        raise ValueError(f"expected a --label for --guidance={flags.FLAGS['guidance'].value}, got none")
    run.config.sample.guidance = 1.0
    return run.num_classes
