"""Kernels that can be differentiated, where a library's faster ones cannot."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def twice_differentiable(policy: Any) -> Iterator[None]:
    """Through kernels that have a second derivative, which the Fisher product takes.

    Fused attention has none, and neither have the LSTMs of oneDNN and cuDNN; their convolutions, which have, stay.
    """
    is_recurrent = any(isinstance(module, nn.RNNBase) for module in policy.modules())
    libraries: tuple[Any, ...] = (th.backends.mkldnn, th.backends.cudnn) if is_recurrent else ()
    before = [library.enabled for library in libraries]
    try:
        for library in libraries:
            library.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for library, enabled in zip(libraries, before, strict=True):
            library.enabled = enabled


@contextmanager
def differentiable(policy: Any) -> Iterator[None]:
    """Let a policy in evaluation mode be differentiated: cuDNN's recurrent layers are in training mode only.

    Without dropout that is the same function. With it the layers run without cuDNN.
    """
    if not (th.is_grad_enabled() and th.cuda.is_initialized() and policy.device.type == "cuda"):  # type: ignore[no-untyped-call]
        yield
        return
    layers = [m for m in policy.modules() if isinstance(m, nn.RNNBase) and not m.training]
    enabled = th.backends.cudnn.enabled
    has_dropout = any(layer.dropout > 0.0 for layer in layers)
    try:
        if has_dropout:
            th.backends.cudnn.enabled = False
        else:
            for layer in layers:
                layer.training = True
        yield
    finally:
        th.backends.cudnn.enabled = enabled
        for layer in layers:
            layer.training = False
