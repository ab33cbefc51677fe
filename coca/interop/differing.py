"""The check that a library makes the same model of the settings that are written for it."""

import dataclasses

from coca.config import Config
from coca.config.differing import differing, flat

# They say how it begins or how it is computed, and not what it is.
FREE = ("dtype", "remat", "attention", "unroll", "image.position_init", "image.position_scale")


def check_same(config: Config, again: Config, whose: str) -> None:
  """Raises a ValueError that lists what differs in the models.

  Args:
    config: of the model.
    again: what comes back of the settings that were written of it.
    whose: the library's name.
  """
  here, there = (flat(dataclasses.asdict(c.model)) for c in (config, again))
  for side, model in ((here, config.model), (there, again.model)):
    side["embed_dim"] = model.embed_dim or model.text.width
    side["image.norm_eps"] = model.image.norm_eps or model.norm_eps
    side["text.activation"] = model.activation if model.text.activation == "model" else model.text.activation
    side["poolers.heads"] = model.poolers.heads or model.image.heads
    side["poolers.width"] = model.poolers.width or model.text.width
  if config.model.poolers.kind == again.model.poolers.kind == "class_token":  # no pooler: these mean nothing
    here |= {k: v for k, v in there.items() if k.startswith("poolers.") and not here["poolers.n_query"]}
  lines = [
    f"  config.model.{name}: {ours!r} here, {theirs!r} there"
    for name, (ours, theirs) in differing(here, there).items()
    if name not in FREE
  ]
  if lines:
    raise ValueError(f"{whose} has no such model:\n" + "\n".join(lines))
