"""Starting a run from parameters that are there (`config.init_from`): a run's workdir, or a model directory.

Parameters that both models have are loaded. A part (top level of the parameters, such as 'multimodal' or
'contrastive_pooler') may be new or gone as a whole. So may the text embedding's parameters in 'unimodal', which belong
to the contrastive loss, and [MASK], of parallel prediction. New parameters keep their fresh values. Inside a part all
names and shapes have to agree: if not, a setting differs by mistake, and an error lists them. With `config.init_parts`
these parts alone are loaded. A class head is new where it has other classes or reads something else. Position
embeddings fit any size of image or length of text. If BLIP's text encoder and decoder shared a parameter and now have
one each, both start from it; so do the two cross-attentions of an encoder for two images, whose projections are new.
The optimizer begins anew.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from coca.config import Config
from coca.config.differing import listed
from coca.devices.trees import flat, nested
from coca.inference.forward import Forward
from coca.models.abstract import abstract_model
from coca.models.positions import resize_positions
from coca.objectives.momentum import momentum_params
from coca.storage.workdir import has_params, read_config, read_params
from coca.training.state import TrainState

IMAGES = ("image_encoder/positions", "positions")  # the second: SimVLM's
TEXTS = tuple(f"{part}embedding/positions" for part in ("", "text_encoder/", "text_decoder/"))
WORDS = ("embedding", "text_encoder", "text_decoder")  # parts with an embedding for each token
TWINS = {"text_encoder": "text_decoder", "text_decoder": "text_encoder"}
SECOND, FIRST = "/second_attention/", "/cross_attention/"
OPTIONAL = ("unimodal/cls", "unimodal/norm", "unimodal/projection", "embedding/mask", "text_encoder/merge")


def start_from(workdir, config: Config, state: TrainState, mesh) -> tuple[TrainState, str]:
  """A fresh training state with parameters, their average and momentum encoders from `workdir`; see `initial_params`.

  Returns:
    the state, and the report of what was loaded.
  """
  params, report = initial_params(workdir, config, state.params, mesh)
  # Copies, since the step is given each part of the state to write over.
  ema, momentum = (
    None if old is None else jax.tree.map(jnp.copy, new)
    for old, new in ((state.ema, params), (state.momentum, momentum_params(params) if state.momentum else None))
  )
  return replace(state, params=params, ema=ema, momentum=momentum), report


class Common(NamedTuple):
  """The common ground of an old model and a new one; parameters by name as `coca.devices.trees.flat` has them."""

  config: Config  # of the old one
  there: dict  # its parameters' shapes, under the new model's names
  here: dict  # those of the new one
  source: dict[str, str]  # name here -> name in the old model
  skipped: list[str]  # what only the old one has
  new: list[str]  # and only the new one
  resized: list[str]


def compare(workdir, config: Config) -> Common:
  """Compares the model in `workdir` with that of `config`, which starts from it; no parameter is read.

  Raises:
    FileNotFoundError: no model there, or no checkpoint yet.
    ValueError: a part differs inside; the differences are listed. Or LoRA would not train a new one.
  """
  old = read_config(workdir)
  if not has_params(workdir):
    raise FileNotFoundError(f"config.init_from={workdir} has no checkpoint yet: train there first, or name another")
  there, here = flat(abstract_model(old)[1]), flat(abstract_model(config)[1])
  parts = [dict.fromkeys(name.split("/")[0] for name in tree) for tree in (there, here)]
  if unknown := [part for part in config.init_parts if any(part not in each for each in parts)]:
    raise ValueError(
      f"config.init_parts has {unknown[0]!r}, which the model in {workdir} or the new one lacks; both have: "
      f"{', '.join(part for part in parts[0] if part in parts[1])}"
    )
  there = {name: x for name, x in there.items() if _is_wanted(name, there, here, old, config)}
  source = {name: _source(name, there) for name in here}
  used = set(source.values())
  there = {name: x for name, x in there.items() if name not in used} | {
    name: there[old] for name, old in source.items() if old in there
  }
  skipped, new = (_units(a, b) for a, b in ((there, here), (here, there)))
  resized = [
    name for name in (*IMAGES, *TEXTS) if name in there and name in here and there[name].shape != here[name].shape
  ]
  differing = [
    f"{name}: {_say(there.get(name))} there, {_say(here.get(name))} here"
    for name in sorted(there | here)
    if not _within(name, skipped + new)
    and not (name in resized and there[name].shape[1:] == here[name].shape[1:])
    and _say(there.get(name)) != _say(here.get(name))
  ]
  if differing:
    raise ValueError(
      f"config.init_from={workdir} holds another model; parts may be new or gone as a whole, but these "
      f"differ inside (take over its config.model):\n  {listed(differing)}"
    )
  fresh = dict.fromkeys(unit.split("/")[0] for unit in new)
  if config.optim.lora.rank and (left := [part for part in fresh if part not in config.optim.lora.whole]):
    raise ValueError(
      f"config.optim.lora would leave what is not in {workdir} as it is drawn: name {', '.join(left)} in "
      "config.optim.lora.whole"
    )
  return Common(old, there, here, source, skipped, new, resized)


def takes_words(config: Config) -> bool:
  """True if a run that starts from a model takes over its text embeddings, and so its tokenizer."""
  return not config.init_parts or bool({*WORDS} & {*config.init_parts})


def _is_wanted(name: str, there: dict, here: dict, old: Config, new: Config) -> bool:
  """False for a parameter of the old model that the new one is not to start from."""
  part, kernel = name.split("/")[0], "class_head/kernel"
  if part == "class_head" and kernel in there and kernel in here:
    same = all(getattr(old.classification, x) == getattr(new.classification, x) for x in ("pool", "images"))
    return same and there[kernel].shape == here[kernel].shape
  return not new.init_parts or part in new.init_parts


def initial_params(workdir, config: Config, fresh, mesh):
  """The parameters of the model in `workdir`, as far as the new one has them.

  Args:
    workdir: of a run, or a model directory.
    config: of the new run.
    fresh: its parameters, newly initialised, on the mesh.
    mesh: the devices.

  Returns:
    as `fresh`, and a report of what was loaded, resized, skipped and left fresh (several lines).

  Raises:
    as `compare`, and as `coca.storage.workdir.read_params`.
  """
  old, there, here, source, skipped, new, resized = compare(workdir, config)
  abstract = flat(Forward(old, mesh).abstract_params)
  wanted = nested({old: abstract[old] for name, old in source.items() if not _within(name, new)})
  target = Forward(config, mesh)

  def fit(loaded, fresh):
    loaded, out = flat(loaded), flat(fresh)
    for name, x in ((name, loaded[old]) for name, old in source.items() if old in loaded):
      if name in IMAGES:
        method = "bilinear" if config.model.kind == "coca" else "bicubic"
        x = resize_positions(x, config.model.image.tokens, int(config.model.image.class_token), method)
      elif name in TEXTS and len(x) != len(out[name]):
        x = fit_length(x, out[name], int(config.model.text.cls_position))
      out[name] = x
    return nested(out)

  params = jax.jit(fit, out_shardings=target.params_shardings)(read_params(workdir, wanted), fresh)
  return params, _report(workdir, there, here, skipped, new, resized)


def fit_length(positions, fresh, last: int = 0):
  """Position embeddings of a text [N, D] for another length: cut, or continued by those of `fresh` [M, D].

  The last ones, of a [CLS], stay the last ones.
  """
  old, new = len(positions) - last, len(fresh) - last
  kept = min(old, new)
  return jnp.concatenate([positions[:kept], fresh[kept:new], positions[old:]])


def _source(name: str, there: dict) -> str:
  """The parameter of the old model that `name` starts from: one of this name, or the one that it was shared with,
  or the first image's."""
  first = name if name in there else name.replace(SECOND, FIRST)
  part, _, rest = first.partition("/")
  twin = f"{TWINS.get(part)}/{rest}"
  return next((known for known in (first, twin) if known in there), name)


