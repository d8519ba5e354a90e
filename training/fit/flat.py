"""All parameters of a module as one tensor, so that what an optimiser does to each is one call."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def flat(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """One parameter [all elements] in place of the given ones, in their order; none for none.

    Each given parameter becomes a view of its part, and its gradient a view of the gradient's part: a backward pass
    adds to these, and what is done to the whole is done to them. Nothing may set a gradient to None.
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
