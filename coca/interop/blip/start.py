"""The start of BLIP's pre-training (arXiv 2201.12086, section 4.1), and ALBEF's: a ViT trained on ImageNet, and BERT.

The ViT has the names of the timm library (DeiT's, too), BERT those of transformers. Text encoder and decoder both start
as BERT; cross-attention, projections, matching head and the tokens [DEC] and [ENC] begin anew. ALBEF takes BERT's lower
layers as text encoder and its upper ones as fusion encoder (arXiv 2107.07651, section 3.1), with segment 0.
"""

from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx

from coca.config import Config
from coca.data.tokenizers.wordpiece import WordPiece
from coca.interop import tensors
from coca.interop.blip import albef
from coca.interop.blip import settings as blip_settings
from coca.interop.blip import weights as blip_weights
from coca.models import make_model

EMBED_DIM = 256
STD = 0.02  # of BERT's embeddings at their start


def join(
  vit: Mapping[str, np.ndarray], bert: Mapping[str, np.ndarray], tokens: WordPiece, kind: str = "blip", **heads
) -> tuple[Config, dict]:
  """A pre-training model of both.

  Args:
    vit: a ViT with class token; its classifier is left out.
    bert: uncased BERT; pooler, segments and the head for next sentences are left out, as BLIP does.
    tokens: BERT's, with [DEC] and [ENC].
    kind: 'blip' or 'albef'; the config is called so too.
    **heads: `image_heads` and `text_heads`; see `coca.interop.blip.settings.from_tensors`.

  Returns:
    Our config and parameters.

  Raises:
    ValueError: not such weights; what is missing, unknown or of another shape is listed.
  """
  found = {f"visual_encoder.{key}": x for key, x in vit.items() if not key.startswith("head.")}
  for key, x in bert.items():
    key = key.removeprefix("bert.").replace(".gamma", ".weight").replace(".beta", ".bias")
    if kind == "albef":
      if key.startswith(("embeddings.", "encoder.", "cls.predictions.")) and "position_ids" not in key:
        found[f"text_encoder.{key}"] = x
      continue
    if key == "embeddings.word_embeddings.weight":
      if not 0 <= tokens.vocab - len(x) <= albef.ADDED:
        raise ValueError(
          f"BERT's weights are for {len(x)} tokens, and {tokens.file} has {tokens.vocab}, [DEC] and [ENC] included: "
          "this tokenizer belongs to another model"
        )
      new = np.random.default_rng(0).normal(0, STD, (tokens.vocab - len(x), x.shape[1]))
      x = np.concatenate([x, new.astype(x.dtype)])
    kept = "token_type" not in key and "position_ids" not in key
    if kept and key.startswith(("embeddings.", "encoder.")):
      found |= {f"text_encoder.{key}": x, f"text_decoder.bert.{key}": x}
    if key.startswith("cls.predictions.") and ".decoder." not in key:
      bias = key == "cls.predictions.bias"
      found[f"text_decoder.{key}"] = np.pad(x, (0, max(tokens.vocab - len(x), 0))) if bias else x
  for key, whose in (
    ("visual_encoder.norm.weight", "no ViT's of timm"),
    ("text_encoder.embeddings.word_embeddings.weight", "not BERT's as transformers names them"),
  ):
    if key not in found:
      raise ValueError(f"the weights are {whose}: there is no '{key.partition('.')[2]}'")
  width = len(found["visual_encoder.norm.weight"])
  layout, settings, entries = blip_weights, blip_settings, blip_weights.original_entries
  if kind == "albef":
    found, layout, settings, entries = albef.fitted(found, tokens), albef, albef, albef.entries
  config = settings.from_tensors(found | {"vision_proj.weight": np.zeros((EMBED_DIM, width))}, tokens, kind, **heads)
  fresh = jax.jit(lambda: nnx.to_pure_dict(nnx.state(make_model(config, jax.random.key(0)))))()
  fresh = tensors.to_state_dict(fresh, entries(config))
  anew = ("crossattention", "vision_proj.", "text_proj.", "itm_head.", "temp", ".decoder.")
  found |= {key: x for key, x in fresh.items() if any(part in key for part in anew)}
  head = albef.HEAD if kind == "albef" else "text_decoder.cls.predictions"  # one parameter under two names
  found |= {
    f"{head}.decoder.weight": found["text_encoder.embeddings.word_embeddings.weight"],
    f"{head}.decoder.bias": found.get(f"{head}.bias", fresh[f"{head}.bias"]),
  }
  return config, layout.to_params(found, config)
