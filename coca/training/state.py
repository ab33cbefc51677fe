"""The training state; and the parts, made once, that it and the step are made from."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from coca.config import Config
from coca.devices.sharding import state_shardings
from coca.models import make_model
from coca.models.abstract import abstract_model
from coca.objectives import momentum
from coca.training.optim import make_optimizer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
  """All that a step changes and a checkpoint holds: arrays, there under the names of these fields."""

  params: dict
  opt: optax.OptState
  step: jax.Array  # int32 [], as the other counters
  skipped: jax.Array  # steps with a non-finite loss or gradient, left out
  skipped_in_a_row: jax.Array
  unusable: jax.Array  # pairs of weight 0: broken records
  ema: dict | None = None  # as `params`, where the config keeps an average
  momentum: dict | None = None  # parameters of the momentum encoders, and their queue, where the contrastive loss has
  queue: dict | None = None  # them (`coca.objectives.momentum`)

  @property
  def best_params(self) -> dict:
    """The parameters to evaluate and to use: the average where there is one."""
    return self.params if self.ema is None else self.ema


class Setup:
  """The parts of a run's state and step, made once: to trace a model takes half a second.

  Attributes:
    config: of the run.
    mesh: of the devices; for plans it may be abstract.
    graphdef: the model without its arrays.
    abstract_params: nested dict of ShapeDtypeStructs.
    optimizer: see `coca.training.optim`.
    planned: the TrainState that `init_state` returns, as ShapeDtypeStructs with shardings; nothing is computed.

  Raises:
    ValueError: the mesh does not divide a parameter, or `optim.lr_scale` names a part that the model lacks.
  """

  def __init__(self, config: Config, mesh):
    self.config, self.mesh = config, mesh
    self.graphdef, self.abstract_params = abstract_model(config)
    self.optimizer = make_optimizer(config, config.total_steps, self.abstract_params)
    state = jax.eval_shape(self._new_state, self.abstract_params)
    self.planned = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      state,
      state_shardings(state, self.abstract_params, mesh),
    )

  @property
  def shardings(self) -> TrainState:
    return jax.tree.map(lambda x: x.sharding, self.planned)

  def init_state(self) -> TrainState:
    """A new training state on the mesh; the same numbers on any mesh."""

    def init():
      return self._new_state(nnx.to_pure_dict(nnx.state(make_model(self.config, jax.random.key(self.config.seed)))))

    with jax.set_mesh(self.mesh):
      return jax.jit(init, out_shardings=self.shardings)()

  def _new_state(self, params) -> TrainState:
    config, more = self.config, {}
    counters = {name: jnp.int32(0) for name in ("step", "skipped", "skipped_in_a_row", "unusable")}
    if config.optim.ema:
      more["ema"] = jax.tree.map(jnp.copy, params)
    if config.contrastive.momentum:
      key = jax.random.fold_in(jax.random.key(config.seed), config.total_steps)  # beyond those of the steps
      more["momentum"] = jax.tree.map(jnp.copy, momentum.momentum_params(params))
      more["queue"] = momentum.empty_queue(config.contrastive, config.model.embed_dim, key)
    return TrainState(params, self.optimizer.init(params), **counters, **more)
