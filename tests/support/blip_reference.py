"""BLIP's forward pass in float64 NumPy, from section 3 of arXiv 2201.12086 and BERT (arXiv 1810.04805); one row at a
time. And a BLIP that compiles in seconds."""

import functools

import jax
import numpy as np

from coca.config import Config
from support import reference
from support.common import PAD, tiny
from support.reference import GELU, attend, linear, unit

CLS, ENCODE = 3, 4

# The modules of a layer that the text encoder has in common with the decoder (Table 3).
SHARED = {
  "all": {"norm_self", "self_attention", "norm_cross", "cross_attention", "norm_mlp", "mlp"},
  "all_but_cross_attention": {"norm_self", "self_attention", "norm_mlp", "mlp"},
  "all_but_self_attention": {"norm_cross", "cross_attention", "norm_mlp", "mlp"},
  "none": set(),
}


def tiny_blip(**changes) -> Config:
  """A BLIP with all losses and no dropout. The text's eps is large, so that another one would be seen."""
  return tiny(
    **(
      {
        "model__kind": "blip",
        "model__image__class_token": True,
        "model__activation": "gelu",
        "model__med__cls": CLS,
        "model__med__encode": ENCODE,
        "model__med__positions": 11,
        "model__med__dropout": 0.0,
        "model__med__norm_eps": 0.05,
        "captioning__weight": 1.0,
        "matching__weight": 1.0,
      }
      | changes
    )
  )


ANSWERS = {
  "contrastive__weight": 0.0,
  "matching__weight": 0.0,
  "captioning__weight": 0.0,
  "answering__weight": 1.0,
  "answering__answers": 3,
  "answering__length": 6,
  "captioning__label_smoothing": 0.1,
}


ALBEF = {
  "model__kind": "albef",
  "model__med__mask": 5,
  "captioning__weight": 0.0,
  "masked__weight": 1.0,
  "masked__most": 3,
}


class Reference:
  """Everything is of one picture and one text: tokens [N, D], ids [T], states [T, D]."""

  def __init__(self, params, settings: Config, change=None):
    """`change(place, x)`: what dropout does to x, at 'embedding' and in a layer at 'weights', 'cross_weights' and what
    'self', 'cross' and 'mlp' add."""
    self.p, self.model = jax.tree.map(lambda x: np.asarray(x, np.float64), params), settings.model
    self.change = change or (lambda place, x: x)
    encoder, decoder = self.p.get("text_encoder", {}), self.p.get("text_decoder", {})
    self.encoder = join(decoder, encoder)  # what it shares is kept with the decoder
    self.decoder = decoder

  def norm(self, p, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.model.med.norm_eps) * p["scale"] + p["bias"]

  def image(self, pixels):
    """The ViT: class token in front, its position the first."""
    p, size, side = self.p["image_encoder"], self.model.image.patch, self.model.image.size // self.model.image.patch
    pixels = (pixels / 255 - np.array(self.model.image.mean)) / np.array(self.model.image.std)
    patches = np.array(
      [
        pixels[r * size : (r + 1) * size, c * size : (c + 1) * size].reshape(-1)
        for r in range(side)
        for c in range(side)
      ]
    )
    x = np.vstack([p["class_token"], linear(p["patches"], patches)]) + p["positions"]
    return reference.norm(p["norm"], reference.tower(p, x, self.model.image.heads, self.model.activation))

  def bert(self, p, ids, seen, context=None, context_seen=None):
    """seen: bool [T, T], who may attend to whom; context_seen: bool [S]."""
    embedded = p["embedding"]["tokens"][ids] + p["embedding"]["positions"][: len(ids)]
    x = self.change("embedding", self.norm(p["norm"], embedded))
    return self.layers(p["stack"]["layers"], x, seen, context, context_seen)

  def layers(self, layers, x, seen, context=None, context_seen=None):
    """States [T, D] behind the layers; arguments as of `bert`."""
    heads = self.model.text.heads
    for i in range(len(layers["norm_self"]["scale"])):
      layer = jax.tree.map(lambda leaf, i=i: leaf[i], layers)
      x = self.norm(
        layer["norm_self"],
        x
        + self.change(
          "self", attend(layer["self_attention"], x, x, heads, seen, functools.partial(self.change, "weights"))
        ),
      )
      if context is not None:
        mask = None if context_seen is None else np.broadcast_to(context_seen, (len(x), len(context)))
        x = self.norm(
          layer["norm_cross"],
          x
          + self.change(
            "cross",
            attend(layer["cross_attention"], x, context, heads, mask, functools.partial(self.change, "cross_weights")),
          ),
        )
      hidden = GELU[self.model.activation](linear(layer["mlp"]["up"], x))
      x = self.norm(layer["norm_mlp"], x + self.change("mlp", linear(layer["mlp"]["down"], hidden)))
    return x

  def encode(self, ids, first, context=None):
    """Both encoders: every word sees all words; `first` takes the first one's place."""
    ids = np.concatenate([[first], ids[1:]])
    return self.bert(self.encoder, ids, np.broadcast_to(ids != PAD, (len(ids), len(ids))), context)

  def embed_image(self, tokens):
    return unit(linear(self.p["image_projection"], tokens[0]))

  def embed_text(self, ids):
    return unit(linear(self.p["text_projection"], self.encode(ids, CLS)[0]))

  def match(self, tokens, ids):
    """Logits of no match and of a match."""
    return linear(self.p["matching_head"], self.encode(ids, ENCODE, tokens)[0])

  def logits(self, context, ids, context_seen=None):
    """The decoder's, [T, V]."""
    causal = np.tril(np.ones((len(ids), len(ids)), bool))
    states = self.bert(self.decoder, ids, causal, context, context_seen)
    head = self.p["caption_head"]
    states = self.norm(head["norm"], GELU[self.model.activation](linear(head["transform"], states)))
    return states @ self.decoder["embedding"]["tokens"].T + head["bias"]

  def answer(self, tokens, question, answer):
    """The logits of an answer's words [A, V]."""
    return self.logits(self.encode(question, ENCODE, tokens), answer, np.concatenate([[True], question[1:] != PAD]))


class AlbefReference(Reference):
  """Section 3.1 of arXiv 2107.07651: fusion goes on from the text encoder's states, and all words see all."""

  def read(self, ids):
    return self.encode(ids, CLS)

  def embed_text(self, ids):
    return unit(linear(self.p["text_projection"], self.read(ids)[0]))

  def fuse(self, tokens, ids):
    seen = np.broadcast_to(ids != PAD, (len(ids), len(ids)))
    return self.layers(self.p["fusion"]["layers"], self.read(ids), seen, tokens)

  def match(self, tokens, ids):
    return linear(self.p["matching_head"], self.fuse(tokens, ids)[0])

  def fill(self, tokens, ids):
    """The logits of all words at all places [T, V]."""
    head = self.p["masked_head"]
    hidden = GELU[self.model.activation](linear(head["transform"], self.fuse(tokens, ids)))
    return self.norm(head["norm"], hidden) @ self.p["text_encoder"]["embedding"]["tokens"].T + head["bias"]


def join(a, b):
  """Two trees of dicts as one; b's leaves go before a's."""
  if not isinstance(a, dict) or not isinstance(b, dict):
    return b
  return {k: join(a[k], b[k]) if k in a and k in b else a.get(k, b.get(k)) for k in {**a, **b}}


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))
