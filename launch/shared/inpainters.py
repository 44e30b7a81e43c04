"""Inpainting methods by name, as a command line says them, for a run that can serve them."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

from asyncpatch_jax.sampling import inpainting
from asyncpatch_jax.sampling.inpainting import Inpainter
from launch.shared import build

Settings = Mapping[str, str]


def _asyncpatch(run: build.Run, settings: Settings) -> Inpainter:
    if settings:
        named = ", ".join(settings)
        raise ValueError(f"expected no settings of asyncpatch, whose flags are --solver and --eta, got {named}")
    if run.config.times.name == "synchronous":
        others = ", ".join([*(["supervised"] if run.model.reference else []), *_PLAIN])
        raise ValueError(
            "expected a run that was trained on time fields for the method asyncpatch, got one that was trained on "
            f"synchronous times; launch.inpaint has other methods for it: {others}"
        )
    return inpainting.AsyncPatch(build.solver(run.config, run.process), build.field_grid(run.config))


def _supervised(run: build.Run, settings: Settings) -> Inpainter:
    if settings:
        named = ", ".join(settings)
        raise ValueError(f"expected no settings of supervised, whose flags are --solver and --eta, got {named}")
    if not run.model.reference:
        raise ValueError(
            "expected a run of --config.supervised.masks=... for the method supervised, got one whose network is not "
            "shown what is known"
        )
    if run.config.sample.input_guidance:
        raise ValueError(
            "expected no input guidance with the method supervised, whose network is told one time an image, got "
            f"{run.config.sample.input_guidance}"
        )
    return inpainting.Supervised(build.solver(run.config, run.process), build.field_grid(run.config))


def _rad(run: build.Run, settings: Settings) -> Inpainter:
    if run.config.times.name not in ("rad", "perlin"):
        raise ValueError(
            "expected a run of --config.times.name=rad (or perlin) for the method rad, got one that was trained on "
            f"{run.config.times.name!r} times"
        )
    if run.config.sample.input_guidance:
        raise ValueError("expected input guidance with the method asyncpatch alone, got it with rad")
    given = {key: _number("rad", key, value, {"eta": float}) for key, value in settings.items()}
    return inpainting.RAD(**given, cells=build.field_grid(run.config))


def _settled(method: type, name: str) -> Callable[[build.Run, Settings], Inpainter]:
    """A method whose settings are numbers; it asks a network about cells that are all at one time, as any may be."""

    def make(run: build.Run, settings: Settings) -> Inpainter:
        if run.config.sample.input_guidance:
            raise ValueError(f"expected input guidance with the method asyncpatch alone, got it with {name}")
        kinds = {field.name: field.type for field in dataclasses.fields(method)}
        return method(**{key: _number(name, key, value, kinds) for key, value in settings.items()})

    return make


def _number(name: str, key: str, value: str, kinds: Mapping[str, Any]) -> float | int:
    if key not in kinds:
        raise ValueError(f"expected settings of {name} out of {', '.join(kinds)}, got {key!r}")
    try:
        return kinds[key](value)
    except ValueError:
        wanted = "a whole number" if kinds[key] is int else "a number"
        raise ValueError(f"expected {name}:{key} as {wanted}, got {value!r}") from None


_PLAIN = {
    "repaint": inpainting.RePaint,
    "ddrm": inpainting.DDRM,
    "ddnm": inpainting.DDNM,
    "mcg": inpainting.MCG,
    "dps": inpainting.DPS,
    "pigdm": inpainting.PiGDM,
    "score_sde": inpainting.ScoreSDE,
    "deqir": inpainting.DeqIR,
}
# each makes a method for a run, or says by a ValueError why that cannot serve it
METHODS: dict[str, Callable[[build.Run, Settings], Inpainter]] = {
    "asyncpatch": _asyncpatch,
    "supervised": _supervised,
    "rad": _rad,
    **{name: _settled(kind, name) for name, kind in _PLAIN.items()},
}


def method(run: build.Run, text: str = "") -> Inpainter:
    """The method of a text such as "dps" or "dps:step_size=0.3,eta=1", for a run and its number of steps.

    Without one, what the run was trained for: supervised, or asyncpatch.

    Raises:
        ValueError: no such method or setting, or one that the run, or its number of steps, does not go with.
    """
    name, _, rest = (text or ("supervised" if run.model.reference else "asyncpatch")).partition(":")
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"expected --method out of {', '.join(METHODS)}, got {name!r}{hint}")
    pairs = [part.partition("=") for part in rest.split(",")] if rest else []
    if any(not (key and equals and value) for key, equals, value in pairs):
        raise ValueError(f"expected --method={name}:setting=value,setting=value, got {text!r}")
    settings = {key.strip(): value.strip() for key, _, value in pairs}
    if len(settings) < len(pairs):
        raise ValueError(f"expected each setting of {name} once, got {text!r}")
    made = METHODS[name](run, settings)
    steps = run.config.sample.steps
    try:
        made.calls(steps)
    except ValueError as error:  # a journey up, whatever the method calls it
        raise ValueError(f"{error}, for {text} in {steps} steps (--steps, or {name}'s settings)") from error
    return made
