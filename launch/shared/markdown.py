"""Tables and numbers of the pages that commands write."""

from collections.abc import Iterable, Sequence

import numpy as np


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def spread(numbers: Iterable[float], digits: int = 3) -> str:
    """Mean ± standard deviation, of seeds; of one, the number alone."""
    found = np.array(list(numbers))
    more = f" ± {found.std(ddof=1):.{digits}f}" if len(found) > 1 else ""
    return f"{found.mean():.{digits}f}{more}"
