"""Networks `(x, t, cond) -> (out, aux)` that take a time field; and the autoencoder of their latents."""

from asyncpatch_jax.models.dit import DiT
from asyncpatch_jax.models.localised import LocalisedAutoencoder
from asyncpatch_jax.models.tpm import TPM
from asyncpatch_jax.models.unet import UNet

__all__ = ["TPM", "DiT", "LocalisedAutoencoder", "UNet"]
