"""One step: all losses from one forward pass, gradients, optimizer, new state. Nothing here waits for the host."""

import math
from dataclasses import replace
from enum import IntEnum
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from coca.config import Config
from coca.config.durations import in_steps
from coca.data import regions
from coca.data.embeddings import states_of
from coca.devices.hardware import compiler_options, release_memory
from coca.devices.sharding import batch_sharding, replicated
from coca.devices.trees import flat, nested
from coca.objectives import momentum
from coca.objectives.captioning import SoftTargets, prefix_lengths
from coca.objectives.classification import mix
from coca.objectives.masked import hide_words
from coca.objectives.terms import terms
from coca.training.gradients import Gradients
from coca.training.lora import is_frozen
from coca.training.state import Setup, TrainState


class Stream(IntEnum):
  """Random streams of a step, folded into its key; that itself draws which patches are dropped."""

  GRADIENTS = 1
  PARALLEL = 2  # which examples' words are predicted all at once
  MOMENTUM = 3  # dropout in the momentum encoders
  MASKED = 4  # which words are hidden
  MIX = 5  # how images are mixed with others
  PREFIX = 6  # how many words of each text are given


class TrainStep:
  """The step: (state, batch) -> (state, metrics). The state is donated.

  Compiled at the first call, and again at the first with images of another size; one program is held at a time.

  batch: 'image' uint8 [B, S, S, 3] (of pairs [B, 2, S, S, 3], of videos [B, F, S, S, 3]), 'text' int32 [B, T],
  'hashes' uint32 [B, 2], the same for equal texts, and 'weight' fp32 [B], split over the batch axes; and what else a
  loss has for itself (`Term.arrays`).
  metrics: fp32 scalars on the device: loss, and those of each loss that has a weight (`coca.objectives.terms`), all
  unweighted; grad_norm, skipped, skipped_in_a_row, and data/skipped: unusable pairs so far.
  """

  def __init__(self, setup: Setup):
    self._mesh, self._compiled_for = setup.mesh, []
    self._program: Any = None
    self._jitted = jax.jit(
      make_step(setup),
      in_shardings=(setup.shardings, batch_sharding(setup.mesh)),
      out_shardings=(setup.shardings, replicated(setup.mesh)),
      donate_argnums=0,
      compiler_options=compiler_options(setup.mesh, sum(x.size for x in jax.tree.leaves(setup.abstract_params))),
    )

  def __call__(self, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    if not self.is_compiled_for(batch):
      self.compile(state, batch)
    return self._program(state, batch)

  def is_compiled_for(self, batch: dict) -> bool:
    return self._program is not None and self._compiled_for == _shapes(batch["image"])

  def compile(self, state: TrainState, batch: dict) -> None:
    """Compiles the step for batches of this form; no step is made."""
    self._program = None  # what it holds is free before the next one is made
    self._program, self._compiled_for = self.trace(state, batch).lower().compile(), _shapes(batch["image"])
    release_memory()

  def trace(self, state: TrainState, batch: dict):
    """The program before it is lowered. Shapes with shardings do, in place of arrays."""
    with jax.set_mesh(self._mesh):
      return self._jitted.trace(state, batch)


def batch_shapes(config: Config, mesh, size: int = 0) -> dict:
  """A batch of `TrainStep` as ShapeDtypeStructs."""
  text, batch, size = config.model.text, config.data.batch, size or config.model.image.size
  shapes = {
    "text": ((text.length,), jnp.int32),
    "last": ((), jnp.int32),
    "hashes": ((2,), jnp.uint32),
    "weight": ((), jnp.float32),
  }
  for term in terms(config):
    shapes |= term.arrays()
  sharding = batch_sharding(mesh)
  out = {
    name: jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=sharding) for name, (shape, dtype) in shapes.items()
  }
  images = (config.classification.images,) if config.classification.images > 1 else ()
  pixels = jax.ShapeDtypeStruct((*images, size, size, 3), jnp.uint8)
  if config.data.embeddings:
    states = states_of(config)
    pixels = jax.ShapeDtypeStruct(states.shape, states.type)
  seen = regions.blank(config.model) if config.model.reads_regions else pixels
  return out | {
    "image": jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape), x.dtype, sharding=sharding), seen)
  }


def _shapes(image) -> list[tuple[int, ...]]:
  return [x.shape for x in jax.tree.leaves(image)]


