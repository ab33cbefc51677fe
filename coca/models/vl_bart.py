"""VL-BART: as VL-T5, with BART (arXiv 2102.02779, section 3.2; BART: arXiv 1910.13461).

BART's layers are BERT's, norms behind the sums, with cross-attention in the decoder; what its encoder and its decoder
begin with is normed, too; each has positions of its own, for the words; and their table of words is the head, with no
bias. Regions are embedded as in VL-T5, with LayerNorms.

Shapes: B batch, T text length, G tokens that the encoder reads, D width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, PRNGKeyArray

from coca.config import Config
from coca.config.regions import Regions
from coca.devices.sharding import constrain_batch
from coca.models.bert import Bert
from coca.models.blip import WordHead
from coca.models.linear import layer_norm
from coca.models.outputs import Encoded, compute_dtype
from coca.models.rngs import Rngs
from coca.models.vl_t5 import RegionReader


class VlBart(WordHead, RegionReader):
  """`config.model.text` has the sizes; `unimodal_layers` are its encoder's, `multimodal_layers` its decoder's."""

  def __init__(self, config: Config, rngs: Rngs):
    model = config.model
    text, self.dtype = model.text, compute_dtype(config)
    self.encoder = Bert(model, text.unimodal_layers, None, self.dtype, rngs)
    self.text_decoder = Bert(model, text.multimodal_layers, text.width, self.dtype, rngs)
    self.caption_head = None
    self.encoder.embedding.tokens = self.text_decoder.embedding.tokens
    self.add_regions(model, lambda: layer_norm(text.width, model.med.norm_eps, self.dtype, rngs), rngs)

  @jax.named_scope("encoder")
  def encode(self, image: Regions, key: PRNGKeyArray | None = None) -> Encoded:
    """The states of the text that comes with the regions, and of the regions, and which of them there are."""
    encoder, seen = self.encoder, self.seen(image)
    words = encoder.norm(encoder.embedding(image.tags))
    regions = self.embed_regions(image, encoder.embedding.tables()[0])
    x = constrain_batch(jnp.concatenate([words, regions], axis=1))
    return Encoded(None, encoder.read(x, seen, key=key), seen)

  @jax.named_scope("decoder")
  def _write(self, text: Int32[Array, "B T"], encoded: Encoded, key: PRNGKeyArray | None):
    """The states [B, T, D] from which the head predicts the next word of each."""
    return self.text_decoder(text, encoded.tokens, encoded.mask, causal=True, key=key)
