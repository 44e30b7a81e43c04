"""Files of prompts that a command line names, and the part of one that it asks for."""

from absl import flags
from etils import epath

from asyncpatch_jax.data.prompts import Prompt, drawn, read_prompts

SEED = 42

flags.disclaim_key_flags()  # they belong to the main that asks for them, and show in its --help


def define() -> None:
    """Define --sample and --sample_seed."""
    flags.DEFINE_integer("sample", None, "So many prompts of the file, drawn by --sample_seed; all unless given.", 1)
    flags.DEFINE_integer("sample_seed", SEED, "Which prompts --sample draws, the same ones everywhere.")


def read(
    file: epath.PathLike, items: epath.PathLike | None = None, sample: int | None = None, seed: int = SEED
) -> list[Prompt]:
    """`read_prompts` of a file, and of these `drawn` ones if `sample` says how many.

    Raises:
        ValueError: as both; names the file.
    """
    prompts = read_prompts(file, items)
    if sample is None:
        return prompts
    try:
        return drawn(prompts, sample, seed)
    except ValueError as error:
        raise ValueError(f"{error}, in {file}") from error


def texts(file: epath.PathLike, sample: int | None = None, seed: int = SEED) -> list[str]:
    """The texts of `read`; of no file, "", none.

    Raises:
        ValueError: as `read`; a sample of no file.
    """
    if not file:
        if sample is not None:
            raise ValueError(f"expected a file of prompts to draw {sample} from, got none")
        return []
    return [prompt.text for prompt in read(file, None, sample, seed)]
