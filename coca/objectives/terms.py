"""The losses that a model is trained with, each as `coca.objectives.term.Term` describes it."""

import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from coca.config import Config
from coca.objectives.captioning import captioning_loss, label_count, next_tokens
from coca.objectives.classification import Classification
from coca.objectives.contrastive import contrastive_loss
from coca.objectives.dialogs import Dialogs
from coca.objectives.masked import masked_loss, word_weights
from coca.objectives.matching import matching_loss
from coca.objectives.momentum import momentum_contrastive_loss
from coca.objectives.self_critical import SelfCritical
from coca.objectives.term import Pass, Stream, Term


class Contrastive(Term):
  """CoCa equation 2 over the whole batch, the sigmoid in its place, or BLIP's with momentum encoders."""

  name, metrics = "contrastive", ("contrastive", "temperature")
  asks = frozenset({"contrast"})

  def __init__(self, config: Config):
    self.weight, self.settings, self.batch = config.contrastive.weight, config.contrastive, config.data.batch
    self.length = config.model.text.length
    self.cut = "no" if self.settings.momentum else "by_embeddings"

  def value(self, passed: Pass, batch: dict):
    assert passed.image is not None and passed.text is not None and passed.temperature  # it asks for them
    pairs = passed.image, passed.text
    given = batch["hashes"], batch["weight"]
    log_scale, memory = passed.temperature["log_scale"], passed.memory
    if memory is None:
      loss = contrastive_loss(*pairs, *given, passed.temperature, self.settings)
    else:
      slow = memory["image"], memory["text"], memory["queue"]
      loss = momentum_contrastive_loss(*pairs, *slow, *given, log_scale, memory["alpha"], self.settings)
    if passed.more_texts is not None:
      for k in range(self.settings.texts - 1):
        given = passed.more_texts[:, k], batch["more_hashes"][:, k], batch["weight"]
        loss += contrastive_loss(passed.image, *given, passed.temperature, self.settings)
      loss /= self.settings.texts
    return {"contrastive": loss, "temperature": jnp.exp(-log_scale)}

  def arrays(self):
    more = self.settings.texts - 1
    return {"more_texts": ((more, self.length), jnp.int32), "more_hashes": ((more, 2), jnp.uint32)} if more else {}

  def at_start(self):
    c = self.settings
    if c.loss == "softmax":
      keys, directions = self.batch + (c.queue if c.momentum else 0), 2 if c.directions == "sum" else 1
      return directions * math.log(keys), f"{'2 ' if directions == 2 else ''}ln {keys:,}"
    others = self.batch - 1
    size = np.logaddexp(0, -c.bias) + others * np.logaddexp(0, c.bias)
    return size, f"a pair's and {others:,} others' with bias {c.bias:g}"


class Captioning(Term):
  """CoCa equation 3: the next token of each text."""

  name, metrics = "captioning", ("captioning",)
  cut = "adds_up"

  def __init__(self, config: Config):
    self.weight, self.settings, self.vocab = config.captioning.weight, config.captioning, config.model.text.vocab
    self.prefixes = config.model.kind == "simvlm"
    # CoCa's matching head reads the states that words are predicted from; BLIP's has an encoder of its own.
    grounded = config.matching.weight > 0 and config.model.kind == "coca"
    self.asks = frozenset() if grounded else frozenset({"caption"})

  def value(self, passed: Pass, batch: dict):
    model = passed.model
    triples = passed.triples
    states = passed.states if self.asks or triples is None else triples.states[:, 0]
    assert states is not None
    nll, _ = captioning_loss(
      states,
      model.softmax_kernel(),
      batch["text"],
      batch["weight"],
      self.settings,
      model.softmax_bias,
      batch.get("last"),
      batch.get("prefix"),
    )
    return {"captioning": nll}

  def divisor(self, batch: dict):
    prompt = batch.get("prefix", self.settings.prompt_tokens)
    _, weights = next_tokens(batch["text"], batch["weight"], prompt)
    return jnp.maximum(label_count(weights, batch["weight"], self.settings), 1e-9)

  def arrays(self):
    return {"has_image": ((), jnp.float32)} if self.prefixes else {}

  def at_start(self):
    """The loss of one token where it is a sum over them."""
    each = " for each token of a text" if self.settings.tokens == "sum" else ""
    return math.log(self.vocab), f"ln {self.vocab:,}{each}"


