"""Methods that an attribute may replace, but not break."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


class _Kept:
    """A method whose place in an instance takes only what can be called.

    A descriptor that is asked when the attribute is set, so that no other attribute pays for it.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self.function
        own = vars(instance)
        name = self.function.__name__
        return own[name] if name in own else MethodType(self.function, instance)

    def __set__(self, instance: Any, value: Any) -> None:
        name = self.function.__name__
        if not callable(value):
            kind = type(instance).__name__
            raise AttributeError(
                f"{kind}.{name} is a method, which an attribute of this name would hide: "
                f"{kind}().{name}() would then fail. Name the attribute otherwise, such as "
                f"`is_{name}` or `{name}_`"
            )
        vars(instance)[name] = value

    def __delete__(self, instance: Any) -> None:
        own = vars(instance)
        if self.function.__name__ not in own:
            raise AttributeError(self.function.__name__)
        del own[self.function.__name__]


def kept_method(function: F) -> F:
    """Refuse attributes of the method's name that cannot be called, when they are set.

    >>> import treadle as nnx
    >>> nnx.Module().train = True
    Traceback (most recent call last):
    ...
    AttributeError: Module.train is a method, which an attribute of this name would hide: ...
    """
    return cast("F", _Kept(function))
