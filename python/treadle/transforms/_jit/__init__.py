"""jit over graph nodes, a theme per file.

===================  ===============================================================================
``jit``              `jit` and `cached_partial`: what users call
``options``          the parameters of one `jit`, checked and brought into one form
``compiler``         the Python side of the C++ dispatcher: plans, and the rest of the interface
``program``          the function of one structure that `jax.jit` gets: tracing
``shardings``        `in_shardings` and `out_shardings`, by leaf
``constraints``      `constrain_state`
``explanations``     better errors for calls that failed
``stages``           traced, lowered, compiled ahead
``retraces``         why a function was traced again
``profiling``        where the time of a call goes
``jax_internals``    what is read of JAX beyond what it documents
===================  ===============================================================================
"""