class Matching(Term):
  """BLIP section 3.2: whether image and text belong together, with hard negatives drawn from the whole batch."""

  name, metrics = "matching", ("matching", "matching_accuracy")
  asks = frozenset({"contrast", "match"})
  cut = "no"

  def __init__(self, config: Config):
    self.weight = config.matching.weight

  def value(self, passed: Pass, batch: dict):
    triples = passed.triples
    assert triples is not None
    logits = passed.model.match(triples.states, triples.text)
    loss, accuracy = matching_loss(logits, batch["weight"], triples.found)
    return {"matching": loss, "matching_accuracy": accuracy}

  def at_start(self):
    return math.log(2), "ln 2"


class Answering(Term):
  """BLIP section 5.3: the next token of each answer, weighted, over all questions."""

  name, metrics = "answering", ("answering",)
  asks = frozenset()
  cut = "adds_up"

  def __init__(self, config: Config):
    self.weight, self.settings, self.vocab = config.answering.weight, config.answering, config.model.text.vocab
    self.captioning = replace(config.captioning, tokens="sum", prompt_tokens=0)  # answers have no prompt

  def value(self, passed: Pass, batch: dict):
    model, answers = passed.model, batch["answers"]
    asked = model.ask(passed.tokens, batch["text"], passed.stream(Stream.QUESTION))
    states = model.answer(asked, answers, passed.stream(Stream.ANSWER))
    weight = (batch["weight"][:, None] * batch["answer_weight"]).reshape(-1)
    nll, _ = captioning_loss(
      states,
      model.softmax_kernel(),
      answers.reshape(-1, answers.shape[-1]),
      weight,
      self.captioning,
      model.softmax_bias,
    )
    return {"answering": nll}

  def divisor(self, batch: dict):
    return jnp.maximum(batch["weight"].sum(), 1e-9)

  def arrays(self):
    number, length = self.settings.answers, self.settings.length
    return {"answers": ((number, length), jnp.int32), "answer_weight": ((number,), jnp.float32)}

  def at_start(self):
    return math.log(self.vocab), f"ln {self.vocab:,} for each token of an answer"


class Masked(Term):
  """ALBEF section 3.2: the hidden words of each text, told from the others and the image."""

  name, metrics = "masked", ("masked",)
  asks = frozenset()
  cut = "adds_up"

  def __init__(self, config: Config):
    self.weight, self.chunk, self.vocab = config.masked.weight, config.captioning.chunk, config.model.text.vocab

  def value(self, passed: Pass, batch: dict):
    model, memory = passed.model, passed.memory
    states = model.fill(passed.tokens, batch["masked"], batch["masked_at"], passed.stream(Stream.MASKED))
    soft = memory["words"] if memory else None
    head = model.softmax_kernel(), model.softmax_bias
    return {"masked": masked_loss(states, *head, batch["masked_words"], batch["weight"], self.chunk, soft)}

  def divisor(self, batch: dict):
    return jnp.maximum(word_weights(batch["masked_words"], batch["weight"]).sum(), 1e-9)

  def at_start(self):
    return math.log(self.vocab), f"ln {self.vocab:,}"


# All there are, in the order in which they are computed, logged and drawn.
LOSSES: tuple[type[Term], ...] = (
  Contrastive,
  Captioning,
  Matching,
  Answering,
  Masked,
  Classification,
  SelfCritical,
  Dialogs,
)


def terms(config: Config) -> list[Term]:
  """The losses of a config: those that have a weight."""
  return [term for term in (loss(config) for loss in LOSSES) if term.weight > 0]
