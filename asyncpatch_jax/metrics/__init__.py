"""What images are measured by; the modules beside this one have more. Names are imported when they are used."""

from asyncpatch_jax.lazy import exports

_HOMES = {
    "REWARDS": "preferences",
    "Reward": "rewards",
    "classifier": "rewards",
    "combine": "rewards",
    "composed": "rewards",
    "from_callable": "rewards",
    "read_reward": "preferences",
}

__all__ = sorted(_HOMES)

__getattr__ = exports(__name__, _HOMES)
