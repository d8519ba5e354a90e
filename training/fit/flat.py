"""Flatten a module's parameters into one tensor, so that an optimiser step is one call."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def flat(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return one parameter [all elements] in place of the given ones, in order; [] for none.

    Each given parameter becomes a view of its part, and its gradient a view of the gradient's part.
    A backward pass therefore adds to the whole gradient, and a step on the whole changes every
    part. Never set a gradient to None.
    """
    parts = list(parameters)
    if not parts:
        return []
    value = torch.cat([part.detach().reshape(-1) for part in parts])
    gradient = torch.zeros_like(value)
    sizes = [part.numel() for part in parts]
    pieces = zip(parts, value.split_with_sizes(sizes), gradient.split_with_sizes(sizes), strict=True)
    for part, of_value, of_gradient in pieces:
        part.data, part.grad = of_value.view_as(part), of_gradient.view_as(part)
    whole = nn.Parameter(value)
    whole.grad = gradient
    return [whole]
