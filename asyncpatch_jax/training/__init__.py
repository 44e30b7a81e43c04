"""Training: times with spatial variation, losses, the likelihood bound, the step and its loop, checkpoints, GRPO and its policies."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
