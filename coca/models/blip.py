"""BLIP: an image encoder and a multimodal mixture of encoder and decoder (MED; arXiv 2201.12086, section 3.1).

One text, three readings, told apart by its first token: [CLS], the text encoder; [Encode], the image-grounded
encoder, which is the text encoder with its cross-attention; [Decode], the image-grounded decoder, causal. The image's
embedding comes from the image encoder's class token, and all its tokens are attended to.

Shapes: B batch, F frames of a video, S side in pixels, N image tokens, K texts an image, T text length, D text width,
E embedding width, V vocabulary, L layers.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int32, PRNGKeyArray, UInt8

from coca.config import Config, Med
from coca.config.special import PAD
from coca.models.bert import Bert, CaptionHead
from coca.models.cached_decoding import vocabulary_logits
from coca.models.image_encoder import ImageEncoder
from coca.models.linear import linear
from coca.models.nlvr import PairBert
from coca.models.outputs import Encoded, Output, Scores, Temperature, compute_dtype, joined, mean_unit, unit
from coca.models.rngs import Rngs
from coca.models.text_decoder import with_first

# Parts that a config has no use for are None; coca/config/checks.py says what needs what, and pyright can't know it.
# pyright: reportOptionalCall=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false

SHARED = {  # by `config.model.med.sharing`, parts of a layer that encoder and decoder have in common
  "all": ("norm_self", "self_attention", "norm_cross", "cross_attention", "norm_mlp", "mlp"),
  "all_but_cross_attention": ("norm_self", "self_attention", "norm_mlp", "mlp"),
  "all_but_self_attention": ("norm_cross", "cross_attention", "norm_mlp", "mlp"),
  "none": (),
}


class WordHead(nnx.Module):
  """The table of `text_decoder`'s words as the head, behind `caption_head` where there is one."""

  text_decoder: Any
  caption_head: Any

  def softmax_kernel(self) -> Float[Array, "D V"]:
    """The vocabulary head: states @ kernel + `softmax_bias` are the logits."""
    return self.text_decoder.embedding.tokens[...].T

  @property
  def softmax_bias(self) -> Float[Array, " V"] | None:
    return self.caption_head.bias[...] if self.caption_head else None

  def decoding_weights(self) -> dict:
    """The decoding protocol of `coca.decoding`: what `start_decoding` takes, a tree of arrays."""
    return self.text_decoder.decoding_weights()

  def start_decoding(self, weights: dict, *args, **given):
    """The decoding protocol of `coca.decoding`."""

    def predict(words, states):
      if self.caption_head is None:
        return vocabulary_logits(states, words)
      return vocabulary_logits(self.caption_head(states), words) + self.caption_head.bias[...]

    return self.text_decoder.start_decoding(predict, weights, *args, **given)


