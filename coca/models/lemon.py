"""LEMON, VinVL's captioner at all its sizes: BERT over a caption, names of regions and the regions (arXiv 2111.12233).

One stack reads [caption; tags; regions]. A caption's word sees itself, the words before it, and all tags and regions;
these see each other and never the caption (the mask of Oscar's run_captioning.py, of which VinVL's is a part), so that
a text can be written word by word. A word is predicted from the state at its own place, where [MASK] stands.

Shapes: B batch, K rows of an image, T caption length, S tags and regions, D width, E feature width, V vocabulary.
"""

import functools
from enum import IntEnum

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray

from coca.config import Config
from coca.config.regions import Regions
from coca.config.special import PAD
from coca.devices.sharding import constrain_batch, gather
from coca.models.bert import Bert, CaptionHead
from coca.models.blip import WordHead
from coca.models.cached_decoding import run_layers, vocabulary_logits
from coca.models.dropout import dropout
from coca.models.linear import EMBED_INIT, gathered, layer_norm, linear, spread
from coca.models.outputs import Encoded, Output, compute_dtype
from coca.models.rngs import Rngs
from coca.models.text_decoder import look_up, with_first

CAPTION, TAGS = 0, 1  # BERT's segments


class Dropped(IntEnum):
  """Random streams of a pass, folded into its key: dropout in the layers, and of what they read."""

  LAYERS = 0
  WORDS = 1
  MASKS = 2
  TAGS = 3
  REGIONS = 4


