"""CoCa's forward pass in float64 NumPy, from section 3.2 of arXiv 2205.01917; one picture and one text at a time."""

import math

import jax
import numpy as np

from support.common import PAD


def linear(p, x):
  return x @ p["kernel"] + p.get("bias", 0)


def norm(p, x):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def attend(p, queries, tokens, heads, mask=None, change=lambda weights: weights, bias=None):
  """Multi-head attention, a head and a query at a time; `change` is what is done to the weights [H, T, S], `bias` what
  is added to the logits."""
  q, k, v = linear(p["query"], queries), linear(p["key"], tokens), linear(p["value"], tokens)
  size = q.shape[1] // heads
  weights = np.zeros((heads, len(q), len(k)))
  parts = [slice(h * size, (h + 1) * size) for h in range(heads)]
  for h, part in enumerate(parts):
    for i in range(len(q)):
      seen = np.arange(len(k)) if mask is None else np.flatnonzero(mask[i])
      score = k[seen, part] @ q[i, part] / math.sqrt(size) + (0 if bias is None else bias[h, i, seen])
      weight = np.exp(score - score.max())
      weights[h, i, seen] = weight / weight.sum()
  weights = change(weights)
  return linear(p["out"], np.concatenate([weights[h] @ v[:, part] for h, part in enumerate(parts)], axis=1))


GELU = {
  "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
  "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
  "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
  "relu": lambda x: np.maximum(x, 0),
}


def tower(p, x, heads, activation, mask=None, image=None):
  """Pre-LN layers: x + attention, x + cross-attention where there is an image, x + feed-forward."""
  layers = p["stack"]["layers"]
  for i in range(len(layers["norm_self"]["scale"])):
    layer = jax.tree.map(lambda leaf, i=i: leaf[i], layers)
    y = norm(layer["norm_self"], x)
    x = x + attend(layer["self_attention"], y, y, heads, mask)
    if image is not None:
      x = x + attend(layer["cross_attention"], norm(layer["norm_cross"], x), image, heads)
    x = x + linear(layer["mlp"]["down"], GELU[activation](linear(layer["mlp"]["up"], norm(layer["norm_mlp"], x))))
  return x


def encode(p, image, model, kept=None):
  """The ViT of one picture; `kept` are the patches that are not dropped."""
  size, positions = model.image.patch, model.image.size // model.image.patch
  pixels = image.astype(np.float64) / 255 * 2 - 1
  patches = np.array(
    [
      pixels[r * size : (r + 1) * size, c * size : (c + 1) * size].reshape(-1)
      for r in range(positions)
      for c in range(positions)
    ]
  )
  x = linear(p["patches"], patches) + p["positions"]
  return norm(p["norm"], tower(p, x if kept is None else x[kept], model.image.heads, model.activation))


def pool(p, tokens, heads, **options):
  pooled = attend(p["attention"], p["queries"], tokens, heads, **options)
  return norm(p["norm"], pooled) if "norm" in p else pooled


def unit(x):
  return x / np.sqrt((x**2).sum(-1, keepdims=True))


def reference(params, settings, image, text):
  """Embeddings [B, E] and logits [B, T, V] of CoCa section 3.2."""
  model = settings.model
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  out = []
  for pixels, ids in zip(image, text, strict=True):
    encoded = encode(p["image_encoder"], pixels, model)
    tokens = pool(p["generative_pooler"], encoded, model.image.heads) if model.poolers.n_query else encoded
    source = tokens if model.poolers.kind == "cascade" else encoded
    image_embedding = unit(pool(p["contrastive_pooler"], source, model.image.heads)[0])

    words = p["embedding"]["tokens"][ids] + p["embedding"]["positions"][: len(ids)]
    length = len(ids)
    mask = np.tril(np.ones((length + 1, length + 1), bool))
    mask[length, :length] = ids != PAD
    uni = p["unimodal"]
    states = tower(uni, np.vstack([words, uni["cls"]]), model.text.heads, model.activation, mask)
    text_embedding = unit(linear(uni["projection"], norm(uni["norm"], states[-1])))

    multi = p["multimodal"]
    causal = np.tril(np.ones((length, length), bool))
    states = norm(multi["norm"], tower(multi, states[:-1], model.text.heads, model.activation, causal, tokens))
    head = p["embedding"]["tokens"].T if model.text.tied_softmax else p["softmax"]["kernel"]
    out.append((image_embedding, text_embedding, states @ head))
  return tuple(np.array(x) for x in zip(*out, strict=True))
