"""What images are turned into before sets of them are compared, with what a reader of the numbers must be told."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

INCEPTION = "Inception pool3"  # only distances of these features are called FID and KID


class Features(NamedTuple):
    """A function of images with its name.

    name: which layer of which network.
    resize: how images became the network's input: the rule, and what is rounded. Numbers of two rules are not
        comparable (Parmar et al. 2022, arXiv 2104.11222).
    weights: sha256 of the file with its parameters; "" if there is none.
    call: uint8 images of one size [n, h, w, 3] or [n, h, w, 1], any number of them, to float32 [n, d]. It runs on this
        process' devices, and knows nothing of other processes.
    width: d, if it is known before a call.
    """

    name: str
    resize: str
    weights: str
    call: Callable[[UInt8[np.ndarray, "n h w c"]], Float[np.ndarray, "n d"]]
    width: int | None = None
