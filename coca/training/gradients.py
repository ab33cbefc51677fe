"""The gradients of all losses together, over one batch or over micro-batches."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

from coca.config import Config
from coca.config.settings import frozen_parts
from coca.models.abstract import abstract_model
from coca.objectives import momentum
from coca.objectives.captioning import captioning_loss, next_tokens
from coca.objectives.contrastive import contrastive_loss
from coca.objectives.matching import draw_negatives, matching_loss, take_rows


def make_gradients(config: Config):
  """(params, batch, patch_noise, key, memory) -> (gradients, metrics), over one batch or over micro-batches.

  The result is the same for both. Where the batch has 'parallel', bool [B], the words of those examples are predicted
  all at once (CapPa). The random key draws the negatives of the matching loss and what is dropped out; without them it
  may be left out. `memory`: of the momentum encoders, see `make_train_step`.
  """
  graphdef, _ = abstract_model(config)
  weights = {name: getattr(config, name).weight for name in ("contrastive", "captioning", "matching", "answering")}
  contrast, caption, match, answer = weights.values()
  frozen = frozen_parts(config)

  def fold(key, n):
    return None if key is None else jax.random.fold_in(key, n)

  def forward(params, batch, noise, key, *, captions=caption > 0, matches=False):
    params = {part: jax.lax.stop_gradient(tree) if part in frozen else tree for part, tree in params.items()}
    model = nnx.merge(graphdef, params)
    out = model(
      batch["image"], batch["text"], contrast=contrast > 0, caption=captions, match=matches, patch_noise=noise,
      key=fold(key, 1), **{name: batch[name] for name in ("parallel",) if name in batch},
    )
    return out, model

  def contrastive(embeddings, temperature, batch, memory=None):
    if not contrast:
      return jnp.float32(0)
    temperature = jax.lax.stop_gradient(temperature) if "temperature" in frozen else temperature
    hashes, weight = batch["hashes"], batch["weight"]
    if memory is None:
      return contrastive_loss(*embeddings, hashes, weight, temperature, config.contrastive)
    return momentum.momentum_contrastive_loss(
      *embeddings, memory["image"], memory["text"], memory["queue"], hashes, weight, temperature["log_scale"],
      memory["alpha"], config.contrastive
    )

  def count(batch):
    """The divisors of the losses over words: of the whole batch, whatever micro-batches it comes in."""
    words = next_tokens(batch["text"], batch["weight"], config.captioning.prompt_tokens)[1].sum()
    texts = batch["weight"].sum()
    return [jnp.maximum(x, 1e-9) for x in (words if config.captioning.tokens == "mean" else texts, texts)]

  def writing(out, model, batch, counts, key):
    """A (micro-)batch's shares of the captioning and the answering loss of the whole batch."""
    losses, (texts, questions) = {"captioning": jnp.float32(0)}, counts
    if caption:
      nll, _ = captioning_loss(
        out.states, model.softmax_kernel(), batch["text"], batch["weight"], config.captioning, model.softmax_bias,
        batch.get("last")
      )
      losses["captioning"] = nll / texts
    if answer:
      answers = batch["answers"]
      states = model.answer(model.ask(out.tokens, batch["text"], fold(key, 2)), answers, fold(key, 3))
      weight = (batch["weight"][:, None] * batch["answer_weight"]).reshape(-1)
      nll, _ = captioning_loss(
        states, model.softmax_kernel(), answers.reshape(-1, answers.shape[-1]), weight,
        replace(config.captioning, tokens="sum", prompt_tokens=0), model.softmax_bias  # answers have no prompt
      )
      losses["answering"] = nll / questions
    return losses

  def matching(out, model, temperature, batch, key, memory):
    """The states of the true pairs, and metrics. An image's two texts share its keys and values."""
    text, group = batch["text"], config.matching.group
    keys = (memory["image"], memory["text"]) if config.matching.slow_keys else None
    drawn = draw_negatives(
      out.image, out.text, batch["hashes"], batch["weight"], temperature["log_scale"], key, group,
      config.matching.floor, keys
    )
    own = out.words, text
    two = jax.tree.map(lambda *x: jnp.stack(x, axis=1), own, take_rows(own, drawn.text, group))
    states = model.ground(*two, out.tokens, fold(key, 4))
    other_states = model.ground(*own, take_rows(out.tokens, drawn.image, group), fold(key, 5))
    states = jnp.concatenate([states, other_states[:, None]], axis=1)
    logits = model.match(states, jnp.concatenate([two[1], text[:, None]], axis=1))
    loss, accuracy = matching_loss(logits, batch["weight"], drawn.found)
    return states[:, 0], {"matching": loss, "matching_accuracy": accuracy}

  def report(params, losses):
    metrics = {"loss": sum(weights[name] * losses[name] for name in weights if weights[name])}
    metrics |= {name: loss for name, loss in losses.items() if weights.get(name, match)}
    if contrast:
      metrics["temperature"] = jnp.exp(-params["temperature"]["log_scale"])
    return metrics

  def one_batch(params, batch, noise, key=None, memory=None):
    def loss(params):
      reuses = match and config.model.kind == "coca"  # the true pairs' states, of which BLIP's decoder has others
      out, model = forward(params, batch, noise, key, captions=caption > 0 and not reuses, matches=match > 0)
      losses = {"contrastive": contrastive((out.image, out.text), params.get("temperature"), batch, memory)}
      if match:
        states, matched = matching(out, model, params["temperature"], batch, key, memory)
        losses |= matched
        out = out._replace(states=states) if reuses else out
      metrics = report(params, losses | writing(out, model, batch, count(batch), key))
      return metrics["loss"], metrics

    grads, metrics = jax.grad(loss, has_aux=True)(params)
    return grads, metrics

  def micro_batches(params, batch, noise, key=None, memory=None):
    """Keeps the contrastive loss of the whole batch and caches its embeddings only.

    First pass: embeddings. Then the one contrastive loss and its gradient on them. Second pass: each micro-batch
    forward and backward, with that gradient pulled through the towers.
    """
    del memory  # refused with micro-batches
    k = config.optim.accumulate
    # Micro-batch i is rows i, i + k, ...: each device splits its own rows, and no row moves.
    split = jax.tree.map(lambda x: x.reshape(-1, k, *x.shape[1:]).swapaxes(0, 1), (batch, noise))
    split = *split, None if key is None else jax.random.split(key, k)
    counts = count(batch)

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
      part, pulls = inputs

      def loss(params):
        out, model = forward(params, *part)
        shares = writing(out, model, part[0], counts, part[2])
        pulled = [jnp.vdot(x, pull) for x, pull in zip((out.image, out.text), pulls, strict=True) if contrast]
        return sum(weights[name] * share for name, share in shares.items()) + sum(pulled), shares

      return jax.tree.map(jnp.add, carry, jax.grad(loss, has_aux=True)(params)), None

    shares = {"captioning": jnp.float32(0)} | ({"answering": jnp.float32(0)} if answer else {})
    (grads, shares), _ = jax.lax.scan(backward, (grads, shares), (split, pulls))
    return grads, report(params, {"contrastive": con} | shares)

  return one_batch if config.optim.accumulate == 1 else micro_batches
