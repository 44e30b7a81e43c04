"""Diffusion with a noise level per cell: one time field, one loop, any schedule.

Public names are listed in the `.pyi` file beside this one, for tools and for readers; each is imported when it is used.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