def _units(a: dict, b: dict) -> list[str]:
  """Parts, and what of `OPTIONAL`, that `a` has and `b` lacks."""

  def gone(unit):
    there, here = (any(_within(name, [unit]) for name in tree) for tree in (a, b))
    return there and not here

  parts = [part for part in dict.fromkeys(name.split("/")[0] for name in a) if gone(part)]
  return parts + [unit for unit in OPTIONAL if gone(unit) and not _within(unit, parts)]


def _within(name: str, units: Sequence[str]) -> bool:
  return any(f"{name}/".startswith(f"{unit}/") for unit in units)


def _say(x) -> str:
  return str(list(x.shape)) if x is not None else "none"


def _report(workdir, there, here, skipped, new, resized) -> str:
  """The origin of each part, with the number of parameters."""

  def count(tree, keep):
    return sum(math.prod(x.shape) for name, x in tree.items() if keep(name))

  lines = [f"config.init_from={workdir}:"]
  loaded = dict.fromkeys(name.split("/")[0] for name in here if not _within(name, new))
  lines.append(f"  loaded: {', '.join(loaded)} ({count(here, lambda n: not _within(n, new)):,} parameters)")
  lines += [f"  resized: {name} {_say(there[name])} to {_say(here[name])}" for name in resized]
  for what, tree, units in (("skipped, not in the new model", there, skipped), ("freshly initialised", here, new)):
    if units:
      lines.append(f"  {what}: {', '.join(units)} ({count(tree, lambda n, u=units: _within(n, u)):,} parameters)")
  return "\n".join([*lines, "  the optimizer's state is new"])
