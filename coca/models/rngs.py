"""Random keys for the parameters of a new model."""

import jax
from jaxtyping import PRNGKeyArray


class Rngs:
  """`flax.nnx.Rngs(params=key)` as modules use it when they are made: the same keys, but counted in Python.

  Where a model is traced, flax's count is a tracer, of which it asks the sharding at each key; to say that there is
  none, JAX prints the equations so far: more than half of the time of `abstract_model`.
  """

  def __init__(self, key: PRNGKeyArray):
    self._key, self._count = key, 0

  def params(self) -> PRNGKeyArray:
    """The next key."""
    self._count += 1
    return jax.random.fold_in(self._key, self._count - 1)
