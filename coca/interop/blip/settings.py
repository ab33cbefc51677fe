"""BLIP's settings as ours: from transformers' config.json or, for the original files, from the weights.

The original files hold no settings: sizes are those of the tensors, the rest is BLIP's (vit.py, med_config.json). What
is not in weights and is needed to use or to train the model has the values of BLIP's own runs (arXiv 2201.12086).
"""

import math
from collections.abc import Mapping

import numpy as np

from coca.config import (
  Answering,
  Captioning,
  Classification,
  Config,
  Contrastive,
  Data,
  ImageEncoder,
  Matching,
  Med,
  Model,
  TextDecoder,
  parse,
  to_dict,
)
from coca.config.model import MEAN, STD
from coca.config.typed import entry
from coca.data.tokenizers.wordpiece import WordPiece
from coca.interop.blip.weights import CLASSES
from coca.interop.open_clip.settings import LAYERS, PIXELS

PROMPT, SMOOTHING = "a picture of ", 0.1  # of BLIP's captioner; of the labels in all its language modelling
# Of BLIP's texts, and its kinds of models. NLVR2's sentences are cut after 40 words there, which 64 tokens hold.
LENGTHS = {"pretraining": 30, "captioner": 40, "retrieval": 35, "vqa": 35, "nlvr": 64}
CLASSES_OF_NLVR = ("False", "True")  # as BLIP numbers them
KINDS = dict(zip(CLASSES, ("captioner", "retrieval", "vqa"), strict=True))

# What these settings have to be, where they are there at all.
_FIXED = {
  "config.json": {"model_type": ("blip",), "tie_word_embeddings": (True,)},
  "text_config": {
    "hidden_act": ("gelu",),
    "is_decoder": (True,),
    "tie_word_embeddings": (True,),
    "pad_token_id": (0,),
    "position_embedding_type": ("absolute",),
  },
  "vision_config": {"hidden_act": ("gelu",), "num_channels": (3,)},
  "the image processor": {
    "do_resize": (True,),
    "do_rescale": (True,),
    "do_normalize": (True,),
    "resample": (3, None),
    "do_center_crop": (False, None),
    "do_pad": (False, None),
  },
}


def from_transformers(
  settings: dict,
  preprocess: dict,
  tokens: WordPiece,
  name: str = "blip",
  *,
  matching_token: str = "enc",
  image_heads: int = 0,
  text_heads: int = 0,
) -> Config:
  """Our config of transformers' settings.

  Args:
    settings: of config.json.
    preprocess: of the image processor (preprocessor_config.json); empty: BLIP's.
    tokens: the model's tokenizer.
    name: what the config is to be called.
    matching_token: what a text to match and a question begin with: 'enc', as BLIP was trained; 'cls', as transformers'
      classes have it.
    image_heads: 0: as the settings say.
    text_heads: 0: as the settings say, which then have to be BLIP's, heads of 64: the default of transformers is wrong.

  Raises:
    ValueError: settings of another model, or a tokenizer of another one; what is in the way is named.
  """
  vision, text = entry(settings, "vision_config", dict), entry(settings, "text_config", dict)
  for part, values in zip(_FIXED, (settings, text, vision, preprocess), strict=True):
    for key, allowed in _FIXED[part].items():
      if values.get(key, allowed[0]) not in allowed:
        raise ValueError(f"{part}: {key} is {values[key]!r:.80}; supported: {', '.join(map(repr, allowed))}")
  architectures = entry(settings, "architectures", [])
  kinds = [kind for name, kind in KINDS.items() if name in architectures]
  if len(kinds) != 1:
    raise ValueError(f"config.json: architectures is {architectures!r:.80}; supported: {', '.join(KINDS)}")

  def of_image(key, default, least: float = 1, most: float = 1 << 20):
    return entry(vision, f"vision_config.{key}", default, least, most)

  def of_text(key, default, least: float = 1, most: float = 1 << 20):
    return entry(text, f"text_config.{key}", default, least, most)

  width, heads = of_text("hidden_size", 768), of_text("num_attention_heads", 8)
  if not text_heads and heads != width // 64:
    raise ValueError(
      f"text_config: num_attention_heads is {heads}, and BLIP's models of this width have "
      f"{width // 64}: with others their outputs are wrong. Correct config.json (transformers takes 8 "
      f"where nothing is said), or give --text_heads={heads} if the model was trained with them"
    )
  size = of_image("image_size", 384, most=PIXELS)
  _check_images(preprocess, size)
  for key, default, found in (("bos_token_id", 30_522, tokens.bos), ("sep_token_id", 102, tokens.eos)):
    if (said := of_text(key, default, 0)) != found:
      raise ValueError(
        f"text_config: {key} is {said}, and {found} in {tokens.file}: this tokenizer belongs to another model"
      )
  return _config(
    kinds[0],
    name,
    tokens,
    matching_token,
    ImageEncoder(
      size=size,
      patch=of_image("patch_size", 16),
      layers=of_image("num_hidden_layers", 12, most=LAYERS),
      width=of_image("hidden_size", 768),
      mlp=of_image("intermediate_size", 3072),
      heads=image_heads or of_image("num_attention_heads", 12),
      class_token=True,
      mean=entry(preprocess, "image_mean", MEAN, most=1),
      std=entry(preprocess, "image_std", STD, most=1),
    ),
    TextDecoder(
      vocab=of_text("vocab_size", 30_524),
      width=width,
      mlp=of_text("intermediate_size", 3072),
      heads=text_heads or heads,
    ),
    of_text("num_hidden_layers", 12, most=LAYERS),
    # A released config has no dropout and no smoothing: these are settings of training, for which it was not made.
    {
      "positions": of_text("max_position_embeddings", 512),
      "norm_eps": of_text("layer_norm_eps", 1e-12, 0, 1),
      "dropout": of_text("hidden_dropout_prob", 0.0, 0, 1) or Med.dropout,
    },
    of_image("layer_norm_eps", 1e-5, 0, 1),
    entry(settings, "image_text_hidden_size", 256, 1),
    of_text("label_smoothing", 0.0, 0, 1) or SMOOTHING,
  )


