"""The gradients of all losses together, over one batch or over micro-batches."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx

from coca.config import Config
from coca.models.abstract import abstract_model
from coca.objectives.matching import ground_triples
from coca.objectives.term import Pass, Stream, Term
from coca.objectives.terms import terms
from coca.training.lora import is_frozen, stop_frozen


class Gradients:
  """(params, batch, patch_noise, key, memory) -> (gradients, metrics), over one batch or over micro-batches.

  The result is the same for both. Where the batch has 'parallel', bool [B], the words of those examples are predicted
  all at once (CapPa); 'prefix', int32 [B], says how many words of each text are given (SimVLM). The random key draws
  the negatives of the matching loss and what is dropped out; without them it may be left out. The metrics of a model
  with batch norms have its batch's statistics, too, as 'stats'. `memory`: of the momentum encoders, see
  `coca.training.step`.

  Args:
    config: the run.
    graphdef: of the model, where it is there already.

  Raises:
    ValueError: a loss that can't be cut into the micro-batches that the config asks for.
  """

  def __init__(self, config: Config, graphdef=None):
    self._config, self._graphdef = config, graphdef or abstract_model(config)[0]
    self._losses = terms(config)
    for term in self._losses:
      if term.cut == "no" and config.optim.accumulate > 1:
        raise ValueError(f"the {term.name} loss needs config.optim.accumulate 1: it can't be cut into micro-batches")

  def __call__(self, params, batch, noise, key=None, memory=None):
    if self._config.optim.accumulate > 1:
      return self._of_micro_batches(params, batch, noise, key)  # with momentum encoders these are refused
    return self._of_one_batch(params, batch, noise, key, memory)

  def _forward(self, params, batch, noise, key, losses, memory=None) -> Pass:
    """As far as `losses` ask for it."""
    params = stop_frozen(self._config, params)
    asks = frozenset().union(*(term.asks for term in losses))
    model = nnx.merge(self._graphdef, params)
    passed = Pass(temperature=params.get("temperature"), memory=memory, model=model, key=key)
    out = model(
      batch["image"],
      batch["text"],
      patch_noise=noise,
      key=passed.stream(Stream.DROPOUT),
      **{name: name in asks for name in ("contrast", "caption")},
      match=bool(asks & {"match", "write"}),
      **{name: batch[name] for name in ("parallel", "prefix", "has_image", "given") if name in batch},
      **({"classify": True} if "classify" in asks else {}),
    )
    passed = replace(passed, **out._asdict())
    if "more_texts" in batch:
      texts = batch["more_texts"]
      more = model.embed_text(texts.reshape(-1, texts.shape[-1]), passed.stream(Stream.MORE_TEXTS))
      passed = replace(passed, more_texts=more.reshape(*texts.shape[:2], -1))
    return ground_triples(passed, batch, self._config.matching) if "match" in asks else passed

  def _of_one_batch(self, params, batch, noise, key, memory):
    def loss(params):
      passed = self._forward(params, batch, noise, key, self._losses, memory)
      values = _values(self._losses, passed, batch, _divisors(self._losses, batch))
      values["loss"] = _total(self._losses, values)
      return values["loss"], values if passed.stats is None else values | {"stats": passed.stats}

    return jax.grad(loss, has_aux=True)(params)

  def _of_micro_batches(self, params, batch, noise, key):
    """Keeps the losses that compare all examples those of the whole batch, and caches its embeddings only.

    First pass: embeddings. Then the losses on them and their gradient. Second pass: each micro-batch forward and
    backward, with that gradient pulled through the towers, and its shares of the other losses.
    """
    config, k = self._config, self._config.optim.accumulate
    compared, shared = ([term for term in self._losses if term.cut == cut] for cut in ("by_embeddings", "adds_up"))
    divisors = _divisors(self._losses, batch)
    # Micro-batch i is rows i, i + k, ...: each device splits its own rows, and no row moves.
    split = jax.tree.map(lambda x: x.reshape(-1, k, *x.shape[1:]).swapaxes(0, 1), (batch, noise))
    split = *split, None if key is None else jax.random.split(key, k)

    def embed(_, part):
      return None, self._forward(params, *part, losses=compared).embeddings

    def compare(embeddings, temperature):
      if is_frozen(config, "temperature/log_scale"):
        temperature = jax.lax.stop_gradient(temperature)
      values = _values(compared, Pass(*embeddings, temperature=temperature), batch, divisors)
      return _total(compared, values), values

    values, pulls, grads = {}, Pass().embeddings, jax.tree.map(jnp.zeros_like, params)
    if compared:
      _, embeddings = jax.lax.scan(embed, None, split)
      embeddings = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), embeddings)
      (pulls, grads["temperature"]), values = jax.grad(compare, argnums=(0, 1), has_aux=True)(
        embeddings, params["temperature"]
      )
      pulls = jax.tree.map(lambda x: x.reshape(-1, k, *x.shape[1:]).swapaxes(0, 1), pulls)

    def backward(carry, inputs):
      part, pulls = inputs

      def loss(params):
        passed = self._forward(params, *part, losses=self._losses)
        shares = _values(shared, passed, part[0], divisors)
        pulled = [
          jnp.vdot(x, pull) for x, pull in zip(passed.embeddings, pulls, strict=True) if compared and x is not None
        ]
        return _total(shared, shares) + sum(pulled), shares

      return jax.tree.map(jnp.add, carry, jax.grad(loss, has_aux=True)(params)), None

    shares = {name: jnp.float32(0) for term in shared for name in term.metrics}
    (grads, shares), _ = jax.lax.scan(backward, (grads, shares), (split, pulls))
    values |= shares
    return grads, {"loss": _total(self._losses, values)} | values


def _divisors(losses: Sequence[Term], batch: dict) -> dict:
  return {term.name: term.divisor(batch) for term in losses}


def _values(losses: Sequence[Term], passed: Pass, batch: dict, divisors: dict) -> dict:
  """The values of all losses, by the names of metrics, each by its divisor."""
  values = {}
  for term in losses:
    with jax.named_scope(f"{term.name}_loss"):
      values |= {name: x / divisors[term.name] for name, x in term.value(passed, batch).items()}
  return values


def _total(losses: Sequence[Term], values: dict):
  return sum(term.weight * values[term.name] for term in losses)
