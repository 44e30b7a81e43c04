"""Guidance: denoisers in, denoiser out. It owns *which* prediction a solver sees."""

from asyncpatch_jax.sampling.guidance.branches import Branches, Pair, one_call, separate_calls, two_calls
from asyncpatch_jax.sampling.guidance.context import input_guidance, look_ahead
from asyncpatch_jax.sampling.guidance.semantic import semantic_aware
from asyncpatch_jax.sampling.guidance.text import cfg_plus_plus, classifier_free, smoothed_energy

__all__ = [
    "Branches",
    "Pair",
    "cfg_plus_plus",
    "classifier_free",
    "input_guidance",
    "look_ahead",
    "one_call",
    "semantic_aware",
    "separate_calls",
    "smoothed_energy",
    "two_calls",
]
