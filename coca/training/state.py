"""The training state of a config: made on a mesh, or planned without arrays. See `coca.training.step`."""

import jax
import jax.numpy as jnp
from flax import nnx

from coca.config import Config
from coca.devices.sharding import state_shardings
from coca.models import make_model
from coca.models.abstract import abstract_model
from coca.objectives import momentum
from coca.training.optim import make_optimizer


def init_state(config: Config, total: int, mesh):
  """A new training state on the mesh; the same numbers on any mesh."""
  new, _ = _new_state(config, total)

  def init():
    return new(nnx.to_pure_dict(nnx.state(make_model(config, nnx.Rngs(config.seed)))))

  shardings = jax.tree.map(lambda x: x.sharding, planned_state(config, total, mesh))
  with jax.set_mesh(mesh):
    return jax.jit(init, out_shardings=shardings)()


def planned_state(config: Config, total: int, mesh):
  """The result of `init_state` as ShapeDtypeStructs with shardings; nothing is computed. The mesh may be abstract."""
  new, params = _new_state(config, total)
  state = jax.eval_shape(new, params)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, state_shardings(state, params, mesh)
  )


def _new_state(config: Config, total: int):
  """The function that makes a state of new parameters, and the parameters' shapes."""
  _, abstract = abstract_model(config)
  optimizer = make_optimizer(config, total, abstract)

  def new(params):
    counters = {name: jnp.int32(0) for name in ("step", "skipped", "skipped_in_a_row", "unusable")}
    more = {"ema": jax.tree.map(jnp.copy, params)} if config.optim.ema else {}
    if config.contrastive.momentum:
      key = jax.random.fold_in(jax.random.key(config.seed), total)
      more["momentum"] = jax.tree.map(jnp.copy, momentum.momentum_params(params))
      more["queue"] = momentum.empty_queue(config.contrastive, config.model.embed_dim, key)
    return {"params": params, "opt": optimizer.init(params), **more, **counters}

  return new, abstract
