"""One step: all losses from one forward pass, gradients, optimizer, new state. Pure; nothing here waits for the host.

The state is a dict: 'params' (nested dict), 'opt' (optax), 'ema' (as params, where the config keeps one), and int32
counters: 'step', 'skipped' (steps with a non-finite loss or gradient, left out), 'skipped_in_a_row' and 'unusable'
(pairs of weight 0: broken records).
"""

import math

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from coca.config import Config
from coca.forward import abstract_model
from coca.hardware import compiler_options, release_memory
from coca.models.coca import CoCa
from coca.objectives.captioning import captioning_loss, next_tokens
from coca.objectives.contrastive import contrastive_loss, text_hash
from coca.objectives.matching import draw_negatives, matching_loss, take_rows
from coca.optim import frozen_parts, make_optimizer
from coca.sharding import batch_sharding, replicated, state_shardings


def init_state(config: Config, total: int, mesh):
  """A new training state on the mesh; the same numbers on any mesh."""
  new, _ = _new_state(config, total)

  def init():
    return new(nnx.to_pure_dict(nnx.state(CoCa(config, nnx.Rngs(config.seed)))))

  shardings = jax.tree.map(lambda x: x.sharding, planned_state(config, total, mesh))
  with jax.set_mesh(mesh):
    return jax.jit(init, out_shardings=shardings)()


def planned_state(config: Config, total: int, mesh):
  """What `init_state` returns, as ShapeDtypeStructs with shardings; nothing is computed. The mesh may be abstract."""
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
    ema = {"ema": jax.tree.map(jnp.copy, params)} if config.optim.ema else {}
    return {"params": params, "opt": optimizer.init(params), **ema, **counters}

  return new, abstract


def make_train_step(config: Config, total: int, state, mesh):
  """The step: (state, batch) -> (state, metrics). The state is donated. Compiled at the first call.

  `state` may be that of `planned_state`: the step's `lower`, which takes the same arguments, then needs no arrays.

  batch: 'image' uint8 [B, S, S, 3], 'text' int32 [B, T], 'weight' fp32 [B], split over the batch axes.
  metrics: fp32 scalars on the device: loss; where they have a weight, contrastive and temperature, captioning, matching
  and matching_accuracy (all unweighted); grad_norm, skipped, skipped_in_a_row, and data/skipped: unusable pairs so far.
  """
  gradients = make_gradients(config)
  optimizer = make_optimizer(config, total, state["params"])

  def step(state, batch):
    key, noise = jax.random.fold_in(jax.random.key(config.seed), state["step"]), None
    if config.model.image.patch_dropout:
      noise = jax.random.uniform(key, (len(batch["image"]), config.model.image.tokens))
    if config.captioning.parallel:
      drawn = jax.random.uniform(jax.random.fold_in(key, 2), (len(batch["text"]),))
      batch = batch | {"parallel": drawn < config.captioning.parallel}
    grads, metrics = gradients(state["params"], batch, noise, jax.random.fold_in(key, 1))
    metrics["grad_norm"] = optax.tree.norm(grads)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])

    new = dict(state)
    updates, new["opt"] = optimizer.update(grads, state["opt"], state["params"], finite=finite)
    new["params"] = optax.apply_updates(state["params"], updates)
    if config.contrastive.weight and config.contrastive.max_scale:
      # The parameter itself, as CLIP does: a cap in the loss would have no gradient beyond it, and no way back.
      temperature = new["params"]["temperature"]
      temperature["log_scale"] = jnp.minimum(temperature["log_scale"], math.log(config.contrastive.max_scale))
    if config.optim.ema:
      new["ema"] = optax.incremental_update(new["params"], state["ema"], 1 - config.optim.ema)
    for name in {"params", "ema"} & set(new):
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


