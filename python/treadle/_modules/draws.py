"""Random numbers by name: `rngs.normal((2, 3))` draws with the next key.

A stream that is set under one of these names goes before the function, as an attribute of an
instance goes before one of its class.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import jax
from jax import random
from jax.nn import initializers

from treadle._modules.module import Object

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class _Bound(Protocol[P, R_co]):
    """What a method looks like from outside, since type checkers do not bind callable values."""

    def __get__(self, instance: Any, owner: Any = None) -> Callable[P, R_co]: ...


def _sampler(f: Callable[Concatenate[Any, P], R]) -> _Bound[P, R]:
    """`f` of `jax.random` as a method that brings the key."""

    @functools.wraps(f)
    def draw(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return f(self(), *args, **kwargs)

    name = getattr(f, "__name__", "")
    draw.__doc__ = (
        f"`jax.random.{name}` with the next key, of the stream `default` where there are several."
    )
    return cast("_Bound[P, R]", draw)


def _initializer(f: Callable[P, Any]) -> _Bound[P, Callable[..., jax.Array]]:
    """`f` of `jax.nn.initializers` as a method whose result brings the key."""

    @functools.wraps(f)
    def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        initialize = f(*args, **kwargs)

        def draw(*args: Any, **kwargs: Any) -> Any:
            return initialize(self(), *args, **kwargs)

        return draw

    name = getattr(f, "__name__", "")
    method.__doc__ = (
        f"`jax.nn.initializers.{name}`, as a function of shape and dtype that draws the next key."
    )
    return cast("_Bound[P, Callable[..., jax.Array]]", method)


class RandomSource(Object):
    """What gives keys when it is called, and numbers by the functions of `jax.random`.

    The methods take the arguments that the functions take after the key.

    >>> import jax
    >>> import treadle as nnx
    >>> drawn = nnx.Rngs(0).normal((2, 3))
    >>> same = jax.random.normal(nnx.Rngs(0)(), (2, 3))
    >>> bool((drawn == same).all())
    True
    >>> nnx.Rngs(0, noise=1).noise.uniform((2,), minval=-1.0).shape
    (2,)
    >>> nnx.Rngs(0).lecun_normal()((2, 3)).shape
    (2, 3)
    """

    ball = _sampler(random.ball)
    bernoulli = _sampler(random.bernoulli)
    beta = _sampler(random.beta)
    binomial = _sampler(random.binomial)
    bits = _sampler(random.bits)
    categorical = _sampler(random.categorical)
    cauchy = _sampler(random.cauchy)
    chisquare = _sampler(random.chisquare)
    choice = _sampler(random.choice)
    dirichlet = _sampler(random.dirichlet)
    double_sided_maxwell = _sampler(random.double_sided_maxwell)
    exponential = _sampler(random.exponential)
    f = _sampler(random.f)
    gamma = _sampler(random.gamma)
    generalized_normal = _sampler(random.generalized_normal)
    geometric = _sampler(random.geometric)
    gumbel = _sampler(random.gumbel)
    laplace = _sampler(random.laplace)
    loggamma = _sampler(random.loggamma)
    logistic = _sampler(random.logistic)
    lognormal = _sampler(random.lognormal)
    maxwell = _sampler(random.maxwell)
    multinomial = _sampler(random.multinomial)
    multivariate_normal = _sampler(random.multivariate_normal)
    normal = _sampler(random.normal)
    orthogonal = _sampler(random.orthogonal)
    pareto = _sampler(random.pareto)
    permutation = _sampler(random.permutation)
    poisson = _sampler(random.poisson)
    rademacher = _sampler(random.rademacher)
    randint = _sampler(random.randint)
    rayleigh = _sampler(random.rayleigh)
    t = _sampler(random.t)
    triangular = _sampler(random.triangular)
    truncated_normal = _sampler(random.truncated_normal)
    uniform = _sampler(random.uniform)
    wald = _sampler(random.wald)
    weibull_min = _sampler(random.weibull_min)

    # Those whose names are not also functions of `jax.random`.
    delta_orthogonal = _initializer(initializers.delta_orthogonal)
    glorot_normal = _initializer(initializers.glorot_normal)
    glorot_uniform = _initializer(initializers.glorot_uniform)
    he_normal = _initializer(initializers.he_normal)
    he_uniform = _initializer(initializers.he_uniform)
    kaiming_normal = _initializer(initializers.kaiming_normal)
    kaiming_uniform = _initializer(initializers.kaiming_uniform)
    lecun_normal = _initializer(initializers.lecun_normal)
    lecun_uniform = _initializer(initializers.lecun_uniform)
    variance_scaling = _initializer(initializers.variance_scaling)
    xavier_normal = _initializer(initializers.xavier_normal)
    xavier_uniform = _initializer(initializers.xavier_uniform)
