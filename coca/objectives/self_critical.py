"""Self-critical sequence training (Rennie et al., arXiv 1612.00563): captions that the model drew, learned by how much
better than a baseline they are.

The gradient is that of section 3.1, REINFORCE with a baseline: of each caption -(r - b) times the gradient of its
log-probability, which is a sum over its tokens with EOS; the mean over images and their captions is taken. What is
drawn, and r and b, CIDEr-D of words on the host, come with the batch (`coca.training.self_critical`).

Shapes: B images, n captions of each, T tokens.
"""

from dataclasses import replace

import jax.numpy as jnp

from coca.config import Config
from coca.objectives.captioning import captioning_loss
from coca.objectives.term import Pass, Stream, Term


class SelfCritical(Term):
  """The policy gradient of 'samples' int32 [B, n, T] by 'reward' and 'baseline' fp32 [B, n]."""

  name, metrics = "self_critical", ("self_critical", "reward", "baseline")
  asks = frozenset({"write"})
  cut = "adds_up"

  def __init__(self, config: Config):
    self.weight, self.settings, self.length = (
      config.self_critical.weight,
      config.self_critical,
      config.model.text.length,
    )
    # Of one text the sum over its tokens; targets are the words as they were drawn.
    self.captioning = replace(config.captioning, tokens="sum", label_smoothing=0.0)

  def value(self, passed: Pass, batch: dict):
    model, samples = passed.model, batch["samples"]
    states = model.read_captions(passed.tokens, samples, passed.stream(Stream.SAMPLES))
    weight = batch["weight"][:, None]
    nll, _ = captioning_loss(
      states,
      model.softmax_kernel(),
      samples.reshape(-1, samples.shape[-1]),
      (weight * (batch["reward"] - batch["baseline"])).reshape(-1),
      self.captioning,
      model.softmax_bias,
    )
    means = {name: jnp.sum(weight * batch[name]) for name in ("reward", "baseline")}
    return {"self_critical": nll} | means

  def divisor(self, batch: dict):
    return jnp.maximum(self.settings.samples * batch["weight"].sum(), 1e-9)

  def arrays(self):
    n = self.settings.samples
    return {"samples": ((n, self.length), jnp.int32)} | dict.fromkeys(("reward", "baseline"), ((n,), jnp.float32))

  def at_start(self):
    return 0.0, "captions are drawn that are as good as the baseline"
