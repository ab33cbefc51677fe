"""A model's functions, compiled over a mesh: what evaluation and inference call.

`params` is always an argument, a tree of global arrays, so that a training loop can pass its current ones.
Shapes: B batch, S side in pixels, T text length, E embedding width.
"""

import dataclasses
import functools

import jax
from flax import nnx

from coca.config import Config
from coca.decoding.greedy import greedy
from coca.models.coca import CoCa
from coca.objectives.captioning import captioning_loss
from coca.sharding import batch_sharding, param_shardings, replicated


def abstract_model(config: Config):
  """The model's graph definition, and its parameters as a nested dict of ShapeDtypeStructs; nothing is computed."""
  graphdef, state = nnx.split(nnx.eval_shape(lambda: CoCa(config, nnx.Rngs(0))))
  return graphdef, nnx.to_pure_dict(state)


def put_batch(batch, mesh):
  """This process' rows (a tree of numpy arrays) as global arrays split over the batch axes."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


class Forward:
  """Every result is fp32 or int32 and replicated: each process has it whole."""

  def __init__(self, config: Config, mesh):
    self.config, self.mesh = config, mesh
    self.graphdef, shapes = abstract_model(config)
    self.params_shardings = param_shardings(shapes, mesh)
    self.abstract_params = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.params_shardings
    )

  def put(self, batch):
    """See `put_batch`."""
    return put_batch(batch, self.mesh)

  def embed_images(self, params, image):
    """uint8 [B, S, S, 3] -> fp32 [B, E], unit length."""
    return self._call(self._embed_images, params, image)

  def embed_texts(self, params, text):
    """int32 [B, T] -> fp32 [B, E], unit length."""
    return self._call(self._embed_texts, params, text)

  def caption_loss(self, params, batch):
    """Sum of the negative log-likelihoods in nats, and the number of tokens, of {'image', 'text', 'weight'}."""
    return self._call(self._caption_loss, params, batch)

  def caption(self, params, image, bos: int, eos: int):
    """Greedy captions: uint8 [B, S, S, 3] -> int32 [B, T]; `bos` and `eos` are the tokenizer's."""
    return self._call(self._caption, params, image, bos, eos)

  def _call(self, function, *args):
    with jax.set_mesh(self.mesh):
      return function(*args)

  def _jit(self, function):
    return jax.jit(
      lambda params, *args: function(nnx.merge(self.graphdef, params), *args), out_shardings=replicated(self.mesh)
    )

  @functools.cached_property
  def _embed_images(self):
    return self._jit(lambda model, image: model.embed_image(image))

  @functools.cached_property
  def _embed_texts(self):
    return self._jit(lambda model, text: model.embed_text(text))

  @functools.cached_property
  def _caption_loss(self):
    settings = dataclasses.replace(self.config.captioning, tokens="mean", label_smoothing=0.0)

    def loss(model, batch):
      out = model(batch["image"], batch["text"], contrast=False)
      return captioning_loss(out.states, model.softmax_kernel(), batch["text"], batch["weight"], settings)

    return self._jit(loss)

  @functools.cached_property
  def _caption(self):
    length = self.config.model.text.length
    return self._jit(lambda model, image, bos, eos: greedy(model, model.image_tokens(image), length, bos, eos))
