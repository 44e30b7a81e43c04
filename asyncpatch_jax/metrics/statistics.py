"""Reference statistics of features in files: mean and covariance, as pytorch-fid and ADM's evaluator have them.

Both are `.npz` with `mu` [d] and `sigma` [d, d]. Files that are written here are read by pytorch-fid too, and say
besides of how many images, which features and which resize rule they are; what a file does not say is unknown.
"""

import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float

from asyncpatch_jax import files
from asyncpatch_jax.metrics.features import Features
from asyncpatch_jax.metrics.moments import Moments

# of the largest entry or eigenvalue, that rounding to float32 can make of 0
_ROUNDING = 1e-5


class Statistics(NamedTuple):
    """What a set of images is compared with.

    mean, covariance: of the features, float64.
    count: of images; None if the file does not say.
    features, resize: as `Features` names them; None if the file does not say.
    sha256: of the file.
    """

    mean: Float[np.ndarray, "d"]
    covariance: Float[np.ndarray, "d d"]
    count: int | None  # type: ignore[assignment]  # hides tuple.count
    features: str | None
    resize: str | None
    sha256: str


def holds_statistics(path: epath.PathLike) -> bool:
    """Whether a file is an `.npz` with `mu` and `sigma`. One of ADM's may hold images (`arr_0`) beside them."""
    path = epath.Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            return False
        with zipfile.ZipFile(stream) as archive:
            return {"mu.npy", "sigma.npy"} <= set(archive.namelist())


def read_statistics(path: epath.PathLike) -> Statistics:
    """The statistics in a file of pytorch-fid's, of ADM's (its `mu_s` and `sigma_s` are of other features and are left
    alone), or of `write_statistics`. Nothing is unpickled.

    Raises:
        ValueError: no such file, or one with anything else than a finite mean and a covariance that fits it, which is
            symmetric and has no negative eigenvalues: names it.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise ValueError(f"expected statistics in {path}, got no file")
    if not holds_statistics(path):
        raise ValueError(f"expected an .npz with mu and sigma in {path}, got something else")
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
        mean, covariance = (_numbers(content, name, path) for name in ("mu", "sigma"))
        count = _note(content, "count", path)
        texts = [_note(content, name, path) for name in ("features", "resize")]
    _check(mean, covariance, path)
    if count is not None and (not count.isdecimal() or int(count) < 2):
        raise ValueError(f"expected a count of at least 2 images in {path}, got {count}")
    number = None if count is None else int(count)
    return Statistics(mean, covariance, number, texts[0], texts[1], files.sha256(path))


def write_statistics(path: epath.PathLike, moments: Moments, features: Features, *, overwrite: bool = False) -> None:
    """The moments of features as a file that `read_statistics` and pytorch-fid read.

    Raises:
        ValueError: `path` exists and `overwrite` is not set, or fewer than two images.
        OSError: it cannot be written.
    """
    covariance = moments.covariance
    with files.writing(path, overwrite=overwrite) as stream:
        np.savez(
            stream,
            mu=moments.mean,
            sigma=covariance,
            count=np.array(moments.count),
            features=np.array(features.name),
            resize=np.array(features.resize),
        )


def _array(content: Any, name: str, path: epath.Path) -> np.ndarray:
    try:
        return content[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"expected an array as {name} in {path}, got what cannot be read: {error}") from error


def _numbers(content: Any, name: str, path: epath.Path) -> Float[np.ndarray, "..."]:
    values = _array(content, name, path)
    if values.dtype.kind != "f":
        raise ValueError(f"expected floats as {name} in {path}, got {values.dtype}")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"expected finite numbers as {name} in {path}, got {(~np.isfinite(values)).sum()} others")
    return values


def _note(content: Any, name: str, path: epath.Path) -> str | None:
    """What a file says beside its numbers, in words; None if it does not."""
    if name not in content:
        return None
    value = _array(content, name, path)
    if value.shape != () or value.dtype.kind not in "Ui":
        raise ValueError(f"expected one number or text as {name} in {path}, got {value.dtype} {list(value.shape)}")
    return str(value)


def _check(mean: np.ndarray, covariance: np.ndarray, path: epath.Path) -> None:
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean),) * 2:
        raise ValueError(
            f"expected mu [d] and sigma [d, d] in {path}, got {list(mean.shape)} and {list(covariance.shape)}"
        )
    most = np.abs(covariance).max()
    if np.abs(covariance - covariance.T).max() > _ROUNDING * most:
        raise ValueError(f"expected a symmetric sigma in {path}, got one that is not")
    values = np.linalg.eigvalsh(covariance)
    if values[0] < -_ROUNDING * max(values[-1], 0.0) or values[-1] < 0:
        raise ValueError(f"expected a sigma without negative eigenvalues in {path}, got {values[0]:.3g}")
