"""A function chosen by the class of its first argument, in a form that a compiler can trace."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any, Generic, TypeVar, get_type_hints, overload

__all__ = ["ClassDispatch", "class_dispatch"]

_Result = TypeVar("_Result")
_Function = TypeVar("_Function", bound=Callable[..., Any])


class ClassDispatch(Generic[_Result]):
    """What `functools.singledispatch` is, but that `torch.compile` follows a call through it without a graph break.

    Attributes:
        registry: The functions by class; that of `object` is the one decorated.
    """

    def __init__(self, default: Callable[..., _Result]) -> None:
        self.registry: dict[type, Callable[..., _Result]] = {object: default}
        update_wrapper(self, default)

    @overload
    def register(self, family: type[Any]) -> Callable[[_Function], _Function]: ...

    @overload
    def register(self, family: type[Any], function: _Function) -> _Function: ...

    @overload
    def register(self, family: _Function) -> _Function: ...

    def register(self, family: Any, function: Any = None) -> Any:
        """Use a function for a class and those under it.

        Given both, or as a decorator: with the class, or bare where the function's first argument is annotated.
        """
        if function is not None:
            self.registry[family] = function
            return function
        if isinstance(family, type):
            return partial(self.register, family)
        known = [hint for name, hint in get_type_hints(family).items() if name != "return"]
        if not known or not isinstance(known[0], type):
            raise TypeError(
                f"{family!r} has no annotation that names a class; annotate its first argument, or register it with "
                "the class."
            )
        self.registry[known[0]] = family
        return family

    def dispatch(self, family: type) -> Callable[..., _Result]:
        """The function used for a class: its own, or that of the nearest class above it."""
        for known in family.__mro__:
            function = self.registry.get(known)
            if function is not None:
                return function
        raise TypeError(f"{family.__name__} is not a class of objects.")

    def __call__(self, first: object, *arguments: Any, **keywords: Any) -> _Result:
        return self.dispatch(type(first))(first, *arguments, **keywords)


def class_dispatch(default: Callable[..., _Result]) -> ClassDispatch[_Result]:
    """Decorator: let functions registered for classes take the place of this one, by the first argument's class."""
    return ClassDispatch(default)
