"""Public text-to-image networks as Linen modules: diffusers' folders read, written, and told a time field."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