def make_gradients(config: Config):
  """(params, batch, patch_noise, key) -> (gradients, metrics), over one batch or over micro-batches: the same result.

  Where the batch has 'parallel', bool [B], the words of those examples are predicted all at once (CapPa).
  The random key draws the negatives of the matching loss; without that loss it may be left out.
  """
  graphdef, _ = abstract_model(config)
  contrast, caption, match = config.contrastive.weight, config.captioning.weight, config.matching.weight
  frozen = frozen_parts(config)

  def forward(params, batch, noise, *, captions=caption > 0, matches=False):
    params = {part: jax.lax.stop_gradient(tree) if part in frozen else tree for part, tree in params.items()}
    model = nnx.merge(graphdef, params)
    out = model(
      batch["image"], batch["text"], contrast=contrast > 0, caption=captions, match=matches, patch_noise=noise,
      parallel=batch.get("parallel"),
    )
    return out, model

  def contrastive(embeddings, temperature, batch):
    if not contrast:
      return jnp.float32(0)
    temperature = jax.lax.stop_gradient(temperature) if "temperature" in frozen else temperature
    hashes = text_hash(batch["text"])
    return contrastive_loss(*embeddings, hashes, batch["weight"], temperature, config.contrastive)

  def captioning(out, model, batch, tokens):
    """A (micro-)batch's share of the captioning loss of the whole batch, which has `tokens` tokens (or texts)."""
    if not caption:
      return jnp.float32(0)
    nll, _ = captioning_loss(out.states, model.softmax_kernel(), batch["text"], batch["weight"], config.captioning)
    return nll / tokens

  def matching(out, model, temperature, batch, key):
    """The decoder's states of the true pairs, and metrics. A picture's two texts share its keys and values."""
    text, group = batch["text"], config.matching.group
    drawn = draw_negatives(
      out.image, out.text, text_hash(text), batch["weight"], temperature["log_scale"], key, group
    )
    other_words, other_text = take_rows((out.words, text), drawn.text, group)
    states = model.multimodal(jnp.stack([out.words, other_words], axis=1), out.tokens)
    other_states = model.multimodal(out.words, take_rows(out.tokens, drawn.image, group))
    states = jnp.concatenate([states, other_states[:, None]], axis=1)
    logits = model.match(states, jnp.stack([text, other_text, text], axis=1))
    loss, accuracy = matching_loss(logits, batch["weight"], drawn.found)
    return states[:, 0], {"matching": loss, "matching_accuracy": accuracy}

  def count(batch):
    per_token = next_tokens(batch["text"], batch["weight"])[1].sum()
    return jnp.maximum(per_token if config.captioning.tokens == "mean" else batch["weight"].sum(), 1e-9)

  def report(params, con, cap, **matched):
    weights = {"contrastive": contrast, "captioning": caption, "matching": match}
    losses = {"contrastive": con, "captioning": cap, **matched}
    metrics = {"loss": sum(weights[name] * losses[name] for name in weights if weights[name])}
    metrics |= {name: loss for name, loss in losses.items() if weights.get(name, match)}
    if contrast:
      metrics["temperature"] = jnp.exp(-params["temperature"]["log_scale"])
    return metrics

  def one_batch(params, batch, noise, key=None):
    def loss(params):
      out, model = forward(params, batch, noise, captions=caption > 0 and not match, matches=match > 0)
      con = contrastive((out.image, out.text), params.get("temperature"), batch)
      matched = {}
      if match:
        states, matched = matching(out, model, params["temperature"], batch, key)
        out = out._replace(states=states)
      metrics = report(params, con, captioning(out, model, batch, count(batch)), **matched)
      return metrics["loss"], metrics

    grads, metrics = jax.grad(loss, has_aux=True)(params)
    return grads, metrics

  def micro_batches(params, batch, noise, key=None):
    """Keeps the contrastive loss of the whole batch and caches its embeddings only.

    First pass: embeddings. Then the one contrastive loss and its gradient on them. Second pass: each micro-batch
    forward and backward, with that gradient pulled through the towers.
    """
    k = config.optim.accumulate
    # Micro-batch i is rows i, i + k, ...: each device splits its own rows, and no row moves.
    split = jax.tree.map(lambda x: x.reshape(-1, k, *x.shape[1:]).swapaxes(0, 1), (batch, noise))
    tokens = count(batch)

    def embed(_, part):
      out, _ = forward(params, *part, captions=False)
      return None, (out.image, out.text)

    con, pulls, grads = jnp.float32(0), (None, None), jax.tree.map(jnp.zeros_like, params)
    if contrast:
      _, embeddings = jax.lax.scan(embed, None, split)
      embeddings = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, x.shape[-1]), embeddings)
      con, (pulls, d_temperature) = jax.value_and_grad(contrastive, argnums=(0, 1))(
        embeddings, params["temperature"], batch
      )
      pulls = jax.tree.map(lambda x: contrast * x.reshape(-1, k, x.shape[-1]).swapaxes(0, 1), pulls)
      grads["temperature"] = jax.tree.map(lambda x: contrast * x, d_temperature)

    def backward(carry, inputs):
      grads, cap = carry
      part, pulls = inputs

      def loss(params):
        out, model = forward(params, *part)
        share = captioning(out, model, part[0], tokens)
        pulled = [jnp.vdot(x, pull) for x, pull in zip((out.image, out.text), pulls, strict=True) if contrast]
        return caption * share + sum(pulled), share

      more, share = jax.grad(loss, has_aux=True)(params)
      return (jax.tree.map(jnp.add, grads, more), cap + share), None

    (grads, cap), _ = jax.lax.scan(backward, (grads, jnp.float32(0)), (split, pulls))
    return grads, report(params, con, cap)

  return one_batch if config.optim.accumulate == 1 else micro_batches