def from_tensors(
  tensors: Mapping[str, np.ndarray],
  tokens: WordPiece,
  name: str = "blip",
  *,
  matching_token: str = "enc",
  image_heads: int = 0,
  text_heads: int = 0,
) -> Config:
  """Our config of an original file, one of BLIP's pre-training, its captioner, its retrieval, VQA or NLVR2 model.

  A pre-trained model whose encoder and decoder do not have equal tensors, self-attention apart, was trained without
  sharing them: `config.model.med.sharing` is then 'none'.

  Args:
    tensors: of `coca.interop.blip.weights.tidy`; the rest as `from_transformers`, with heads of 64 for 0.

  Raises:
    ValueError: not such a file, or one of another tokenizer.
  """

  def shape(key, dimensions=2):
    if key not in tensors or tensors[key].ndim != dimensions:
      raise ValueError(f"the weights have no '{key}' of {dimensions} dimensions: not BLIP's, or not all of them")
    return tensors[key].shape

  encodes, writes = (any(key.startswith(start) for key in tensors) for start in ("text_encoder.", "text_decoder."))
  kinds = {
    (True, True, True): "pretraining",
    (False, True, False): "captioner",
    (True, False, True): "retrieval",
    (True, True, False): "vqa",
  }
  kind = kinds.get((encodes, writes, "vision_proj.weight" in tensors))
  if encodes and not writes and "cls_head.2.weight" in tensors:
    kind = "nlvr"
  if kind is None:
    raise ValueError(
      "the weights are none of BLIP's models: a text encoder with projections (vision_proj), a text decoder, both, or "
      "an encoder for two images with a class head (cls_head)"
    )
  image, text = "visual_encoder", "text_decoder.bert" if writes else "text_encoder"
  vocab, width = shape(f"{text}.embeddings.word_embeddings.weight")
  image_width, _, _, patch = shape(f"{image}.patch_embed.proj.weight", 4)
  side = math.isqrt(max(shape(f"{image}.pos_embed", 3)[1] - 1, 0))
  if vocab != tokens.vocab:
    raise ValueError(
      f"the weights are for {vocab} tokens, and {tokens.file} has {tokens.vocab}, [DEC] and [ENC] "
      "included: this tokenizer belongs to another model"
    )
  heads = {"image": image_heads or image_width // 64, "text": text_heads or width // 64}
  for tower, n in heads.items():
    if not n:
      raise ValueError(
        f"the weights don't say how many heads the {tower} side has, and BLIP's of 64 don't fit: give --{tower}_heads"
      )
  shared = [key for key in tensors if key.startswith("text_encoder.") and ".attention." not in key]
  equal = kind == "pretraining" and all(
    np.array_equal(tensors[key], tensors.get(key.replace("text_encoder.", "text_decoder.bert."))) for key in shared
  )
  return _config(
    kind,
    name,
    tokens,
    matching_token,
    ImageEncoder(
      size=side * patch,
      patch=patch,
      layers=_layers(tensors, f"{image}.blocks."),
      width=image_width,
      mlp=shape(f"{image}.blocks.0.mlp.fc1.weight")[0],
      heads=heads["image"],
      class_token=True,
      mean=MEAN,
      std=STD,
    ),
    TextDecoder(
      vocab=vocab, width=width, mlp=shape(f"{text}.encoder.layer.0.intermediate.dense.weight")[0], heads=heads["text"]
    ),
    _layers(tensors, f"{text}.encoder.layer."),
    {
      "positions": shape(f"{text}.embeddings.position_embeddings.weight")[0],
      "sharing": Med.sharing if equal or kind != "pretraining" else "none",
    },
    1e-6,
    shape("vision_proj.weight")[0] if kind in ("pretraining", "retrieval") else 256,
    SMOOTHING,
  )


def _config(
  kind: str,
  name: str,
  tokens: WordPiece,
  matching_token: str,
  image: ImageEncoder,
  text: TextDecoder,
  layers: int,
  med: dict,
  norm_eps: float,
  embed_dim: int,
  smoothing: float,
) -> Config:
  """`text` and `med` but for what follows from the kind of model and from the tokenizer."""
  if matching_token not in ("enc", "cls"):
    raise ValueError(f"--matching_token={matching_token} is neither enc nor cls")
  captions, grounds = kind in ("pretraining", "captioner"), kind in ("pretraining", "retrieval")
  length = min(LENGTHS[kind], med["positions"])
  prompt = PROMPT if kind == "captioner" else ""
  text = {
    **vars(text),
    "length": length,
    "unimodal_layers": 0 if kind == "captioner" else layers,
    "multimodal_layers": 0 if kind in ("retrieval", "nlvr") else layers,
  }
  return parse(
    to_dict(
      Config(
        name=name,
        model=Model(
          kind="blip",
          image=image,
          text=TextDecoder(**text),
          embed_dim=embed_dim,
          activation="gelu",
          norm_eps=norm_eps,
          med=Med(**med, cls=tokens.cls, encode=getattr(tokens, matching_token)),
        ),
        contrastive=Contrastive(weight=float(grounds), max_scale=1000.0, min_scale=2.0),
        captioning=Captioning(
          weight=float(captions),
          label_smoothing=smoothing,
          prompt_tokens=int(np.count_nonzero(tokens.encode(prompt, length))) - 2,
        ),
        matching=Matching(weight=float(grounds)),
        answering=Answering(weight=float(kind == "vqa")),
        classification=Classification(weight=1.0, classes=len(CLASSES_OF_NLVR), pool="text", images=2)
        if kind == "nlvr"
        else Classification(),
        data=Data(prompt=prompt, squash=True),
      )
    )
  )


def _layers(tensors: Mapping, start: str) -> int:
  found = {key.removeprefix(start).partition(".")[0] for key in tensors if key.startswith(start)}
  if odd := [n for n in found if not n.isdecimal() or len(n) > 3]:
    raise ValueError(f"'{start}{odd[0]:.40}' in the weights is no layer of BLIP's")
  return 1 + max(map(int, found), default=-1)


def _check_images(preprocess: dict, size: int) -> None:
  """`size` is the model's."""
  found = preprocess.get("size", size)
  found = tuple(found.get(side) for side in ("height", "width")) if isinstance(found, dict) else (found, found)
  if found != (size, size):
    raise ValueError(
      f"the image processor: size is {preprocess['size']!r:.80}, and the model's images are {size} x {size}"
    )
  check_rescaling(preprocess)


def check_rescaling(preprocess: dict) -> None:
  """Raises ValueError if an image processor of transformers' has another scale of pixels than 1 / 255."""
  if abs(entry(preprocess, "rescale_factor", 1 / 255) - 1 / 255) > 1e-6:
    raise ValueError(f"the image processor: rescale_factor is {preprocess['rescale_factor']}; supported: 1 / 255")
