"""Tiny networks, tokenizers and folders in the public formats, with random weights."""

import numpy as np
import torch


def randomised(net: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Every parameter drawn anew, also those that start at 0 or 1; in the place of its first, ready for inference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in sorted(net.named_parameters()):
            # what fans in keeps the size of activations; norms stay about 1
            scale = param[0].numel() ** -0.5 if param.ndim > 1 else 0.2
            noise = scale * torch.randn(param.shape, generator=generator, dtype=torch.float64)
            param.copy_(noise + (1.0 if param.ndim == 1 and name.endswith("weight") else 0.0))
    return net.eval()


def state(net: torch.nn.Module) -> dict[str, np.ndarray]:
    """A network's tensors as `names.from_torch` takes them."""
    return {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}
