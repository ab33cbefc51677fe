"""Attentional poolers (CoCa section 3.2).

"A single multi-head attention layer with n_query learnable queries, with the encoder output as both keys and values":
no residual and no feed-forward. With `config.model.poolers.mlp` there are both, which makes it the MAP head of "Scaling
Vision Transformers" (arXiv 2106.04560, appendix A), SigLIP's.
"""

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32

from coca.config import Model
from coca.models.attention import Attention
from coca.models.layers import Mlp
from coca.models.linear import EMBED_INIT, gathered, layer_norm
from coca.models.rngs import Rngs


class AttentionalPooler(nnx.Module):
  """Pools tokens [B, S, kv_width] to [B, n_query, out]."""

  def __init__(self, model: Model, n_query: int, kv_width: int, out: int, dtype: DTypeLike, rngs: Rngs, width: int = 0):
    """`width`: of queries, keys and values; 0: the config's."""
    width = width or model.poolers.width or model.text.width
    heads = model.poolers.heads or model.image.heads
    self.dtype = dtype
    self.queries = nnx.Param(EMBED_INIT(rngs.params(), (n_query, width)))
    self.attention = Attention(width, heads, dtype, rngs, kv_width=kv_width, out=out, implementation=model.attention)
    norms = model.poolers.norm_inputs
    self.norm_queries = layer_norm(width, model.norm_eps, dtype, rngs) if norms else None
    self.norm_tokens = layer_norm(kv_width, model.norm_eps, dtype, rngs) if norms else None
    self.norm = layer_norm(out, model.norm_eps, dtype, rngs) if model.poolers.norm else None
    self.mlp = Mlp(out, model.poolers.mlp, model.activation, dtype, rngs) if model.poolers.mlp else None

  def __call__(
    self,
    tokens: Float[Array, "B S kv_width"],
    first: int = 0,
    last: int | None = None,
    mask: Bool[Array, "#B #H #n S"] | None = None,
  ) -> Float[Array, "B n out"]:
    """Pools with the queries from `first` up to `last`: no query sees another. mask: as in `dot_product_attention`."""
    queries, tokens = self._inputs(tokens, first, last)
    attention = gathered(self.attention, self.dtype)
    pooled = attention(queries, attention.keys_values(tokens), mask)
    normed = self.norm(pooled) if self.norm else pooled
    return pooled + gathered(self.mlp, self.dtype)(normed) if self.mlp else normed

  def weights(self, tokens: Float[Array, "B S kv_width"]) -> Float32[Array, "B n_query S"]:
    """The weight of each of the tokens to each query; rows sum to 1."""
    return self.attention.weights(*self._inputs(tokens))

  def _inputs(self, tokens, first: int = 0, last: int | None = None):
    queries = self.queries[...].astype(self.dtype)[None, first:last]
    queries = self.norm_queries(queries) if self.norm_queries else queries
    return queries, self.norm_tokens(tokens) if self.norm_tokens else tokens
