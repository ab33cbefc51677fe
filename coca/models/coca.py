"""CoCa: image encoder, attentional poolers, unimodal and multimodal text decoder (arXiv 2205.01917).

Shapes: B batch, F images of a pair or frames of a video, S side in pixels, N patches, Q image tokens for the decoder,
K texts an image, T text length, W image width, D text width, E embedding width, V vocabulary, C classes, L layers.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int32, PRNGKeyArray, Shaped, UInt8

from coca.config import Config
from coca.config.special import PAD
from coca.devices.sharding import gather
from coca.models.cached_decoding import start_layers, vocabulary_logits
from coca.models.image_encoder import ImageEncoder
from coca.models.linear import layer_norm, linear
from coca.models.outputs import Encoded, Output, Scores, Temperature, compute_dtype, joined, mean_unit, unit
from coca.models.poolers import AttentionalPooler
from coca.models.rngs import Rngs
from coca.models.text_decoder import Embedding, MultimodalDecoder, UnimodalDecoder

# Parts that a config has no use for are None; coca/config/checks.py says what needs what, and pyright can't know it.
# pyright: reportOptionalCall=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false


class CoCa(nnx.Module):
  """The parts of embeddings are there if `config.contrastive.heads`, each half of the decoder if it has layers."""

  softmax_bias = None

  def __init__(self, config: Config, rngs: Rngs):
    model = config.model
    dtype = compute_dtype(config)
    has_embeddings, has_multimodal = config.contrastive.heads, model.text.multimodal_layers > 0
    has_matching = config.matching.weight > 0
    image_width, text_width = model.image.width, model.text.width
    embed_dim = model.embed_dim or text_width

    self.dtype, self.kind = dtype, model.poolers.kind
    self.image_encoder = ImageEncoder(model, dtype, rngs)
    has_generative = (has_multimodal or (has_embeddings and self.kind == "openclip")) and model.poolers.n_query > 0
    self.generative_pooler = (
      AttentionalPooler(model, model.poolers.n_query, image_width, text_width, dtype, rngs) if has_generative else None
    )
    pooled_width = text_width if has_generative and self.kind in ("cascade", "openclip") else image_width
    has_own_pooler = self.kind in ("cascade", "parallel")
    projects = not has_own_pooler or model.poolers.projection_bias
    out = pooled_width if projects else embed_dim
    self.contrastive_pooler = (
      AttentionalPooler(model, 1, pooled_width, out, dtype, rngs) if has_embeddings and has_own_pooler else None
    )
    self.mean_norm = (
      layer_norm(image_width, model.norm_eps, dtype, rngs)
      if has_embeddings and self.kind == "mean" and model.poolers.norm
      else None
    )
    self.image_projection = (
      linear(pooled_width, embed_dim, dtype, rngs, bias=model.poolers.projection_bias)
      if has_embeddings and projects
      else None
    )
    self.embedding = Embedding(model, dtype, rngs, masks=config.captioning.parallel > 0) if model.text.layers else None
    has_unimodal = model.text.unimodal_layers > 0
    kv_width = text_width if has_generative else image_width
    self.two_passes = model.text.two_passes
    # MaMMUT's first pass goes through layers that are there; those of other models are drawn in their order.
    shared = MultimodalDecoder(model, kv_width, dtype, rngs) if self.two_passes else None
    self.unimodal = (
      UnimodalDecoder(model, embed_dim if has_embeddings else 0, dtype, rngs, shared and shared.stack)
      if has_unimodal and (has_embeddings or not shared)
      else None
    )
    self.multimodal = shared or (MultimodalDecoder(model, kv_width, dtype, rngs) if has_multimodal else None)
    has_softmax = has_multimodal and not model.text.tied_softmax
    self.softmax = linear(text_width, model.text.vocab, dtype, rngs, bias=False) if has_softmax else None
    self.temperature = Temperature(config) if has_embeddings else None
    self.matching_pooler = AttentionalPooler(model, 1, text_width, text_width, dtype, rngs) if has_matching else None
    self.matching_head = linear(text_width, 2, jnp.float32, rngs) if has_matching else None
    classes = config.classification
    self.class_pool, self.pairs = classes.pool, classes.weight > 0 and classes.pairs
    class_width = text_width if classes.pool == "text" else image_width
    self.class_pooler = (
      AttentionalPooler(model, 1, class_width, class_width, dtype, rngs, class_width)
      if classes.weight and classes.pool in ("attention", "text")
      else None
    )
    # Zeros, as in ViT (arXiv 2010.11929, section 3.2, of its fine-tunes).
    self.class_head = (
      linear((1 + classes.pairs) * class_width, classes.classes, jnp.float32, rngs, init=nnx.initializers.zeros)
      if classes.weight
      else None
    )
    self.frame_positions = (
      nnx.Param(jnp.zeros((classes.images, image_width))) if classes.weight and classes.frame_positions else None
    )

  def __call__(
    self,
    image: UInt8[Array, "B S S 3"] | UInt8[Array, "B F S S 3"] | Float32[Array, "B W"] | Float[Array, "B N W"],
    text: Int32[Array, "B T"],
    *,
    contrast: bool = True,
    caption: bool = True,
    match: bool = False,
    classify: bool = False,
    patch_noise: Float[Array, "B N"] | None = None,
    parallel: Bool[Array, " B"] | None = None,
    given: Int32[Array, " B"] | None = None,
    key: PRNGKeyArray | None = None,
  ) -> Output:
    """One forward pass for all losses, or for some of them.

    Args:
      image: pixels of 0 to 255, for a class head of two images of both, and of a video of its frames; or the image
        encoder's states of the class token, or of all tokens, of images that went through it.
      text: BOS, words, EOS, padding.
      contrast: whether to compute the embeddings.
      caption: whether to compute the decoder's states.
      match: whether to return what the decoder starts from, to pair images and texts anew or to read other texts.
      classify: whether to compute the classes' logits.
      patch_noise: see `ImageEncoder`.
      parallel: the examples whose words are predicted all at once (CapPa).
      given: the number of tokens that a class head of texts reads; None: all but EOS.
      key: for models with dropout; not looked at.
    """
    images, frames = self._counts(image)
    if image.ndim >= 4:
      encoded = self.image_encoder(image.reshape(-1, *image.shape[-3:]), patch_noise)
    else:
      encoded = (image if image.ndim == 3 else image[:, None]).astype(self.dtype)
    reads = classify and self.class_pool == "text"
    classes = self._classify(encoded, frames) if classify and not reads else None
    if not (contrast or caption or match or reads):
      return Output(None, None, None, None, None, classes)
    image_embedding, tokens = self._pool(encoded, contrast, caption or match or reads, frames)
    words, text_embedding = self._read(text, contrast, parallel)
    states = self.multimodal(each(words, images), tokens, parallel) if caption or reads else None
    classes = self._classify_text(states, text, given, images) if reads else classes
    if images > 1:  # there are more states than texts, and none but the class head reads them
      states = None
    return Output(image_embedding, text_embedding, tokens, words, states, classes)

  def ground(
    self,
    words: Float[Array, "B *K T D"],
    text: Int32[Array, "B *K T"] | None,
    tokens: Float[Array, "B Q kv_width"],
    key: PRNGKeyArray | None = None,
  ) -> Float[Array, "B *K T D"]:
    """Unimodal states, of one text or K texts an image, over image tokens."""
    return self.multimodal(words, tokens)

  def read_captions(
    self, tokens: Float[Array, "B Q kv_width"], text: Int32[Array, "B K T"], key: PRNGKeyArray | None = None
  ) -> Float[Array, "BK T D"]:
    """The states from which the softmax predicts the words of K texts an image; `key` is for models with dropout."""
    words, _ = self._read(text.reshape(-1, text.shape[2]), contrast=False)
    return self.multimodal(words.reshape(*text.shape, -1), tokens).reshape(words.shape)

  def embed_image(self, image: UInt8[Array, "B S S 3"]) -> Float32[Array, "B E"]:
    """Embeddings of unit length."""
    return self._pool(self.image_encoder(image), contrast=True, caption=False)[0]

  def features(self, image: UInt8[Array, "B S S 3"]) -> Float32[Array, "B F"]:
    """Features: what the embedding is projected from, or is before it is made unit length (CLIP, appendix A.3).

    Without embeddings: the class token, or the mean of the patches' tokens.
    """
    encoded = self.image_encoder(image)
    if self.temperature is not None:
      return self._pool_once(encoded, True, False)[0].astype(jnp.float32)
    return (encoded if self.image_encoder.class_token is None else encoded[:, :1]).astype(jnp.float32).mean(axis=1)

  def embed_text(self, text: Int32[Array, "B T"], key: PRNGKeyArray | None = None) -> Float32[Array, "B E"]:
    """Embeddings of unit length; `key` is for models with dropout."""
    return self._read(text, contrast=True)[1]

  def classify(
    self, image: UInt8[Array, "B S S 3"] | UInt8[Array, "B F S S 3"], text: Int32[Array, "B T"] | None = None
  ) -> Float32[Array, "B C"]:
    """Logits of the classes; `text`: for a head that reads texts, about an image or two, or a video."""
    images, frames = self._counts(image)
    encoded = self.image_encoder(image.reshape(-1, *image.shape[-3:]))
    if text is None:
      return self._classify(encoded, frames)
    words, _ = self._read(text, contrast=False)
    states = self.multimodal(each(words, images), self._pool(encoded, False, True, frames)[1])
    return self._classify_text(states, text, None, images)

  def attention_maps(
    self, image: UInt8[Array, "B S S 3"]
  ) -> tuple[Float32[Array, "B N"] | None, Float32[Array, "B Q N"] | None]:
    """Maps of where poolers look: over the patches, of the contrastive query and of the others.

    Means over the heads; a map sums to 1, less what goes to a class token. In cascade the contrastive query looks at
    what the others saw: its weights times theirs. None in place of a pooler that the model lacks.
    """
    tokens = self.image_encoder(image)
    patches = (image.shape[1] // self.image_encoder.patch) ** 2
    tokens = tokens[:, -patches:] if self.kind in ("class_token", "mean") else tokens
    contrastive = generative = None
    if self.generative_pooler:
      generative = self.generative_pooler.weights(tokens)[..., -patches:]
    if self.kind == "openclip":  # one pooler for all, the contrastive query first
      contrastive, generative = generative[:, 0], generative[:, 1:]
    elif self.contrastive_pooler and self.kind == "cascade" and self.generative_pooler:
      over = self.contrastive_pooler.weights(self.generative_pooler(tokens))
      contrastive = jnp.einsum("boq,bqn->bn", over, generative)
    elif self.contrastive_pooler:
      contrastive = self.contrastive_pooler.weights(tokens)[:, 0, -patches:]
    return contrastive, generative

  def encode(self, image: UInt8[Array, "B S S 3"] | UInt8[Array, "B F S S 3"]) -> Encoded:
    """The embedding and the decoder's tokens, each where the model has use for it.

    Of a video the generative pooler attends to the tokens of all frames, and the embedding is the mean of theirs.
    """
    encoded = self.image_encoder(image.reshape(-1, *image.shape[-3:]))
    frames = image.shape[1] if image.ndim == 5 else 1
    return Encoded(*self._pool(encoded, self.temperature is not None, self.multimodal is not None, frames))

  def score(self, encoded: Encoded, text: Int32[Array, "B K T"]) -> Scores:
    """Images and K texts of each; an image's tokens are projected once for all its texts.

    Without `encoded.embedding` there are no cosines, and the texts are not embedded.
    """
    contrastive = matching = match_logit = None
    words, embedding = self._read(text.reshape(-1, text.shape[2]), encoded.embedding is not None)
    if embedding is not None:
      contrastive = jnp.sum(encoded.embedding[:, None] * embedding.reshape(*text.shape[:2], -1), axis=-1)
    if self.matching_head is not None:
      assert encoded.tokens is not None
      states = self.multimodal(words.reshape(*text.shape, -1), encoded.tokens)
      logits = self.match(states, text)
      matching, match_logit = jax.nn.softmax(logits)[..., 1], logits[..., 1]
    return Scores(contrastive, matching, match_logit)

  def match(self, states: Float[Array, "B K T D"], text: Int32[Array, "B K T"]) -> Float32[Array, "B K 2"]:
    """The decoder's states of texts -> logits: of no match, and of a match."""
    # The first token is never padding, and counts even in a row that holds no text: a softmax needs something.
    words = (text != PAD) | (jnp.arange(text.shape[2]) == 0)
    mask = words.reshape(-1, 1, 1, text.shape[2])
    with jax.named_scope("matching_pooler"):
      pooled = self.matching_pooler(states.reshape(-1, *states.shape[2:]), mask=mask)
    return self.matching_head(pooled.astype(jnp.float32)).reshape(*text.shape[:2], 2)

  def softmax_kernel(self) -> Float[Array, "D V"]:
    """The vocabulary head: states @ kernel are the logits."""
    return self.embedding.tokens[...].T if self.softmax is None else self.softmax.kernel[...]

  def decoding_weights(self) -> dict:
    """The decoding protocol of `coca.decoding`: what `start_decoding` takes, a tree of arrays."""
    tokens, positions = self.embedding.tables()
    head = gather("softmax/kernel", self.softmax_kernel(), self.dtype).T
    unimodal = None if self.two_passes else self.unimodal
    stacks = [half.stack.decoding_weights() if half else [] for half in (unimodal, self.multimodal)]
    return {"tokens": tokens, "positions": positions, "stacks": stacks, "head": head}

  def start_decoding(
    self, weights: dict, image_tokens: Float[Array, "B S kv_width"], length: int, rows: int, prefix: Int32[Array, "B P"]
  ):
    """The decoding protocol of `coca.decoding`; [CLS] is left out, since no word ever sees it."""
    unimodal, multimodal = weights["stacks"]
    layers = self.unimodal.stack.decoding_layers(unimodal) if unimodal else []
    layers = [*layers, *self.multimodal.decoding_layers(multimodal)]

    def embed(ids, position):
      return weights["tokens"][ids] + weights["positions"][position]

    def predict(states):
      return vocabulary_logits(self.multimodal.norm(states), weights["head"])

    return start_layers(layers, image_tokens, None, embed, predict, length, rows, prefix)

  def _counts(self, image) -> tuple[int, int]:
    """The number of images that a text is read over one by one, and that of the frames of a video."""
    several = image.shape[1] if image.ndim == 5 else 1
    return (several, 1) if self.pairs else (1, several)

  @jax.named_scope("class_head")
  def _classify(self, encoded, frames: int = 1):
    """Encoded images [B * frames, N, D] -> logits [B, C], fp32.

    The pooler attends to the tokens of all frames; other heads read the mean over them.
    """
    if self.class_pooler:
      if self.frame_positions is not None:
        each_frame = self.frame_positions[...].astype(encoded.dtype)[:, None]
        encoded = (encoded.reshape(-1, frames, *encoded.shape[1:]) + each_frame).reshape(encoded.shape)
      pooled = self.class_pooler(joined(encoded, frames))
    elif self.class_pool == "class_token":
      pooled = joined(encoded[:, :1], frames)
    else:
      first = 0 if self.image_encoder.class_token is None else 1
      pooled = joined(encoded[:, first:], frames)
    return self.class_head(pooled.astype(jnp.float32).mean(axis=1))

  @jax.named_scope("class_head")
  def _classify_text(self, states, text, given, images: int):
    """The decoder's states [B * images, T, D] of texts, `given` tokens of each -> logits [B, C], fp32.

    Those of two images are read by one pooler, and stand one behind the other for the head.
    """
    given = (text != PAD).sum(axis=1) - 1 if given is None else given
    mask = jnp.arange(text.shape[1]) < jnp.maximum(given, 1)[:, None]  # a softmax needs something
    pooled = self.class_pooler(states, mask=each(mask, images)[:, None, None])[:, 0]
    return self.class_head(pooled.astype(jnp.float32).reshape(len(text), -1))

  @jax.named_scope("unimodal_decoder")
  def _read(self, text, contrast: bool, parallel=None) -> tuple[Any, Any]:
    """Text [B, T] -> unimodal states [B, T, D] and, where asked for, the embedding [B, E], unit length."""
    embedded = self.embedding(text, parallel)
    if not contrast:
      return self.unimodal.states(embedded) if self.unimodal and not self.two_passes else embedded, None
    words, embedding = self.unimodal(embedded, text, self.embedding.cls_position(text.shape[1]))
    return embedded if self.two_passes else words, unit(embedding)

  def _pool(self, encoded, contrast: bool, caption: bool, frames: int = 1) -> tuple[Any, Any]:
    """Encoded images [B * frames, N, D] -> the embedding [B, E] and the decoder's tokens [B, Q, D], where asked for.

    Of several frames the embedding is the mean of theirs (section 4.2.2), and the tokens are of all together.
    """
    if frames > 1 and contrast and caption:
      return self._pool(encoded, True, False, frames)[0], self._pool(encoded, False, True, frames)[1]
    pooled, tokens = self._pool_once(encoded, contrast, caption, 1 if contrast else frames)
    if not contrast:
      return None, tokens
    return mean_unit(unit(self.image_projection(pooled) if self.image_projection else pooled), frames), tokens

  def _pool_once(self, encoded, contrast: bool, caption: bool, frames: int = 1) -> tuple[Any, Any]:
    """`_pool`, with what the embedding is projected from in its place, of each image."""
    pooled, tokens = None, encoded
    if self.kind == "openclip":
      encoded = joined(encoded, frames)
      with jax.named_scope("generative_pooler"):
        queries = self.generative_pooler(encoded, 0 if contrast else 1, None if caption else 1)
      return queries[:, 0] if contrast else None, queries[:, 1 if contrast else 0 :] if caption else None
    if self.kind == "class_token":
      pooled, encoded = encoded[:, 0], encoded[:, 1:]
    if self.kind == "mean":
      encoded = encoded if self.image_encoder.class_token is None else encoded[:, 1:]
      if contrast:
        pooled = encoded.astype(jnp.float32).mean(axis=1).astype(self.dtype)
        pooled = self.mean_norm(pooled) if self.mean_norm else pooled
    encoded = joined(encoded, frames)
    is_cascade = self.kind == "cascade" and contrast
    if caption or is_cascade:
      with jax.named_scope("generative_pooler"):
        tokens = self.generative_pooler(encoded) if self.generative_pooler else encoded
    if self.contrastive_pooler and contrast:
      with jax.named_scope("contrastive_pooler"):
        pooled = self.contrastive_pooler(tokens if is_cascade else encoded)[:, 0]
    return pooled, tokens if caption else None


def each(x: Shaped[Array, "B ..."], images: int) -> Shaped[Array, "BI ..."]:
  """A row [B, ...] for each of so many images of an example: [B * images, ...]."""
  return x if images == 1 else jnp.repeat(x, images, axis=0)