class Lemon(WordHead):
  """`config.model.text` has the sizes; its `multimodal_layers` are all there are."""

  def __init__(self, config: Config, rngs: Rngs):
    model = config.model
    width, dtype = model.text.width, compute_dtype(config)
    self.dtype, self.med, self.length = dtype, model.med, model.text.length
    self.text_decoder = Bert(model, model.text.multimodal_layers, None, dtype, rngs)
    self.segments = nnx.Param(EMBED_INIT(rngs.params(), (2, width)))
    self.region_projection = linear(model.regions.width + 6, width, dtype, rngs)
    self.region_norm = layer_norm(width, model.med.norm_eps, dtype, rngs)
    self.caption_head = CaptionHead(model, dtype, rngs)

  def __call__(
    self, image: Regions, text: Int32[Array, "B T"], *, caption: bool = True, key: PRNGKeyArray | None = None, **_
  ) -> Output:
    """Embedded tags and regions; with `caption`, also the states that predict each next word from those before it.

    Those take twice the caption: its words, and a [MASK] for each next one, which sees what it would see if the text
    ended there. They are what texts are written by, and what evaluation measures; training hides some words (`fill`).
    All other arguments are those of models that read images, and not looked at.
    """
    encoded = self.encode(image, key)
    return Output(None, None, encoded, None, self._predict(text, encoded, key) if caption else None)

  @jax.named_scope("regions")
  def encode(self, image: Regions, key: PRNGKeyArray | None = None) -> Encoded:
    """Embedded tags and regions, and which of them there are; never none, for a softmax needs something."""
    # VinVL's six numbers of a box: its corners, its width and its height.
    boxes = jnp.concatenate([image.boxes, image.boxes[..., 2:] - image.boxes[..., :2]], axis=-1)
    features = jnp.concatenate([image.features, boxes], axis=-1).astype(self.dtype)
    regions = self.region_norm(gathered(self.region_projection, self.dtype, "region_projection/")(features))
    tags = self._words(image.tags, self.length, TAGS, key, Dropped.TAGS)
    seen = jnp.concatenate([image.tags != PAD, image.mask], axis=1).at[:, 0].set(True)
    return Encoded(
      None, jnp.concatenate([tags, self._drop(regions, key, Dropped.REGIONS)], axis=1), seen[:, None, None]
    )

  @jax.named_scope("text_decoder")
  def fill(
    self,
    encoded: Encoded,
    masked: Int32[Array, "B T"],
    places: Int32[Array, "B M"],
    key: PRNGKeyArray | None = None,
  ) -> Float[Array, "B M D"]:
    """The states from which the hidden words of captions are predicted."""
    length = masked.shape[1]
    words = self._words(self._begun(masked), 0, CAPTION, key, Dropped.WORDS)
    states = self._read(words, jnp.tril(jnp.ones((length, length), bool)), encoded, key)
    return self.caption_head(jnp.take_along_axis(states, places[..., None], axis=1))

  @jax.named_scope("text_decoder")
  def _predict(self, text, encoded, key):
    """The states [B, T, D] of a [MASK] behind each word, over what stands before it."""
    length = text.shape[1]
    words = self._words(self._begun(text), 0, CAPTION, key, Dropped.WORDS)
    masks = self._words(jnp.full_like(text, self.med.mask), 1, CAPTION, key, Dropped.MASKS)
    causal, itself = jnp.tril(jnp.ones((length, length), bool)), jnp.eye(length, dtype=bool)
    mask = jnp.block([[causal, jnp.zeros_like(itself)], [causal, itself]])
    return self.caption_head(self._read(jnp.concatenate([words, masks], axis=1), mask, encoded, key)[:, length:])

  def _read(self, words, mask, encoded, key):
    """The states of embedded words, which see each other by `mask` [n, n], and all tags and regions."""
    batch, n, s = *words.shape[:2], encoded.tokens.shape[1]
    to_words = jnp.zeros((batch, 1, n + s, n), bool).at[:, :, :n].set(mask)
    whole = jnp.concatenate([to_words, jnp.broadcast_to(encoded.mask, (batch, 1, n + s, s))], axis=3)
    x = constrain_batch(jnp.concatenate([words, encoded.tokens], axis=1))
    key = None if key is None else jax.random.fold_in(key, Dropped.LAYERS)
    return self.text_decoder.stack(x, whole, key=key)[:, :n]

  def _begun(self, text):
    """Texts [B, T] that begin with [CLS], as VinVL's captions do."""
    return with_first(text, self.med.cls)

  def _words(self, ids, first: int, segment: int, key, stream: Dropped):
    """Embedded ids [B, n] at the positions from `first` on."""
    tokens, positions = self.text_decoder.embedding.tables()
    x = look_up(tokens, ids)
    added = positions[first : first + ids.shape[1]] + gather("segments", self.segments[...], self.dtype)[segment]
    return self._drop(self.text_decoder.norm(constrain_batch(x + spread(added, x.shape, self.dtype))), key, stream)

  def _drop(self, x, key, stream: Dropped):
    if key is None or not self.med.dropout:
      return x
    return dropout(x, self.med.dropout, jax.random.fold_in(key, stream))

  # --- Writing ---

  def decoding_weights(self) -> dict:
    """The decoding protocol of `coca.decoding`: what `start_decoding` takes, a tree of arrays."""
    tokens, positions = self.text_decoder.embedding.tables()
    positions = positions + gather("segments", self.segments[...], self.dtype)[CAPTION]
    return {"tokens": tokens, "positions": positions, "stack": self.text_decoder.stack.decoding_weights()}

  def start_decoding(
    self,
    weights: dict,
    image_tokens: Float[Array, "B S D"],
    length: int,
    rows: int,
    prefix: Int32[Array, "B P"],
    context_mask: Bool[Array, "B 1 1 S"],
  ):
    """The decoding protocol of `coca.decoding`.

    A step reads the new word and a [MASK] behind it; what that kept is written over by the next word. In the cache,
    tags and regions come first, then the positions' rows, one position more than a text has.
    """
    layers = self.text_decoder.stack.decoding_layers(weights["stack"])
    (batch, n), s = prefix.shape, image_tokens.shape[1]
    is_there = jnp.broadcast_to(context_mask[:, 0], (batch, 1, s))

    def embed(ids, position):
      ids = jnp.where(position == 0, self.med.cls, ids)
      return self.text_decoder.norm(weights["tokens"][ids] + weights["positions"][position])

    run = functools.partial(run_layers, layers, [None] * len(layers), None)

    def with_tokens(mask):
      """A mask [B, n, slots] of words, and with it what all see."""
      return jnp.concatenate([jnp.broadcast_to(is_there, (*mask.shape[:2], s)), mask], axis=2)[:, None]

    def step(caches, ids, position, ancestors):
      own = jnp.arange(rows)
      before = (ancestors[..., None] == own) & (jnp.arange(length)[:, None] <= position)
      before = jnp.pad(before, ((0, 0), (0, 0), (0, 1), (0, 0)))  # [B, rows, length + 1, rows]
      itself = (jnp.arange(length + 1) == position + 1)[:, None] & (own == own[:, None])[:, None]
      mask = jnp.concatenate([before, before | itself], axis=1).reshape(batch, 2 * rows, -1)
      x = jnp.concatenate([embed(ids, position), embed(jnp.full_like(ids, self.med.mask), position + 1)], axis=1)
      x, caches = run(x, caches, s + position * rows, with_tokens(mask))
      logits = vocabulary_logits(self.caption_head(x[:, rows:].reshape(batch * rows, -1)), weights["tokens"])
      return constrain_batch((logits + self.caption_head.bias[...]).reshape(batch, rows, -1)), caches

    slots = (length + 1) * rows
    caches = tuple(jax.tree.map(constrain_batch, layer.empty_cache(batch, s + slots)) for layer in layers)
    among = jnp.pad(jnp.broadcast_to(is_there, (batch, s, s)), ((0, 0), (0, 0), (0, slots)))[:, None]
    _, caches = run(image_tokens, caches, 0, among)
    if n:
      slot = jnp.arange(slots)
      mask = (slot % rows == 0) & (slot // rows <= jnp.arange(n)[:, None])
      mask = with_tokens(jnp.broadcast_to(mask, (batch, *mask.shape)))
      _, caches = run(embed(prefix, jnp.arange(n)), caches, s, mask, rows)
    return step, caches
