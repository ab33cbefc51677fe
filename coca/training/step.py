"""One step: all losses from one forward pass, gradients, optimizer, new state. Pure; nothing here waits for the host.

The state is a dict: 'params' (nested dict), 'opt' (optax), 'ema' (as params, where the config keeps one), 'momentum'
and 'queue' (where the contrastive loss has them, see `coca.objectives.momentum`), and int32 counters: 'step', 'skipped'
(steps with a non-finite loss or gradient, left out), 'skipped_in_a_row' and 'unusable' (pairs of weight 0: broken
records).
"""

import math

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from coca.config import Config
from coca.config.durations import in_steps
from coca.devices.hardware import compiler_options, release_memory
from coca.devices.sharding import batch_sharding, replicated
from coca.models.abstract import abstract_model
from coca.objectives import momentum
from coca.training.gradients import make_gradients
from coca.training.optim import make_optimizer


def make_train_step(config: Config, total: int, state, mesh):
  """The step: (state, batch) -> (state, metrics). The state is donated. Compiled at the first call.

  `state` may be that of `planned_state`: the step's `lower`, which takes the same arguments, then needs no arrays.

  batch: 'image' uint8 [B, S, S, 3], 'text' int32 [B, T], 'hashes' uint32 [B, 2], the same for equal texts, and 'weight'
  fp32 [B], split over the batch axes; for answering, where the text is a question, also 'answers' int32 [B, K, A] and
  'answer_weight' fp32 [B, K].
  metrics: fp32 scalars on the device: loss; where they have a weight, contrastive and temperature, captioning, matching
  and matching_accuracy, answering (all unweighted); grad_norm, skipped, skipped_in_a_row, and data/skipped: unusable
  pairs so far.
  """
  gradients = make_gradients(config)
  optimizer = make_optimizer(config, total, state["params"])
  graphdef, _ = abstract_model(config)
  ramp = in_steps(config.contrastive.soft_ramp, config.data.batch, total)

  def remember(state, batch, key):
    """The momentum encoders' parameters, moved on, and what the contrastive loss takes of them and of the queue."""
    decay = config.contrastive.momentum
    slow = jax.tree.map(lambda m, p: decay * m + (1 - decay) * p, state["momentum"],
                        momentum.momentum_params(state["params"]))
    model = nnx.merge(graphdef, momentum.with_momentum(state["params"], slow))
    alpha = config.contrastive.soft_targets * (jnp.minimum(1.0, state["step"] / ramp) if ramp else 1.0)
    image, text = jax.lax.stop_gradient((model.embed_image(batch["image"]), model.embed_text(batch["text"], key)))
    return slow, {"image": image, "text": text, "queue": state["queue"], "alpha": alpha}

  def step(state, batch):
    key, noise = jax.random.fold_in(jax.random.key(config.seed), state["step"]), None
    if config.model.image.patch_dropout:
      noise = jax.random.uniform(key, (len(batch["image"]), config.model.image.tokens))
    memory = None
    if config.contrastive.momentum:
      slow, memory = remember(state, batch, jax.random.fold_in(key, 3))
    if config.captioning.parallel:
      drawn = jax.random.uniform(jax.random.fold_in(key, 2), (len(batch["text"]),))
      batch = batch | {"parallel": drawn < config.captioning.parallel}
    grads, metrics = gradients(state["params"], batch, noise, jax.random.fold_in(key, 1), memory)
    metrics["grad_norm"] = optax.tree.norm(grads)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])

    new = dict(state)
    updates, new["opt"] = optimizer.update(grads, state["opt"], state["params"], finite=finite)
    new["params"] = optax.apply_updates(state["params"], updates)
    if config.contrastive.weight:
      # The parameter itself, as CLIP does: a cap in the loss would have no gradient beyond it, and no way back.
      limits = config.contrastive.min_scale, config.contrastive.max_scale
      lowest, highest = (math.log(x) if x else None for x in limits)
      temperature = new["params"]["temperature"]
      temperature["log_scale"] = jnp.clip(temperature["log_scale"], lowest, highest)
    if config.optim.ema:
      new["ema"] = optax.incremental_update(new["params"], state["ema"], 1 - config.optim.ema)
    if memory:
      new["momentum"] = slow
      new["queue"] = momentum.enqueue(
        state["queue"], memory["image"], memory["text"], batch["hashes"], batch["weight"]
      )
    for name in {"params", "ema", "momentum", "queue"} & set(new):
      new[name] = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new[name], state[name])
    new["step"] = state["step"] + 1
    new["skipped"] = state["skipped"] + ~finite
    new["skipped_in_a_row"] = jnp.where(finite, 0, state["skipped_in_a_row"] + 1)
    new["unusable"] = state["unusable"] + (batch["weight"] == 0).sum(dtype=jnp.int32)
    metrics |= {name: new[name] for name in ("skipped", "skipped_in_a_row")}
    return new, metrics | {"data/skipped": new["unusable"]}

  shardings = jax.tree.map(lambda x: x.sharding, state)
  jitted = jax.jit(
    step,
    in_shardings=(shardings, batch_sharding(mesh)),
    out_shardings=(shardings, replicated(mesh)),
    donate_argnums=0,
    compiler_options=compiler_options(mesh),
  )
  program = None

  def run(state, batch):
    nonlocal program
    if program is None:
      program = lower(state, batch).compile()
      release_memory()
    return program(state, batch)

  def lower(state, batch):
    with jax.set_mesh(mesh):
      return jitted.lower(state, batch)

  run.lower = lower
  return run
