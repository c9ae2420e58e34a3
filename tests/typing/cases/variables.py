"""Variables: the value, indexing, operators and metadata."""

from typing import reveal_type

import jax
import numpy as np

import treadle as nnx


class Temperature(nnx.Variable[float]):
    pass


def arrays(x: jax.Array, v: nnx.VariableState) -> None:
    p = nnx.Param(x, tag="scale")
    reveal_type(p)  # Param[Array]
    reveal_type(nnx.BatchStat(x))  # BatchStat[Array]
    reveal_type(nnx.Param[jax.Array](x))  # Param[Array]
    reveal_type(p.value)  # Array
    reveal_type(p.raw_value)  # Array
    reveal_type(p[0])  # Array
    reveal_type(p[..., 1:])  # Array

    reveal_type(p + 1)  # Array
    reveal_type(1 - p)  # Array
    reveal_type(p * p)  # Array
    reveal_type(x @ p)  # Array
    reveal_type(p @ x)  # Array
    reveal_type(p**2)  # Array
    reveal_type(-p)  # Array
    reveal_type(abs(p))  # Array
    reveal_type(p < 1)  # Array
    reveal_type(p == x)  # Array
    reveal_type(p != 0)  # Array
    reveal_type(float(p))  # float
    reveal_type(len(p))  # int
    reveal_type(list(p))  # list[Array]
    p += 1
    reveal_type(p)  # Param[Array]
    p[0] = 2.0
    p.value = x
    p.value = "text"  # error: reportAttributeAccessIssue // assignment

    reveal_type(p.copy())  # Param[Array]
    reveal_type(p.replace(x))  # Param[Array]
    reveal_type(p.state())  # VariableState
    reveal_type(p.get_metadata())  # dict[str, Any]
    reveal_type(v.to_variable())  # Any
    p.add_axis("0")  # error: reportArgumentType // arg-type
    nnx.Param()  # error: reportCallIssue // call-arg


def others(a: "np.ndarray[tuple[int], np.dtype[np.float32]]", bare: nnx.Param) -> None:
    reveal_type(nnx.Param(1.0))  # Param[float]
    reveal_type(nnx.Param(1.0).value)  # float
    reveal_type(nnx.Param(1.0) + 1)  # Any
    reveal_type(nnx.Intermediate((bare, [bare])).value)  # tuple[Param[Any], list[Param[Any]]]
    reveal_type(nnx.Param(a)[0])  # Any
    reveal_type(Temperature(1.0))  # Temperature
    reveal_type(Temperature(1.0).value)  # float
    Temperature("hot")  # error: reportArgumentType // arg-type
    # Without its argument a Variable holds anything, also under strict checking.
    reveal_type(bare.value)  # Any
    reveal_type(bare + 1)  # Any // Array
