"""reeltag trains video taggers from frame features and ships an ensemble of them as one small file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reeltag.predict import Predictor, load
    from reeltag.sharing import from_pretrained

__version__ = "0.1.0"
__all__ = ["Predictor", "from_pretrained", "load"]


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, so `import reeltag` and `reeltag --help` do without it.
    if name in __all__:
        from reeltag import predict, sharing

        return getattr(sharing if name == "from_pretrained" else predict, name)
    raise AttributeError(f"module 'reeltag' has no attribute {name!r}")
