"""Whether the optional parts of manihot are installed; nothing is imported to find out."""

from __future__ import annotations

from importlib.util import find_spec

from manihot.errors import MissingExtraError


def has_train() -> bool:
    """Whether the extra `train` is installed, which brings torch and timm."""
    return all(find_spec(name) is not None for name in ("torch", "timm"))


def has_faiss() -> bool:
    """Whether the extra `large` is installed, which brings faiss."""
    return find_spec("faiss") is not None


def need_train(what: str) -> None:
    """MissingExtraError where the extra `train` isn't installed; `what` needs it, in words."""
    if not has_train():
        raise MissingExtraError(what)


def need_serve(what: str, *more: str) -> None:
    """MissingExtraError where the extra `serve`, or a package of it in `more`, isn't there; `what` needs it."""
    if not all(find_spec(name) is not None for name in ("fastapi", "uvicorn", *more)):
        raise MissingExtraError(what, "serve")
