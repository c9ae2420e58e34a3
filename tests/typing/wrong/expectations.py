"""Expectations that do not hold, to see that each is noticed."""

from typing import reveal_type

import treadle as nnx

reveal_type(nnx.Module())  # Object
reveal_type(nnx.Module())
nnx.Rngs(0)  # error: reportCallIssue // call-arg
nnx.Rngs(0, 1)
nnx.Linear(2, 3)  # error: reportArgumentType // arg-type
reveal_type(nnx.Linear(2, 3))  # Linear
reveal_type(nnx.Rngs(0))  # Rngs
