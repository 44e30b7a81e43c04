"""Whether a folder has all that images are made of, and whether its parts fit each other; no parameter is needed."""

from asyncpatch_jax.pretrained.folders import edges, families
from asyncpatch_jax.pretrained.folders.loading import Pretrained, latent_channels
from asyncpatch_jax.pretrained.text.prompts import OPTIONAL, expect_tokenizers


def check_complete(pretrained: Pretrained) -> None:
    """Refuse a folder that could not make an image.

    Args:
        pretrained: from `loading.load_pretrained`, or from `loading.describe`.

    Raises:
        ValueError: a component or a tokenizer that is missing; or as `edges.check_parts`.
    """
    family = pretrained.family
    # without an autoencoder, what the network makes must be a picture
    optional = OPTIONAL | ({"vae"} if latent_channels(pretrained) in (1, 3) else set())
    needed = [name for name in families.COMPONENTS[family] if name not in optional]
    if missing := [name for name in needed if name not in pretrained.components]:
        raise ValueError(f"expected the components {', '.join(needed)} of {family}, got none for {', '.join(missing)}")
    expect_tokenizers(family, pretrained.components, pretrained.tokenizers)
    edges.check_parts(family, pretrained.components, pretrained.scheduler)
