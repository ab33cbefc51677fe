"""A model's towers and its captioner as functions of parameters and one array, for machines without coca.

They are traced for no platform in particular: attention and norms are XLA's everywhere, and no kernel is in them.

Shapes: B batch, S side in pixels, T text length, E embedding width, n texts an image, P prompt length.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from coca.config.special import Special
from coca.decoding.decode import decode, own_prompt
from coca.decoding.settings import Decoding, check_decoding_model
from coca.devices.trees import flat, nested
from coca.inference.captioner import ContrastiveCaptioner
from coca.models.abstract import abstract_model


class Program(NamedTuple):
  """A function of tensors by name (`tensors_of`) and one array [B, ...]."""

  function: Callable
  input: str  # the array's name
  shape: tuple[int, ...]  # of one example of it
  dtype: str
  below: int  # what its numbers are, from 0 on
  output: str


def tensors_of(params) -> dict:
  """Parameters by the names that a file of weights has for them, as in 'unimodal.stack.layers.mlp.up.kernel'."""
  return {name.replace("/", "."): x for name, x in flat(params).items()}


def programs(
  model: ContrastiveCaptioner, decoding: Decoding | None = None, dtype: str = ""
) -> tuple[dict[str, Program], dict[str, str]]:
  """The functions of a model that others may run.

  Args:
    model: from `coca.load`.
    decoding: of captions; None: greedy.
    dtype: in which they compute, 'float32' or 'bfloat16'; empty: the model's own, float32 where that is 'auto'.

  Returns:
    those that it has: 'embed_images', uint8 [B, S, S, 3] -> fp32 [B, E], and 'embed_texts', int32 [B, T] ->
    fp32 [B, E], of unit length; 'caption', uint8 [B, S, S, 3] -> int32 [B, n, T]. And why it lacks the others.

  Raises:
    ValueError: the model reads regions or has none of these functions; samples are asked for, or captions that it
      can't write.
  """
  config, decoding = model.config, decoding or Decoding()
  if config.model.reads_regions:
    raise ValueError(
      f"this model reads the regions of a detector (config.model.kind is {config.model.kind!r}); models that read "
      "images are exported"
    )
  if decoding.strategy == "sample":
    raise ValueError("decoding: what is exported draws no samples; take strategy 'greedy' or 'beam'")
  own = "float32" if config.model.dtype == "auto" else config.model.dtype
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype or own))
  side, length, graphdef = config.model.image.size, config.model.text.length, abstract_model(config)[0]
  image, found, lacking = ("image", (side, side, 3), "uint8", 256), {}, {}
  if config.contrastive.heads:
    found["embed_images"] = Program(functools.partial(_embed_images, graphdef), *image, "embedding")
    ids = "ids", (length,), "int32", config.model.text.vocab
    found["embed_texts"] = Program(functools.partial(_embed_texts, graphdef), *ids, "embedding")
  else:
    reason = "this model was trained without a contrastive loss (config.contrastive.weight is 0)"
    lacking = {"embed_images": reason, "embed_texts": reason}
  try:
    check_decoding_model(Decoding(), config)
  except ValueError as e:
    lacking["caption"] = str(e)
  else:
    check_decoding_model(decoding, config)
    prompt, _ = own_prompt(config, model.tokenizer, 1, decoding.max_length)
    special = Special(model.tokenizer.bos, model.tokenizer.eos)
    write = functools.partial(_caption, graphdef, decoding, length, special, prompt)
    found["caption"] = Program(write, *image, "ids")
  if not found:
    raise ValueError(f"nothing to export: {'; '.join(dict.fromkeys(lacking.values()))}")
  return found, lacking


def _embed_images(graphdef, tensors, image):
  return _merged(graphdef, tensors).embed_image(image)


def _embed_texts(graphdef, tensors, ids):
  return _merged(graphdef, tensors).embed_text(ids)


def _caption(graphdef, decoding, length, special, prompt, tensors, image):
  """`prompt`: 'prompt' [1, P] and 'lengths' [1] of all captions, or nothing."""
  model = _merged(graphdef, tensors)
  begin = {name: jnp.broadcast_to(x, (image.shape[0], *x.shape[1:])) for name, x in prompt.items()}
  encoded, prompt, lengths = model.encode(image), begin.get("prompt"), begin.get("lengths")
  weights = model.decoding_weights()
  return decode(model, weights, encoded, decoding, length, special, prompt=prompt, lengths=lengths).text


def _merged(graphdef, tensors):
  return nnx.merge(graphdef, nested({name.replace(".", "/"): x for name, x in tensors.items()}))
