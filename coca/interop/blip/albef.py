"""ALBEF's original files (arXiv 2107.07651, salesforce/ALBEF) as our settings and parameters.

They are named as BLIP's, which came after it, but for one stack of text layers, of which the upper ones have
cross-attention. Its texts are all of segment 0: that embedding is added to the positions'. Pre-training saves the text
side as `text_encoder.bert` and `text_encoder.cls`, the fine-tune for retrieval as `text_encoder` alone.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from coca.config import Config, parse, to_dict
from coca.data.tokenizers.wordpiece import WordPiece
from coca.interop import tensors
from coca.interop.blip import settings as blip_settings
from coca.interop.blip import weights as blip_weights
from coca.interop.tensors import Entry

ADDED = 2  # [DEC] and [ENC], which the tokenizer has and ALBEF has not
HEAD = "text_encoder.cls.predictions"
LENGTHS = 25, 30  # of ALBEF's texts in pre-training and retrieval: Pretrain.py, Retrieval.py
_WORDS, _POSITIONS, _SEGMENTS = (
  f"text_encoder.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")
)


def is_albef(names) -> bool:
  """True if names of tensors, `tidy`'s of BLIP, are those of ALBEF: its lowest text layer has no cross-attention."""
  start = tuple(f"{text}.encoder.layer.0." for text in ("text_encoder", "text_encoder.bert"))
  lowest = [name for name in names if name.startswith(start)]
  is_grounded = any(".crossattention." in name for name in names)
  return bool(lowest) and is_grounded and not any(".crossattention." in name for name in lowest)


def fitted(state_dict: Mapping[str, np.ndarray], tokens: WordPiece) -> dict[str, np.ndarray]:
  """Tensors with the names of the fine-tune and with all words of the tokenizer: those that are added never come up.

  Raises:
    ValueError: an answering model, or one of another tokenizer.
  """
  found = {key.replace("text_encoder.bert.", "text_encoder."): x for key, x in state_dict.items()}
  if any(key.startswith("text_decoder.") for key in found):
    raise ValueError("these are weights of ALBEF's answering model; its pre-training and retrieval are read")
  if _SEGMENTS in found and _POSITIONS in found:
    found[_POSITIONS] = found[_POSITIONS] + found.pop(_SEGMENTS)[0]
  more = tokens.vocab - len(found.get(_WORDS, ()))
  if not 0 <= more <= ADDED:
    raise ValueError(
      f"the weights are for {tokens.vocab - more} tokens, and {tokens.file} has {tokens.vocab}, [DEC] and [ENC] "
      "included: this tokenizer belongs to another model"
    )
  for key, value in (
    (_WORDS, 0),
    (f"{HEAD}.decoder.weight", 0),
    (f"{HEAD}.bias", -100),
    (f"{HEAD}.decoder.bias", -100),
  ):
    if key in found:
      found[key] = np.pad(found[key], ((0, more), *((0, 0),) * (found[key].ndim - 1)), constant_values=value)
  return found


def from_tensors(state_dict: Mapping[str, np.ndarray], tokens: WordPiece, name: str = "albef", **heads) -> Config:
  """Our config of `fitted` tensors; without cross-attention the layers are cut in the middle, as ALBEF cuts BERT.

  Args:
    **heads: `image_heads` and `text_heads` as of `coca.interop.blip.settings.from_tensors`, which raises.
  """
  config = to_dict(blip_settings.from_tensors(state_dict, tokens, name, **heads))
  layers, hides = config.model.text.unimodal_layers, any(key.startswith(HEAD) for key in state_dict)
  key = "text_encoder.encoder.layer.{}.crossattention.self.query.weight"
  cut = next((i for i in range(layers) if key.format(i) in state_dict), layers // 2)
  config.model.kind = "albef"
  config.model.text.update(unimodal_layers=cut, multimodal_layers=layers - cut)
  config.model.text.length = min(LENGTHS[not hides], config.model.med.positions)
  config.model.med.mask = tokens.mask
  config.captioning.label_smoothing = 0.0
  config.masked.weight = float(hides)
  config.masked.most = min(config.masked.most, config.model.text.length)
  return parse(config)


def to_params(state_dict: Mapping[str, np.ndarray], config: Config) -> dict:
  """Our parameters, fp32, of `fitted` tensors; raises as `coca.interop.tensors.to_params`."""
  return tensors.to_params(state_dict, config, entries(config))


def entries(config: Config) -> Iterator[Entry]:
  """The tensors of a fitted file."""
  text = config.model.text
  yield from blip_weights.image_encoder(config.model.image.layers)
  yield from blip_weights.embedding("text_encoder", "text_encoder")
  for i in range(text.unimodal_layers + text.multimodal_layers):
    is_fused = i >= text.unimodal_layers
    ours, layer = ("fusion", i - text.unimodal_layers) if is_fused else ("text_encoder/stack", i)
    for part in blip_weights.PARTS:
      if is_fused or "cross" not in part:
        key = f"text_encoder.encoder.layer.{i}"
        yield from blip_weights.layer_part(key, f"{ours}/layers/{part}", part, layer)
  if config.masked.weight:
    yield from blip_weights.vocabulary_head(HEAD, "masked_head", "text_encoder")
  yield from blip_weights.projections(config)
