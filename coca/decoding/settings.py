"""Settings of decoding at a command line, by the names that others have for them, and what a model can do."""

import argparse
import difflib
from dataclasses import fields

from coca.config import Config
from coca.config.decoding import Decoding


def answer_decoding(length: int) -> Decoding:
  """BLIP's settings for answers of at most `length` tokens."""
  return beam_search(3, length)


def beam_search(beams: int, length: int = 0) -> Decoding:
  """As BLIP's authors have it; `length`: of a text at most, in tokens."""
  return Decoding(strategy="beam", beams=beams, max_length=length, length_normalisation="whole")


# Names that other libraries have for these settings: transformers' `generate`, open_clip's and BLIP's.
FOREIGN = {
  "num_beams": "beams, with strategy 'beam'",
  "do_sample": "strategy 'sample'",
  "sample": "strategy 'sample'",
  "generation_type": "strategy",
  "num_return_sequences": "n",
  "max_new_tokens": "max_length, which counts BOS and the prompt too",
  "min_new_tokens": "min_length, which counts BOS and the prompt too",
  "seq_len": "max_length",
  "min_seq_len": "min_length",
  "early_stopping": "early_stop",
  "ngram_size": "no_repeat_ngram_size",
}


def unknown(name: str) -> str:
  """The words for a setting that `Decoding` lacks."""
  known = [field.name for field in fields(Decoding)]
  close = difflib.get_close_matches(name.replace("-", "_"), known, 1)
  if name.replace("-", "_") in FOREIGN:
    return f"{name} is called {FOREIGN[name.replace('-', '_')]}"
  return f"{name}: no such setting; " + (f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}")


def add_flags(group) -> None:
  """Flags for all settings of `Decoding`, to a parser or a group of one."""
  for field in fields(Decoding):
    if field.type is bool:
      group.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction, default=field.default)
    else:
      group.add_argument(f"--{field.name}", type=type(field.default), default=field.default, metavar=str(field.default))


def from_flags(args: dict) -> Decoding:
  """The settings among parsed arguments by name. Raises ValueError as `Decoding`."""
  return Decoding(**{field.name: args[field.name] for field in fields(Decoding)})


def make_decoding(**settings) -> Decoding:
  """`Decoding`, but a name that it lacks is answered with ours.

  Raises:
    TypeError: there is no setting of such a name.
    ValueError: as `Decoding`.
  """
  if wrong := [name for name in settings if name not in Decoding.__dataclass_fields__]:
    raise TypeError(f"decoding: {unknown(wrong[0])}")
  return Decoding(**settings)


def check_decoding_model(decoding: Decoding, config: Config, asked: bool = False) -> None:
  """Raises ValueError if the model of `config` lacks what `decoding` needs. `asked`: it is to answer a question."""
  text = config.model.text
  if config.answering.weight and not asked:
    raise ValueError("this model answers questions (config.answering.weight is above 0) and writes no captions")
  if config.model.kind == "albef":
    raise ValueError("this model has no decoder (config.model.kind is 'albef'): it writes no texts")
  if not text.multimodal_layers:
    raise ValueError(
      "this model has no multimodal decoder (config.model.text.multimodal_layers is 0): it writes no texts"
    )
  longest = decoding.max_length or text.length
  if longest > text.length:
    raise ValueError(
      f"decoding: max_length {longest} is more than the {text.length} tokens that the model can read "
      "(config.model.text.length)"
    )
  if decoding.min_length >= longest:
    raise ValueError(f"decoding: min_length {decoding.min_length} tokens and EOS don't fit in the {longest} of a text")
  if decoding.rerank and not config.contrastive.heads:
    raise ValueError(
      "decoding: rerank needs the contrastive head, and this model was trained without one "
      "(config.contrastive.weight is 0)"
    )
