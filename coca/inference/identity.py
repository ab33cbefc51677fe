"""A checksum of a model, wherever it lies."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from coca.config import Model
from coca.config.typed import to_plain
from coca.devices.trees import flat
from coca.inference.captioner import ContrastiveCaptioner


def identity(model: ContrastiveCaptioner | None) -> str | None:
  """sha256 of a model's settings, tokenizer and parameters: which model it is, wherever it lies."""
  if model is None:
    return None
  # Without defaults, so that a setting that is newer than a job does not change it.
  default, settings = (flat(to_plain(x)) for x in (Model(), model.config.model))
  default["attention"] = "auto" if settings["attention"] == "auto" else "xla"  # 'xla' was the default before 'auto'
  changed = {name: value for name, value in settings.items() if value != default[name]}
  digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode())
  digest.update((model.tokenizer.sha256 + model.config.data.prompt).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(jnp.copy(leaf)))  # of the leaf itself jax would keep the host's copy
  return f"sha256:{digest.hexdigest()}"
