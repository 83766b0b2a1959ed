"""Self-damaging contrastive learning: the method alone, on torch, torchvision and numpy.

The names of `sdclr.api` are imported when one of them is first used. So what needs no network, as
the list of methods in `sdclr.methods`, is read without torch.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdclr.api import *  # noqa: F403
    from sdclr.api import __all__ as __all__

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Return a public name of the library; its modules are found by the import system."""
    place = Path(__file__).parent / name
    is_module = place.is_dir() or place.with_suffix(".py").exists()
    if is_module or (name.startswith("__") and name != "__all__"):
        raise AttributeError(f"module 'sdclr' has no attribute {name!r}")
    return getattr(import_module("sdclr.api"), name)


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return ["__version__", *import_module("sdclr.api").__all__]
