"""The --seed of all mains: taken whole, and refused where JAX would take it for another one."""

from absl import flags

from asyncpatch_jax.keys import LARGEST_SEED

flags.disclaim_key_flags()  # it belongs to the main that asks for it, and shows in its --help


def define(about: str) -> flags.FlagHolder[int]:
    """Define --seed, 0 unless given; outside of 0 ... 2^64 - 1 it is refused before anything is done."""

    def fits(seed: int) -> bool:
        if not 0 <= seed <= LARGEST_SEED:
            raise flags.ValidationError(f"expected 0 <= --seed <= {LARGEST_SEED} (2^64 - 1), got {seed}")
        return True

    holder = flags.DEFINE_integer("seed", 0, about)
    flags.register_validator("seed", fits)
    return holder
