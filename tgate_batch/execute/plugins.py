"""Plugins: a user's families and metrics, from modules that a config names (``plugins``).

A plugin is code: those that a stranger's output names are imported only if the user names them too.
"""

import importlib
import traceback
from collections.abc import Iterable

from tgate_batch.errors import UserError, one_line
from tgate_batch.models import catalogue
from tgate_batch.score import registry


def register(modules: Iterable[str]) -> None:
    """Imports each module and registers its ``FAMILY``, its ``METRIC``, or both.

    Raises UserError for a module that cannot be imported or has neither.
    """
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"plugins: {name} cannot be imported ({one_line(error)}). Fix: give a module "
                "that Python finds"
            ) from None
        except (Exception, SystemExit) as error:
            raise UserError(
                f"plugins: {name} cannot be imported ({_reason(error)}). Fix: correct the module"
            ) from None
        if not hasattr(module, "FAMILY") and not hasattr(module, "METRIC"):
            raise UserError(f"plugins: {name} has neither a FAMILY nor a METRIC. Fix: define one")
        if hasattr(module, "FAMILY"):
            catalogue.register(name)
        if hasattr(module, "METRIC"):
            registry.register(name)


def _reason(error: BaseException) -> str:
    """Returns what a module raised while it was imported, and where."""
    reason = one_line(f"{type(error).__name__}: {error}".rstrip(": "))
    if isinstance(error, SyntaxError):  # its message has the position
        return reason
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{reason}, at {frame.filename}:{frame.lineno}"
