"""What lies outside of the package and is named in a recipe: ``module:function``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def is_plugin(name: str) -> bool:
    """Whether ``name`` has the form ``module:function``."""
    return ":" in name


def load_plugin(name: str) -> Any:
    """The object that ``module:function`` names; its module is imported.

    Built-in forms are named the same way, so that nothing inside of the package has a door of its own.

    Args:
        name: ``package.module:attribute``. The module must be importable: installed, or in the folder from which
            ``pcm-rl`` was started.

    Raises:
        ValueError: If the name has another form, the module cannot be imported or has no such attribute; the message
            says which.
    """
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute.isidentifier():
        raise ValueError(f"expected module:function, got {name!r}")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{name}: {error}; modules are looked for where pcm-rl was started and in what is installed"
        ) from error
    if not hasattr(found, attribute):
        raise ValueError(f"{name}: module {module} has no {attribute!r}")
    return getattr(found, attribute)


def load_callable(name: str) -> Callable[..., Any]:
    """:func:`load_plugin` of something that can be called: a function or a class.

    Raises:
        ValueError: As :func:`load_plugin`, or if it cannot be called.
    """
    found = load_plugin(name)
    if not callable(found):
        raise ValueError(f"{name} is {found!r}, which cannot be called; expected a function or a class")
    function: Callable[..., Any] = found
    return function
