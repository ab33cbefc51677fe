"""The files beside the weights that transformers makes a BLIP model of."""

from coca.config import Config
from coca.data.tokenizers.wordpiece import WordPiece
from coca.interop.blip.settings import KINDS
from coca.interop.blip.weights import CLASSES


def transformers_files(config: Config, tokens: WordPiece, architecture: str = "") -> tuple[str, dict[str, dict]]:
  """The means for transformers to build the same model: the class, and the contents of files by name.

  Args:
    config: of a model with `config.model.kind` 'blip'.
    tokens: its tokenizer.
    architecture: one of `CLASSES`; empty: the one that there is, where the model has the parts of one.

  Raises:
    ValueError: transformers has no such model, or several classes for parts of it.
  """
  image, text, med = config.model.image, config.model.text, config.model.med
  if config.model.kind != "blip":
    raise ValueError(f"transformers' BLIP classes are for config.model.kind 'blip', not {config.model.kind!r}")
  has_answering = config.answering.weight > 0
  there = dict(
    zip(
      CLASSES,
      (
        text.multimodal_layers > 0 and not has_answering,
        config.contrastive.heads and config.matching.weight > 0,
        has_answering,
      ),
      strict=True,
    )
  )
  fitting = [name for name, fits in there.items() if fits]
  if not architecture and len(fitting) == 1:
    architecture = fitting[0]
  if architecture not in fitting:
    raise ValueError(
      f"--architecture={architecture} is not what this model has the parts of: {', '.join(fitting)}"
      if fitting
      else "transformers has no class for this model: it is no captioner, answers no "
      "questions, and has not both embeddings and a matching head"
    )
  for setting, value, only in (
    ("activation", config.model.activation, "gelu"),
    ("image.norm_pre", image.norm_pre, False),
    ("image.norm_post", image.norm_post, True),
    ("image.patch_bias", image.patch_bias, True),
    ("text.width", text.width, image.width if has_answering else text.width),
    ("text.unimodal_layers", text.unimodal_layers, text.multimodal_layers if has_answering else text.unimodal_layers),
  ):
    if value != only:
      raise ValueError(f"transformers has no such model: config.model.{setting} is {value!r}; there it is {only!r}")
  data = config.data
  if not data.squash or data.filter != "bicubic" or data.resize not in (0, image.size):
    raise ValueError(
      "transformers' processor of BLIP squashes images to the model's size, bicubic; config.data.squash is "
      f"{data.squash}, filter {data.filter!r}, resize {data.resize}"
    )
  layers = text.unimodal_layers if KINDS[architecture] == "retrieval" else text.multimodal_layers
  size = {"height": image.size, "width": image.size}
  return architecture, {
    "config.json": {
      "architectures": [architecture],
      "model_type": "blip",
      "dtype": "float32",
      "image_text_hidden_size": config.model.embed_dim or 256,
      "tie_word_embeddings": True,
      "text_config": {
        "model_type": "blip_text_model",
        "vocab_size": text.vocab,
        "hidden_size": text.width,
        "encoder_hidden_size": image.width,
        "intermediate_size": text.mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": text.heads,
        "max_position_embeddings": med.positions,
        "hidden_act": "gelu",
        "layer_norm_eps": med.norm_eps,
        "hidden_dropout_prob": med.dropout,
        "attention_probs_dropout_prob": med.dropout,
        "label_smoothing": config.captioning.label_smoothing,
        "is_decoder": True,
        "pad_token_id": 0,
        "bos_token_id": tokens.bos,
        "eos_token_id": tokens.eos,
        "sep_token_id": tokens.eos,
        "tie_word_embeddings": True,
      },
      "vision_config": {
        "model_type": "blip_vision_model",
        "hidden_size": image.width,
        "intermediate_size": image.mlp,
        "num_hidden_layers": image.layers,
        "num_attention_heads": image.heads,
        "image_size": image.size,
        "patch_size": image.patch,
        "hidden_act": "gelu",
        "layer_norm_eps": config.model.norm_eps,
      },
    },
    "preprocessor_config.json": {
      "processor_class": "BlipProcessor",
      "image_processor_type": "BlipImageProcessor",
      "do_convert_rgb": True,
      "do_resize": True,
      "size": size,
      "resample": 3,
      "do_rescale": True,
      "rescale_factor": 1 / 255,
      "do_normalize": True,
      "image_mean": list(image.mean),
      "image_std": list(image.std),
    },
    "tokenizer_config.json": {
      "processor_class": "BlipProcessor",
      "tokenizer_class": "BertTokenizer",
      "do_lower_case": True,
      "model_max_length": med.positions,
      "pad_token": "[PAD]",
      "unk_token": "[UNK]",
      "cls_token": "[CLS]",
      "sep_token": "[SEP]",
      "bos_token": "[DEC]",
      "additional_special_tokens": ["[ENC]"],
    },
  }
