"""The same model in another mode: copies that share its Variables and differ in attributes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, TypeVar

from treadle import _core
from treadle._graph.filters import Filter
from treadle._modules.module import Module, selected_modules
from treadle._public import publish
from treadle.errors import GraphError

__all__ = ["view", "view_info", "with_attributes"]

M = TypeVar("M", bound=Module)


def with_attributes(
    node: M, /, *, only: Filter = ..., raise_if_not_found: bool = True, **attributes: Any
) -> M:
    """A copy of a model with other attributes, which shares its Variables and arrays with it.

    What the copy does to its Variables happens to the model's: they are the same objects. Modules,
    containers and attributes are the copy's own.

    Args:
        node: the model.
        only: the modules whose attributes are set.
        raise_if_not_found: raise if some name is found in no module.
        **attributes: names and new values.

    Raises:
        GraphError: some name was not found.

    >>> import treadle as nnx
    >>> model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    >>> still = nnx.with_attributes(model, deterministic=True)
    >>> still[1].deterministic, model[1].deterministic
    (True, False)
    >>> still[0].kernel is model[0].kernel
    True
    """
    made = _sharing_variables(node)
    made.set_attributes(only, raise_if_not_found=raise_if_not_found, **attributes)
    return made


def view(node: M, /, *, only: Filter = ..., raise_if_not_found: bool = True, **modes: Any) -> M:
    """A copy of a model in another mode, which shares its Variables and arrays with it.

    As `with_attributes`, but each module decides what a mode means to it: those that have a method
    `set_view` are called with the modes that are parameters of it. A module whose `set_view` takes
    any keyword gets all of them.

    Args:
        node: the model.
        only: the modules that are asked.
        raise_if_not_found: raise if no module takes some mode.
        **modes: the modes, by parameter of `set_view`.

    Raises:
        GraphError: no module takes some mode.

    >>> import treadle as nnx
    >>> model = nnx.Sequential(nnx.BatchNorm(2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    >>> testing = nnx.view(model, deterministic=True, use_running_average=True)
    >>> testing[1].deterministic, testing[0].use_running_average, model[1].deterministic
    (True, True, False)
    """
    made = _sharing_variables(node)
    unused = set(modes)
    for module in _with_views(made, only):
        parameters = inspect.signature(module.set_view).parameters.values()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            taken = set(modes)
        else:
            taken = {parameter.name for parameter in parameters} & modes.keys()
        module.set_view(**{name: modes[name] for name in modes if name in taken})
        unused -= taken
    if unused and raise_if_not_found:
        raise GraphError(
            f"No module in {type(node).__name__} has a set_view that takes {', '.join(sorted(unused))}. "
            "nnx.view_info(model) says what there is; or pass raise_if_not_found=False."
        )
    return made


def view_info(node: Module, /, *, only: Filter = ...) -> str:
    """What `view` can set in a model: for each class with a `set_view` its parameters and their meaning.

    Args:
        node: the model.
        only: the modules that are asked.

    >>> import treadle as nnx
    >>> print(nnx.view_info(nnx.Sequential(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))))
    Dropout:
      deterministic: bool | None = None
        return the inputs as they are; None: as before.
    """
    classes = {type(module) for module in _with_views(node, only)}
    lines: list[str] = []
    for kind in sorted(classes, key=lambda kind: kind.__qualname__):
        lines.append(f"{kind.__qualname__}:")
        parameters = list(inspect.signature(kind.set_view).parameters.values())[1:]  # type: ignore[attr-defined]
        said = _said_of_parameters(inspect.getdoc(kind.set_view) or "")  # type: ignore[attr-defined]
        for parameter in parameters:
            lines.append(f"  {str(parameter).replace(chr(39), '')}")
            lines += [f"    {text}" for text in said.get(parameter.name, ())]
    return "\n".join(lines)


def _sharing_variables(node: M) -> M:
    children, structure = _core._flatten_node(node)
    return _core._unflatten_node(structure, children)


def _with_views(root: Any, only: Filter) -> Iterator[Any]:
    """The modules below `root` that `only` selects and that have views."""
    return (module for _, module in selected_modules(root, only) if hasattr(module, "set_view"))


def _said_of_parameters(doc: str) -> dict[str, list[str]]:
    """The lines about each parameter in the section ``Args:`` of a docstring."""
    said: dict[str, list[str]] = {}
    lines = iter(doc.splitlines())
    for line in lines:
        if line.strip() == "Args:":
            break
    name, indent = "", 0
    for line in lines:
        text = line.strip()
        depth = len(line) - len(line.lstrip())
        if text and depth == 0:
            break
        head, colon, rest = text.partition(":")
        if colon and (not name or depth <= indent) and head.isidentifier():
            name, indent = head, depth
            said[name] = [rest.strip()] if rest.strip() else []
        elif text and name:
            said[name].append(text)
    return said


publish(__all__, globals())
