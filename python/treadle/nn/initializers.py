"""Parameter initializers: those of `jax.nn.initializers`, plus `zeros_init` and `ones_init`.

An initializer is a function `(key, shape, dtype) -> array`.

>>> import jax
>>> from treadle.nn import initializers
>>> initializers.lecun_normal()(jax.random.key(0), (2, 3)).shape
(2, 3)
"""

from jax.nn.initializers import (
    Initializer,
    constant,
    delta_orthogonal,
    glorot_normal,
    glorot_uniform,
    he_normal,
    he_uniform,
    kaiming_normal,
    kaiming_uniform,
    lecun_normal,
    lecun_uniform,
    normal,
    ones,
    orthogonal,
    truncated_normal,
    uniform,
    variance_scaling,
    xavier_normal,
    xavier_uniform,
    zeros,
)

__all__ = [
    "Initializer",
    "constant",
    "delta_orthogonal",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "ones",
    "ones_init",
    "orthogonal",
    "truncated_normal",
    "uniform",
    "variance_scaling",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
    "zeros_init",
]


def zeros_init() -> Initializer:
    """An initializer that fills with zeros, for any shape and dtype.

    >>> from treadle.nn import initializers
    >>> initializers.zeros_init()(None, (2,)).tolist()
    [0.0, 0.0]
    """
    return zeros


def ones_init() -> Initializer:
    """An initializer that fills with ones, for any shape and dtype.

    >>> from treadle.nn import initializers
    >>> initializers.ones_init()(None, (2,)).tolist()
    [1.0, 1.0]
    """
    return ones
