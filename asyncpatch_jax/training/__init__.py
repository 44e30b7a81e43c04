"""Training: times that vary in space, losses, likelihood bound, step, loop, checkpoints, GRPO and policies."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