def make_step(setup: Setup):
  """The function that `TrainStep` compiles."""
  config, optimizer = setup.config, setup.optimizer
  gradients = Gradients(config, setup.graphdef)
  ramp = in_steps(config.contrastive.soft_ramp, config.data.batch, config.total_steps)

  @jax.named_scope("momentum")
  def remember(state, batch, key):
    """The momentum encoders' parameters, moved on, and what the losses take of them and of the queue."""
    decay = config.contrastive.momentum
    slow = jax.tree.map(
      lambda m, p: decay * m + (1 - decay) * p, state.momentum, momentum.momentum_params(state.params)
    )
    model = nnx.merge(setup.graphdef, momentum.with_momentum(state.params, slow))
    alpha = config.contrastive.soft_targets * (jnp.minimum(1.0, state.step / ramp) if ramp else 1.0)
    encoded, text = model.encode(batch["image"]), model.embed_text(batch["text"], key)
    memory = {"image": encoded.embedding, "text": text, "queue": state.queue, "alpha": alpha}
    if config.masked.weight:
      states = model.fill(encoded.tokens, batch["masked"], batch["masked_at"], jax.random.fold_in(key, Stream.MASKED))
      memory["words"] = SoftTargets(states, model.softmax_kernel(), model.softmax_bias, alpha)
    return slow, jax.lax.stop_gradient(memory)

  def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    key, noise = jax.random.fold_in(jax.random.key(config.seed), state.step), None
    if config.model.image.patch_dropout:
      patches = config.model.image.at(batch["image"].shape[1]).tokens
      noise = jax.random.uniform(key, (len(batch["image"]), patches))
    if config.masked.weight:
      batch = batch | hide_words(batch["text"], jax.random.fold_in(key, Stream.MASKED), config.masked, config.model)
    if config.classification.weight and (config.classification.mixup or config.classification.cutmix):
      batch = mix(batch, jax.random.fold_in(key, Stream.MIX), config.classification)
    slow = memory = None
    if config.contrastive.momentum:
      slow, memory = remember(state, batch, jax.random.fold_in(key, Stream.MOMENTUM))
    if config.captioning.parallel:
      drawn = jax.random.uniform(jax.random.fold_in(key, Stream.PARALLEL), (len(batch["text"]),))
      batch = batch | {"parallel": drawn < config.captioning.parallel}
    if config.model.kind == "simvlm":
      drawn = jax.random.uniform(jax.random.fold_in(key, Stream.PREFIX), (len(batch["text"]),))
      batch = batch | {"prefix": prefix_lengths(batch["text"], drawn)}
    grads, metrics = gradients(state.params, batch, noise, jax.random.fold_in(key, Stream.GRADIENTS), memory)
    stats = metrics.pop("stats", {})
    metrics["grad_norm"] = optax.tree.norm(grads)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])

    with jax.named_scope("optimizer"):
      updates, opt = optimizer.update(grads, state.opt, state.params, finite=finite)
      new: dict[str, Any] = {"params": optax.apply_updates(state.params, updates)}
    if config.contrastive.weight and not is_frozen(config, "temperature/log_scale"):
      # The parameter itself, as CLIP does: a cap in the loss would have no gradient beyond it, and no way back.
      limits = config.contrastive.min_scale, config.contrastive.max_scale
      lowest, highest = (math.log(x) if x else None for x in limits)
      temperature = new["params"]["temperature"]
      temperature["log_scale"] = jnp.clip(temperature["log_scale"], lowest, highest)
    if stats:
      with jax.named_scope("batch_norm"):
        kept, params = config.model.efficientnet.norm_momentum, flat(new["params"])
        moved = {name: kept * params[name] + (1 - kept) * x for name, x in flat(stats).items()}
        new["params"] = nested(params | moved)
    if config.optim.ema and state.ema is not None:
      with jax.named_scope("ema"):
        new["ema"] = optax.incremental_update(new["params"], state.ema, 1 - config.optim.ema)
    if memory and state.queue is not None:
      new["momentum"] = slow
      new["queue"] = momentum.enqueue(state.queue, memory["image"], memory["text"], batch["hashes"], batch["weight"])
    # After a step that is not finite all of these stay as they were; the optimizer has seen to its own moments.
    new = {
      name: jax.tree.map(lambda a, b: jnp.where(finite, a, b), tree, getattr(state, name)) for name, tree in new.items()
    }
    state = replace(
      state,
      **new,
      opt=opt,
      step=state.step + 1,
      skipped=state.skipped + ~finite,
      skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
      unusable=state.unusable + (batch["weight"] == 0).sum(dtype=jnp.int32),
    )
    metrics |= {"skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row, "data/skipped": state.unusable}
    return state, metrics

  return step
