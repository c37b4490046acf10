"""Discovery by file name: a plugin is a module in a package, and its name is the file's name.

This module knows nothing of sources, engines or networks; it lists files and imports one.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from rtseg.errors import ConfigError


def names(package: str) -> list[str]:
    """Names of all plugins in a package such as "rtseg.engine", sorted.

    Files that begin with `_` and those that the package lists in `NO_PLUGINS` are skipped.
    Nothing is imported but the package itself.
    """
    module = importlib.import_module(package)
    shared: tuple[str, ...] = getattr(module, "NO_PLUGINS", ())
    found = (m.name for m in pkgutil.iter_modules(module.__path__))
    return sorted(name for name in found if not name.startswith("_") and name not in shared)


def load(package: str, name: str) -> ModuleType:
    """Imports the plugin `name` of `package`.

    Raises:
        ConfigError: there is no such plugin; the message lists those there are.
    """
    known = names(package)
    if name not in known:
        kind = package.rpartition(".")[2]
        raise ConfigError(f"unknown {kind} {name!r}: choose one of {', '.join(known)}")
    return importlib.import_module(f"{package}.{name}")