class ImageHeads(nnx.Module):
  """The projections, built where `config.contrastive.heads`, and the head that tells matches, built where matching has
  a weight: BLIP's and ALBEF's, which come after all other parts."""

  image_encoder: Any
  text_encoder: Any
  med: Med
  ground: Any

  def add_heads(self, config: Config, rngs: Rngs) -> None:
    model, has_embeddings, dtype = config.model, config.contrastive.heads, compute_dtype(config)
    self.image_projection = linear(model.image.width, model.embed_dim, dtype, rngs) if has_embeddings else None
    self.text_projection = linear(model.text.width, model.embed_dim, dtype, rngs) if has_embeddings else None
    self.temperature = Temperature(config) if has_embeddings else None
    has_matching = max(config.matching.weight, config.dialog.weight) > 0
    self.matching_head = linear(model.text.width, 2, jnp.float32, rngs) if has_matching else None

  def embed_image(self, image: UInt8[Array, "B S S 3"]) -> Float32[Array, "B E"]:
    """Embeddings of unit length."""
    return self._project(self.image_encoder(image))

  def features(self, image: UInt8[Array, "B S S 3"]) -> Float32[Array, "B F"]:
    """The class token's states, which the embedding is projected from."""
    return self.image_encoder(image)[:, 0].astype(jnp.float32)

  def encode(self, image: UInt8[Array, "B S S 3"] | UInt8[Array, "B F S S 3"]) -> Encoded:
    """The embedding, where the model has one, and all image tokens.

    Of a video (BLIP section 5.6) the tokens of its frames stand one behind the other, and the embedding is the mean of
    theirs.
    """
    tokens, frames = self.image_encoder(image.reshape(-1, *image.shape[-3:])), image.shape[1] if image.ndim == 5 else 1
    embedding = mean_unit(self._project(tokens), frames) if self.image_projection else None
    return Encoded(embedding, joined(tokens, frames))

  def embed_text(self, text: Int32[Array, "B T"], key: PRNGKeyArray | None = None) -> Float32[Array, "B E"]:
    """Embeddings of unit length."""
    return self._embed(self._read(text, key))

  def match(self, states: Float[Array, "B K T D"], text: Int32[Array, "B K T"]) -> Float32[Array, "B K 2"]:
    """`ground`'s states -> logits: of no match, and of a match."""
    del text
    return self.matching_head(states[..., 0, :].astype(jnp.float32))

  def score(self, encoded: Encoded, text: Int32[Array, "B K T"]) -> Scores:
    """Images and K texts of each; without an embedding of the images there are no cosines."""
    contrastive = matching = logits = None
    words = self._read(text.reshape(-1, text.shape[2])) if self.text_encoder else None
    if encoded.embedding is not None:
      contrastive = jnp.sum(encoded.embedding[:, None] * self._embed(words).reshape(*text.shape[:2], -1), axis=-1)
    if self.matching_head is not None:
      logits = self.match(self.ground(words.reshape(*text.shape, -1), text, encoded.tokens), text)
      matching, logits = jax.nn.softmax(logits)[..., 1], logits[..., 1]
    return Scores(contrastive, matching, logits)

  @jax.named_scope("text_encoder")
  def _read(self, text, key=None):
    """Texts [B, T] -> states [B, T, D]; [CLS] takes the first token's place."""
    return self.text_encoder(with_first(text, self.med.cls), key=key)

  def _embed(self, words):
    return unit(self.text_projection(words[:, 0]))

  def _project(self, tokens):
    return unit(self.image_projection(tokens[:, 0]))


