"""The functions that pickles name. Their names and what they take stay as they are.

A pickle of a Variable, a module, a `VariableState`, a `GraphDef`, a lifted class or a module's
transformed function calls one of these when it is loaded. Each is given the format that the pickle
was written in, and refuses one that it does not know. Nobody else needs to call them.

>>> import pickle, pickletools
>>> import treadle as nnx
>>> data = pickle.dumps(nnx.Param(1.0), protocol=0)
>>> [name for opcode, name, _ in pickletools.genops(data) if opcode.name == "GLOBAL"]
['treadle.pickles variable', 'treadle Param']
"""

from __future__ import annotations

from typing import Any, TypeVar

from treadle._core import ObjectNode, VariableCell, VariableStateAux
from treadle._core import _unpickle_graphdef as graphdef
from treadle._core import _unpickle_variable_state as variable_state
from treadle.errors import GraphError

__all__ = [
    "VariableStateAux",
    "graphdef",
    "node",
    "options",
    "transformed",
    "variable",
    "variable_state",
]

N = TypeVar("N", bound=ObjectNode)
V = TypeVar("V", bound=VariableCell)

VariableStateAux.__doc__ = """Type and metadata of a `VariableState`, as JAX compares them between trees.

>>> import treadle as nnx
>>> from treadle import pickles
>>> pickles.VariableStateAux(nnx.Param, {"tag": "scale"})
(Param, {'tag': 'scale'})
"""

# Raised when what `variable` or `node` is given changes its meaning.
VERSION = 1


def variable(version: int, kind: type[V], value: Any, metadata: dict[str, Any], /) -> V:
    """The Variable of a pickle; no hook runs.

    Args:
        version: the format.
        kind: the Variable type.
        value: the raw value.
        metadata: all metadata.

    Raises:
        GraphError: the format is another one than this treadle reads.

    >>> import treadle as nnx
    >>> from treadle import pickles
    >>> pickles.variable(1, nnx.Param, 2.0, {"tag": "scale"}).tag
    'scale'
    """
    if version != VERSION:
        raise _other_version("Variable", version)
    made = VariableCell.__new__(kind)
    made._init_cell(value, metadata)
    return made


def node(version: int, kind: type[N], /) -> N:
    """The module or other `Object` of a pickle, before its attributes are set.

    Args:
        version: the format.
        kind: its class.

    Raises:
        GraphError: the format is another one than this treadle reads.

    >>> import treadle as nnx
    >>> from treadle import pickles
    >>> pickles.node(1, nnx.Module)
    Module()
    """
    if version != VERSION:
        raise _other_version(kind.__name__, version)
    return kind.__new__(kind)


def options(version: int, arguments: dict[str, Any], by_default: tuple[str, ...], /) -> Any:
    """The parameters of a transform, as a lifted class keeps them.

    Args:
        version: the format.
        arguments: the parameters by name.
        by_default: names of those that nobody gave.

    Raises:
        GraphError: the format is another one than this treadle reads.

    >>> from treadle import pickles
    >>> pickles.options(1, {"prevent_cse": True}, ())
    Options(prevent_cse=True)
    """
    from treadle.transforms._lifted import Options

    if version != VERSION:
        raise _other_version("lifted class", version)
    return Options.loaded(arguments, by_default)


def transformed(
    version: int,
    name: str,
    function: Any,
    args: tuple[Any, ...],
    options: tuple[tuple[str, Any], ...],
    /,
) -> Any:
    """What a transform makes of a function, where a module held that.

    Args:
        version: the format.
        name: the transform's, in `treadle`.
        function: what is transformed.
        args: the transform's other positional arguments.
        options: its keyword arguments.

    Raises:
        GraphError: the format is another one than this treadle reads.

    >>> from treadle import pickles
    >>> pickles.transformed(1, "grad", lambda x: x**2, (), (("allow_int", True),))(3.0)
    Array(6., dtype=float32, weak_type=True)
    """
    from treadle import transforms

    if version != VERSION:
        raise _other_version("transformed function", version)
    return getattr(transforms, name)(function, *args, **dict(options))


def _other_version(what: str, version: object) -> GraphError:
    return GraphError(
        f"this {what} was pickled in format {version}, and this treadle reads format {VERSION}"
    )
