"""Feature kinds of all modules in `serve.features.kinds`, by the names that surfaces give them."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from serve.features import kinds
from serve.features.kind import Kind

for module in iter_modules(kinds.__path__):
    import_module(f"{kinds.__name__}.{module.name}")
KINDS = Kind.registry