class Blip(WordHead, ImageHeads):
  """Encoder and decoder are built where they have layers. A decoder without image tokens to look at, that of a model
  that answers questions, looks at the question's states instead. With a class head the encoder looks at two images, as
  for NLVR2 (section 5.4)."""

  def __init__(self, config: Config, rngs: Rngs):
    model = config.model
    text, dtype = model.text, compute_dtype(config)
    has_answering = config.answering.weight > 0
    self.dtype, self.med = dtype, model.med
    self.image_encoder = ImageEncoder(model, dtype, rngs)
    image_width, context_width = model.image.width, text.width if has_answering else model.image.width
    n_encoder, n_decoder = text.unimodal_layers, text.multimodal_layers
    classes = config.classification
    encoder = PairBert if classes.weight else Bert
    self.text_encoder = encoder(model, n_encoder, image_width, dtype, rngs) if n_encoder else None
    self.text_decoder = Bert(model, n_decoder, context_width, dtype, rngs) if n_decoder else None
    self.caption_head = CaptionHead(model, dtype, rngs) if n_decoder else None
    if self.text_encoder and self.text_decoder and not has_answering:
      self.text_encoder.share(self.text_decoder, SHARED[model.med.sharing])
    self.add_heads(config, rngs)
    self.class_hidden = linear(text.width, text.width, jnp.float32, rngs) if classes.weight else None
    self.class_head = linear(text.width, classes.classes, jnp.float32, rngs) if classes.weight else None

  def __call__(
    self,
    image: UInt8[Array, "B S S 3"] | UInt8[Array, "B F S S 3"],
    text: Int32[Array, "B T"],
    *,
    contrast: bool = True,
    caption: bool = True,
    classify: bool = False,
    patch_noise: Float[Array, "B N"] | None = None,
    key: PRNGKeyArray | None = None,
    **_,
  ) -> Output:
    """One pass over each tower that the losses need.

    Args:
      image: pixels of 0 to 255; of both images for the class head; of the frames of a video, where captions alone are
        computed.
      text: [Decode], words, [SEP], padding.
      contrast: whether to compute the embeddings.
      caption: whether to compute the decoder's states.
      classify: whether to compute the classes' logits, and nothing else.
      patch_noise: see `ImageEncoder`.
      key: for dropout; None: none.
    """
    if classify:
      return Output(None, None, None, None, None, self.classify(image, text, key))
    key, more = (None, None) if key is None else jax.random.split(key)
    tokens = self.image_encoder(image.reshape(-1, *image.shape[-3:]), patch_noise)
    tokens = joined(tokens, image.shape[1] if image.ndim == 5 else 1)
    states = self._decode(text, tokens, key=more) if caption else None
    embeddings = (self._project(tokens), self.embed_text(text, key)) if contrast else (None, None)
    return Output(*embeddings, tokens, None, states)

  @jax.named_scope("image_grounded_encoder")
  def ground(
    self,
    words: Float[Array, "B *K T D"] | None,
    text: Int32[Array, "B *K T"],
    tokens: Float[Array, "B *images N kv_width"],
    key: PRNGKeyArray | None = None,
    mask: Bool[Array, "B 1 1 N"] | None = None,
  ) -> Float[Array, "B *K T D"]:
    """The image-grounded encoder: texts, one or K an image, over image tokens; `mask`: those that count."""
    ids = with_first(text, self.med.encode)
    return self.text_encoder(ids.reshape(-1, ids.shape[-1]), tokens, mask, key=key).reshape(*ids.shape, -1)

  def recall(
    self, tokens: Float[Array, "B N D"], caption: Int32[Array, "B T"], key: PRNGKeyArray | None = None
  ) -> Encoded:
    """Image tokens and behind them the text encoder's states of a caption: what dialogs are read over (section 5.5)."""
    words, seen = self._read(caption, key), jnp.ones(tokens.shape[:2], bool)
    mask = jnp.concatenate([seen, (caption != PAD).at[:, 0].set(True)], axis=1)
    return Encoded(None, jnp.concatenate([tokens, words], axis=1), mask[:, None, None])

  def judge(
    self, recalled: Encoded, text: Int32[Array, "B K T"], key: PRNGKeyArray | None = None
  ) -> Float32[Array, "B K 2"]:
    """Logits of questions in their dialogs, with an answer each: that it is false, and that it is true."""
    assert recalled.tokens is not None
    return self.match(self.ground(None, text, recalled.tokens, key, recalled.mask), text)

  def classify(
    self, image: UInt8[Array, "B 2 S S 3"], text: Int32[Array, "B T"], key: PRNGKeyArray | None = None
  ) -> Float32[Array, "B C"]:
    """Logits of the classes of a text about two images: an MLP on the state of [Encode]."""
    tokens = self.image_encoder(image.reshape(-1, *image.shape[2:]))
    states = self.ground(None, text, tokens.reshape(len(image), 2, *tokens.shape[1:]), key)
    with jax.named_scope("class_head"):
      return self.class_head(jax.nn.relu(self.class_hidden(states[:, 0].astype(jnp.float32))))

  def ask(
    self, tokens: Float[Array, "B N kv_width"], question: Int32[Array, "B T"], key: PRNGKeyArray | None = None
  ) -> Encoded:
    """Image tokens and questions as what answers look at: the grounded encoder's states."""
    mask = (question != PAD).at[:, 0].set(True)[:, None, None]
    return Encoded(None, self.ground(None, question, tokens, key), mask)

  def answer(
    self, asked: Encoded, answers: Int32[Array, "B K A"], key: PRNGKeyArray | None = None
  ) -> Float[Array, "BK A D"]:
    """The states from which the softmax predicts the words of answers."""
    flat = answers.reshape(-1, answers.shape[2])
    return self._decode(flat, asked.tokens, asked.mask, key)

  def read_captions(
    self, tokens: Float[Array, "B N kv_width"], text: Int32[Array, "B K T"], key: PRNGKeyArray | None = None
  ) -> Float[Array, "BK T D"]:
    """The states from which the softmax predicts the words of K texts an image."""
    return self._decode(text.reshape(-1, text.shape[2]), tokens, key=key)

  def logits(self, states: Float[Array, "*rows D"]) -> Float32[Array, "*rows V"]:
    """Logits of states of `answer` or of a forward pass."""
    return (
      jnp.dot(states, self.softmax_kernel().astype(states.dtype), preferred_element_type=jnp.float32)
      + (self.caption_head.bias[...])
    )

  @jax.named_scope("image_grounded_decoder")
  def _decode(self, text, context, mask=None, key=None):
    """The states [..., T, D] of texts that the softmax predicts the next token from."""
    return self.caption_head(self.text_decoder(text, context, mask, causal=True, key=key))
