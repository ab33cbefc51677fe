"""The model of a config without any arrays: its graph definition and the shapes of its parameters."""

import functools

import jax
from flax import nnx

from coca.config import Config
from coca.models import make_model


def abstract_model(config: Config) -> tuple[nnx.GraphDef, dict]:
  """The model's graph definition, and its parameters as a nested dict of ShapeDtypeStructs; nothing is computed."""
  # All that a model looks at.
  names = "model", "contrastive", "captioning", "matching", "answering", "masked", "classification", "dialog"
  graphdef, params = _abstract_model(**{name: getattr(config, name) for name in names})
  return graphdef, jax.tree.map(lambda x: x, params)  # dicts of the caller's own


@functools.lru_cache(maxsize=16)
def _abstract_model(**settings):
  """A start asks for it half a dozen times, at a tenth of a second each."""
  config = Config(**settings)
  graphdef, state = nnx.split(nnx.eval_shape(lambda: make_model(config, jax.random.key(0))))
  return graphdef, nnx.to_pure_dict(state)
