"""A model's functions, compiled over a mesh: what evaluation and inference call.

`params` is always an argument, a tree of global arrays, so that a training loop can pass its current ones.
Shapes: B batch, F frames of a video, S side in pixels, K texts an image, T text length, E embedding width, C classes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from coca.config import Config
from coca.config.special import Special
from coca.decoding.common import Decoded
from coca.decoding.decode import decode
from coca.decoding.rank import rank_answers
from coca.decoding.settings import Decoding, check_decoding_model
from coca.devices.hardware import platform
from coca.devices.host import put_batch
from coca.devices.sharding import batch_sharding, param_shardings, replicated
from coca.models.abstract import abstract_model
from coca.models.outputs import Encoded, Scores
from coca.objectives.captioning import captioning_loss, log_likelihood

ANSWERS = 10  # to each question of a batch that are judged at once


class Forward:
  """Every result but those of `encode` and `writer` is fp32 or int32 and replicated: each process has it whole."""

  def __init__(self, config: Config, mesh):
    self.config, self.mesh = config, mesh
    self.graphdef, shapes = abstract_model(config)
    self._decoders, self._rankers = {}, {}
    self.params_shardings = param_shardings(shapes, mesh)
    self.abstract_params = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, self.params_shardings
    )

  def put(self, batch):
    """See `put_batch`."""
    return put_batch(batch, self.mesh)

  def embed_images(self, params, image):
    """uint8 [B, S, S, 3] -> fp32 [B, E], unit length.

    Of videos, F frames each, uint8 [B, F, S, S, 3]: the mean of the frames' embeddings (CoCa section 4.2.2), made unit
    length again. Each counts with unit length, as in CLIP4Clip's code (arXiv 2104.08860); CoCa does not say.
    """
    return self._call(self._embed_images, params, image)

  def first_tokens(self, params, image):
    """uint8 [B, S, S, 3] -> fp32 [B, D], the image encoder's states of the class token."""
    return self._call(self._first_tokens, params, image)

  def tokens(self, params, image):
    """uint8 [B, S, S, 3] -> fp32 [B, N, D], the image encoder's states, that of a class token first."""
    return self._call(self._tokens, params, image)

  def features(self, params, image):
    """uint8 [B, S, S, 3] -> fp32 [B, F], what the image embedding is made from (`coca.models.coca.CoCa.features`)."""
    return self._call(self._features, params, image)

  @functools.cached_property
  def feature_width(self) -> int:
    """F of `features`. Raises ValueError for models without an image encoder of its own."""
    if (kind := self.config.model.kind) not in ("coca", "blip", "albef", "align"):
      raise ValueError(f"config.model.kind is {kind!r}, without an image encoder of its own: it makes no features")
    size = self.config.model.image.size
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    return jax.eval_shape(lambda p, x: nnx.merge(self.graphdef, p).features(x), self.abstract_params, image).shape[1]

  def classify(self, params, image, text=None):
    """uint8 [B, S, S, 3], of pairs and videos [B, F, S, S, 3], for a head that reads texts int32 [B, T] -> fp32 [B, C],
    the class head's logits."""
    return self._call(self._classify, params, image, text)

  def attention_maps(self, params, image):
    """See `coca.models.coca.CoCa.attention_maps`; the maps are [B, side, side] and [B, Q, side, side] here."""
    return self._call(self._attention_maps, params, image)

  def embed_texts(self, params, text):
    """int32 [B, T] -> fp32 [B, E], unit length."""
    return self._call(self._embed_texts, params, text)

  def encode(self, params, image) -> Encoded:
    """All that captions and scores need of images, uint8 [B, S, S, 3], or of videos, [B, F, S, S, 3] -> device arrays,
    split over the batch."""
    if isinstance(image, jax.Array) and image.ndim == 5:
      check_films(self.config)
    return self._call(self._encode, params, image)

  def score(self, params, encoded: Encoded, text) -> Scores:
    """The fit of K texts to each image, int32 [B, K, T] -> fp32 [B, K] of each kind that the model has a head for.

    `contrastive` is the cosine, `matching` the probability that image and text match and `match_logit` the head's
    logit of it. The scores of a row without text, all padding, mean nothing. An `encoded` without `embedding` gets no
    cosines, at less cost.
    """
    return self._call(self._score, params, encoded, text)

  def judge(self, params, encoded: Encoded, caption, text):
    """Questions in their dialogs with K answers each, int32 [B, K, T], over images with captions, int32 [B, C] -> fp32
    [B, K], by how much the logit of 'true' is above that of 'false'. Answers go through the model a few at a time."""
    return self._call(self._judge, params, encoded, caption, text)

  def caption_loss(self, params, batch):
    """Sum of the negative log-likelihoods in nats, and the number of tokens, of {'image', 'text', 'weight'}."""
    return self._call(self._caption_loss, params, batch)

  def log_likelihood(self, params, image, text):
    """Log-probabilities in nats of texts, int32 [B, T], as captions of images: fp32 [B]."""
    return self._call(self._log_likelihood, params, image, text)

  def writer(self, params):
    """The parameters made ready for `caption`: once for many batches. They take the decoder's memory once more."""
    return params, self._call(self._decoding_weights, params)

  def caption(
    self,
    writer,
    encoded: Encoded,
    decoding: Decoding | None = None,
    *,
    special: Special,
    ids=None,
    prompt=None,
    lengths=None,
  ) -> Decoded:
    """Texts for images; one program is compiled for each `decoding` (whatever its seed) and each shape.

    Args:
      writer: see there.
      encoded: the images, from `encode`.
      decoding: the settings; None: greedy.
      ids: uint32 [B], which images these are (their numbers, or a hash of their keys): with the seed they decide what
        is sampled, wherever in whatever batch an image stands.
      prompt: int32 [B, P], the texts' beginnings as `coca.decoding.decode.prompts` makes them; None: BOS.
      lengths: int32 [B], of the prompts without padding.
      special: the tokenizer's ids.

    Returns:
      texts int32 [B, n, T] and their scores fp32 [B, n].

    Raises:
      ValueError: the model cannot do it, or `ids` or `lengths` is missing.
    """
    decoding = decoding or Decoding()
    check_decoding_model(decoding, self.config, asked=encoded.mask is not None)
    if decoding.strategy == "sample" and ids is None:
      raise ValueError("sampling needs ids: a number for each image, which decides what is drawn for it")
    if (prompt is None) != (lengths is None):
      raise ValueError("a prompt needs its lengths, and lengths a prompt: take both from coca.decoding.decode.prompts")
    inputs = {"ids": ids, "prompt": prompt, "lengths": lengths}
    return self._call(self._decoder(decoding, special), *writer, encoded, np.uint32(decoding.seed), inputs)

  def answer(self, writer, encoded: Encoded, question, decoding: Decoding, *, special: Special) -> Decoded:
    """Answers to questions int32 [B, T] about images, by a model that was trained to answer; as `caption`.

    A model that poses tasks has read the question with the image, and `question` is not looked at.
    """
    asked = encoded if self.config.model.poses_tasks else self._call(self._ask, writer[0], encoded, question)
    return self.caption(writer, asked, decoding, special=special)

  def rank_answers(self, params, encoded: Encoded, question, candidates, k: int):
    """The best of candidates int32 [C, A] for each question, int32 [B]; see `coca.decoding.rank`."""
    asked = self._call(self._ask, params, encoded, question)
    if k not in self._rankers:
      smoothing = self.config.captioning.label_smoothing
      self._rankers[k] = self._jit(lambda model, *args: rank_answers(model, *args, k, smoothing)[0])
    return self._call(self._rankers[k], params, asked, candidates)

  def programs(self, decoding: Decoding, special: Special) -> dict:
    """The functions behind `encode`, `writer`, `caption` and `score`, by these names, to compile ahead of time."""
    return {
      "encode": self._encode,
      "writer": self._decoding_weights,
      "caption": self._decoder(decoding, special),
      "score": self._score,
    }

  def _decoder(self, decoding: Decoding, special: Special):
    decoding = dataclasses.replace(decoding, seed=0)
    if (decoding, special) not in self._decoders:
      length = self.config.model.text.length
      self._decoders[decoding, special] = self._jit(
        lambda model, weights, encoded, seed, inputs: decode(
          model, weights, encoded, decoding, length, special, seed=seed, **inputs
        )
      )
    return self._decoders[decoding, special]

  def _call(self, function, *args):
    with jax.set_mesh(self.mesh):
      return function(*args)

  def _jit(self, function, sharding=replicated):
    return jax.jit(
      lambda params, *args: function(nnx.merge(self.graphdef, params), *args), out_shardings=sharding(self.mesh)
    )

  @functools.cached_property
  def _decoding_weights(self):
    # Where they lie is up to the constraints inside: the tensor axis stays split.
    return jax.jit(lambda params: nnx.merge(self.graphdef, params).decoding_weights())

  @functools.cached_property
  def _embed_images(self):
    def embed(model, image):
      if image.ndim == 4:
        return in_groups(model.embed_image, image, self.config.model.image.tokens)
      each = in_groups(model.embed_image, image.reshape(-1, *image.shape[2:]), self.config.model.image.tokens)
      mean = each.reshape(*image.shape[:2], -1).mean(axis=1)
      return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)

    return self._jit(embed)

  @functools.cached_property
  def _first_tokens(self):
    tokens = self.config.model.image.tokens
    return self._jit(
      lambda model, image: in_groups(lambda x: model.image_encoder(x)[:, 0].astype(np.float32), image, tokens)
    )

  @functools.cached_property
  def _tokens(self):
    tokens = self.config.model.image.tokens
    return self._jit(lambda model, image: in_groups(lambda x: model.image_encoder(x).astype(np.float32), image, tokens))

  @functools.cached_property
  def _features(self):
    return self._jit(lambda model, image: in_groups(model.features, image, self.config.model.image.tokens))

  @functools.cached_property
  def _classify(self):
    return self._jit(lambda model, *x: in_groups(lambda x: model.classify(*x), x, self._tokens_of(x[0])))

  @functools.cached_property
  def _attention_maps(self):
    side = self.config.model.image.size // self.config.model.image.patch
    return self._jit(
      lambda model, image: jax.tree.map(lambda x: x.reshape(*x.shape[:-1], side, side), model.attention_maps(image))
    )

  @functools.cached_property
  def _embed_texts(self):
    return self._jit(lambda model, text: model.embed_text(text))

  @functools.cached_property
  def _encode(self):
    return self._jit(lambda model, image: in_groups(model.encode, image, self._tokens_of(image)), batch_sharding)

  def _tokens_of(self, image) -> int:
    """Tokens of an example, an image or several."""
    several = image.shape[1] if isinstance(image, jax.Array) and image.ndim == 5 else 1
    return several * self.config.model.image.tokens

  @functools.cached_property
  def _ask(self):
    return self._jit(lambda model, encoded, question: model.ask(encoded.tokens, question), batch_sharding)

  @functools.cached_property
  def _score(self):
    return self._jit(lambda model, encoded, text: model.score(encoded, text))

  @functools.cached_property
  def _judge(self):
    def judge(model, encoded, caption, text):
      recalled, (rows, answers, length) = model.recall(encoded.tokens, caption), text.shape
      text = jnp.pad(text, ((0, 0), (0, -answers % ANSWERS), (0, 0))).reshape(rows, -1, ANSWERS, length)
      logits = jax.lax.map(lambda some: model.judge(recalled, some), text.swapaxes(0, 1)).swapaxes(0, 1)
      return (logits[..., 1] - logits[..., 0]).reshape(rows, -1)[:, :answers]

    return self._jit(judge)

  @functools.cached_property
  def _caption_loss(self):
    settings = dataclasses.replace(self.config.captioning, tokens="mean", label_smoothing=0.0)

    def loss(model, batch):
      out = model(batch["image"], batch["text"], contrast=False)
      kernel, bias = model.softmax_kernel(), model.softmax_bias
      return captioning_loss(out.states, kernel, batch["text"], batch["weight"], settings, bias)

    return self._jit(loss)

  @functools.cached_property
  def _log_likelihood(self):
    def likelihood(model, image, text):
      states = model(image, text, contrast=False).states
      return log_likelihood(states, model.softmax_kernel(), text, model.softmax_bias)

    return self._jit(likelihood)


def check_films(config: Config) -> None:
  """Raises ValueError if a model's decoder can't look at videos."""
  if (kind := config.model.kind) not in ("coca", "blip", "albef"):
    raise ValueError(f"config.model.kind is {kind!r}: of CoCa and BLIP alone the decoder looks at videos")


# Tokens that go through an encoder at once on one CPU device. 16 images of 384 pixels take ViT-B/16 10.9 seconds four
# at a time, whose activations stay in the caches, and 14.7 all at once.
GROUP = 2500


def in_groups(function, x, tokens: int):
  """function(x), x and the result trees of [B, ...]; on one CPU device some rows at a time, `tokens` in each."""
  mesh = jax.sharding.get_abstract_mesh()
  most = max(1, GROUP // tokens)
  rows = len(jax.tree.leaves(x)[0])
  if platform() != "cpu" or mesh.size > 1 or rows <= most:
    return function(x)
  group = max(n for n in range(1, most + 1) if rows % n == 0)
  out = jax.lax.map(function, jax.tree.map(lambda y: y.reshape(-1, group, *y.shape[1:]), x))
  return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), out)
