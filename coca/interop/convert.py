"""Other people's weights as a model directory, and back."""

import functools
import sys
from contextlib import contextmanager
from pathlib import Path

import jax

from coca.data.tokenizers import clip, json_file, wordpiece
from coca.devices import sharding
from coca.inference.forward import Forward
from coca.interop import clip_transformers, files
from coca.interop.blip import albef
from coca.interop.blip import settings as blip_settings
from coca.interop.blip import start as blip_start
from coca.interop.blip import weights as blip_weights
from coca.interop.blip.transformers_files import transformers_files
from coca.interop.open_clip import export as open_clip_export
from coca.interop.open_clip import models as open_clip_models
from coca.interop.open_clip import settings as open_clip_settings
from coca.interop.open_clip import weights as open_clip_weights
from coca.storage import weights
from coca.storage.workdir import read_params, read_workdir, write_run

SETTINGS = "open_clip_config.json"


def from_open_clip(source, out, model: str = "", config: str = "", tokenizer: str = "") -> None:
  """Writes a model directory.

  Args:
    source: a folder with open_clip_config.json, weights and tokenizer files; or a file of weights.
    out: the new directory.
    model: open_clip's name of the model, where there is no open_clip_config.json
      (`coca.interop.open_clip.models.MODELS`).
    config: a file like open_clip_config.json, instead.
    tokenizer: a folder with CLIP's tokenizer files, or one of them; empty: beside the weights.

  Raises:
    FileNotFoundError: a file that is missing, by name.
    ValueError: what cannot be read or converted, or a directory that is there already.
  """
  out = files.check_new(out)
  folder, path = _found(source)
  described, found = _settings(folder, model, config)
  with _naming(described):
    settings = open_clip_settings.to_config(found, model or Path(source).resolve().stem)
  how = open_clip_settings.tokenizer(found)
  find = clip.find if how is None else functools.partial(json_file.find, **how)
  tokens = find(tokenizer or folder, settings.model.text.vocab)
  with _naming(path):
    params = open_clip_weights.to_params(files.read_state_dict(path), settings)
  _write(out, settings, tokens, params)


def from_transformers(source, out, config: str = "", tokenizer: str = "") -> None:
  """Writes a model directory of transformers' CLIPModel or SiglipModel.

  Args:
    source: a folder with config.json, weights and tokenizer; or a file of weights that lies beside such a config.json.
    out, config, tokenizer: as for `from_blip`.

  Raises:
    as `from_blip`.
  """
  out = files.check_new(out)
  folder, path = _found(source)
  described = config or folder / "config.json"
  found, processor = files.read_json(described), files.image_processor(folder)
  with _naming(described):
    settings = clip_transformers.to_config(found, processor, Path(source).resolve().stem)
  how = clip_transformers.tokenizer(settings)
  find = clip.find if how is None else functools.partial(json_file.find, **how)
  with _naming(path):
    params = clip_transformers.to_params(files.read_state_dict(path), settings)
  _write(out, settings, find(tokenizer or folder, settings.model.text.vocab), params)


def from_blip(source, out, config: str = "", tokenizer: str = "", **choices) -> None:
  """Writes a model directory.

  Args:
    source: a folder with transformers' config.json, weights and tokenizer; or a file of weights, an original one, of
      BLIP or ALBEF, or one that lies beside such a config.json.
    out: the new directory.
    config: a file like config.json, instead.
    tokenizer: vocab.txt or tokenizer.json of uncased BERT, or a folder with one of them; empty: beside the weights.
    **choices: `matching_token`, `image_heads` and `text_heads` of `coca.interop.blip.settings.from_transformers`.

  Raises:
    FileNotFoundError: a file that is missing, by name.
    ValueError: what cannot be read or converted, or a directory that is there already.
  """
  out = files.check_new(out)
  folder, path = _found(source)
  name = Path(source).resolve().stem
  with _naming(path):
    tensors = blip_weights.tidy(files.read_state_dict(path))
    vocab, is_albef = blip_weights.vocabulary(tensors), albef.is_albef(tensors)
  tokens = wordpiece.find(tokenizer or folder, vocab + (albef.ADDED if is_albef else 0))
  if is_albef:
    with _naming(path):
      choices.pop("matching_token", None)  # there is one first token
      tensors = albef.fitted(tensors, tokens)
      settings = albef.from_tensors(tensors, tokens, name, **choices)
  elif blip_weights.is_original(tensors):
    with _naming(path):
      settings = blip_settings.from_tensors(tensors, tokens, name, **choices)
  else:
    described = config or folder / "config.json"
    found, processor = files.read_json(described), files.image_processor(folder)
    with _naming(described):
      settings = blip_settings.from_transformers(found, processor, tokens, name, **choices)
  with _naming(path):
    params = (albef if is_albef else blip_weights).to_params(tensors, settings)
  _write(out, settings, tokens, params, blip_settings.CLASSES_OF_NLVR if settings.classification.weight else ())
  if not is_albef and settings.model.med.sharing == "none":
    print("note: encoder and decoder share nothing in these weights: config.model.med.sharing is 'none'")


def from_vit_and_bert(
  vit, bert, out, tokenizer: str = "", kind: str = "blip", image_heads: int = 0, text_heads: int = 0
) -> None:
  """Writes a model directory for `config.init_from` of a pre-training; see `coca.interop.blip.start`.

  Args:
    vit: a file of timm's weights, or a folder with one.
    bert: likewise of transformers' BERT.
    out: the new directory.
    tokenizer: as for `from_blip`; empty: beside BERT.
    kind: 'blip' or 'albef'.
    image_heads, text_heads: attention heads; 0: one for each 64 of the width.

  Raises:
    as `from_blip`.
  """
  out = files.check_new(out)
  (_, vit), (folder, bert) = _found(vit), _found(bert)
  found = []
  for path in (vit, bert):
    with _naming(path):
      found.append(files.read_state_dict(path))
  tokens = wordpiece.find(tokenizer or folder, sys.maxsize)
  with _naming(f"{vit} and {bert}"):
    config, params = blip_start.join(*found, tokens=tokens, kind=kind, image_heads=image_heads, text_heads=text_heads)
  _write(out, config, tokens, params)


def to_open_clip(source, out) -> None:
  """Writes a folder that `open_clip.create_model("local-dir:OUT")` loads.

  Args:
    source: a model directory or a workdir; of the latter, the moving average where the run kept one.
    out: the new folder.

  Raises:
    FileNotFoundError: no model there.
    ValueError: open_clip has no such model (what differs is listed), or `out` is there already.
    coca.storage.checkpoint.CheckpointError: all checkpoints are damaged.
  """
  out = files.check_new(out)
  config, tokens = read_workdir(source)
  settings = open_clip_export.from_config(config, tokens)
  if tokens.file != clip.FILE:
    print(f"note: open_clip reads no {tokens.file}; its tokenizer gives other ids than this model's")
  state_dict = open_clip_weights.to_state_dict(_params(source, config), config)
  with files.directory(out) as partial:
    weights.save(partial / files.WEIGHTS[0], state_dict)
    if isinstance(tokens, json_file.JsonTokenizer):
      for name, contents in tokens.exported().items():
        files.write_json(partial / name, contents)
    else:
      tokens.save(partial / tokens.file)
    files.write_json(partial / SETTINGS, settings)


def to_transformers(source, out, architecture: str = "") -> str:
  """Writes a folder that transformers' classes load with `from_pretrained`, with the preparation and the tokenizer.

  What the class lacks is left out: of BLIP the temperature and the parts that are another class's.

  Args:
    source: as for `to_open_clip`; a BLIP, a CLIP or a SigLIP.
    out: the new folder.
    architecture: the class, where a BLIP has the parts of several (`coca.interop.blip.weights.CLASSES`).

  Returns:
    The class.

  Raises:
    as `to_open_clip`.
  """
  out = files.check_new(out)
  config, tokens = read_workdir(source)
  if config.model.kind == "coca":
    return _to_clip(source, out, config, tokens, architecture)
  architecture, described = transformers_files(config, tokens, architecture)
  state_dict = blip_weights.to_state_dict(_params(source, config), config, architecture)
  if "text_encoder." in blip_weights.CLASSES[architecture] and config.model.med.encode != config.model.med.cls:
    print(
      "note: transformers leaves [CLS] in front of a text to match or a question, and this model has [ENC] there: "
      f"put the id {config.model.med.encode} in its place to get the same outputs"
    )
  with files.directory(out) as partial:
    weights.save(partial / weights.FILE, state_dict)
    tokens.save(partial / tokens.file)
    for name, contents in described.items():
      files.write_json(partial / name, contents)
  return architecture


def _to_clip(source, out: Path, config, tokens, asked: str) -> str:
  """`to_transformers` of a CLIP or a SigLIP."""
  architecture, described = clip_transformers.from_config(config, tokens)
  if asked:
    raise ValueError(f"--architecture={asked} is for a BLIP model; this one is a {architecture}")
  if isinstance(tokens, (clip.ClipTokenizer, json_file.JsonTokenizer)):
    described |= tokens.exported() if isinstance(tokens, clip.ClipTokenizer) else tokens.exported(cleans=True)
    described["tokenizer_config.json"]["model_max_length"] = config.model.text.length
  else:
    print(f"note: transformers' classes read no {tokens.file}; their tokenizers give other ids than this model's")
  state_dict = clip_transformers.to_state_dict(_params(source, config), config)
  with files.directory(out) as partial:
    weights.save(partial / weights.FILE, state_dict)
    if tokens.file not in described:
      tokens.save(partial / tokens.file)
    for name, contents in described.items():
      files.write_json(partial / name, contents)
  return architecture


def _found(source) -> tuple[Path, Path]:
  """The folder of the source and its file of weights."""
  source = Path(source)
  if not source.exists():
    raise FileNotFoundError(f"no such file or folder: {source}")
  return (source, files.weights_in(source)) if source.is_dir() else (source.parent, source)


@contextmanager
def _naming(path):
  """Errors begin with the file's name."""
  try:
    yield
  except ValueError as e:
    raise ValueError(f"{path}: {e}") from None


def _write(out, config, tokens, params, labels=()) -> None:
  more = {"labels": labels} if labels else {}
  with files.directory(out) as partial:
    sha256 = weights.write(partial / weights.FILE, params)
    tokens.save(partial / tokens.file)
    write_run(config, tokens, partial, weights_sha256=sha256, **more)  # last: without it, this is no model directory


def _params(source, config):
  return read_params(source, Forward(config, sharding.make_mesh(devices=jax.local_devices()[:1])).abstract_params)


def kind_of(source, config: str) -> str:
  """Whose the source is, for which no model of open_clip is named, by what lies beside it, or its names: 'open_clip',
  'blip', or 'transformers', for its models other than BLIP.
  """
  folder, path = _found(source)
  for described in (Path(config), folder / SETTINGS, folder / "config.json"):
    if described.is_file():
      found = files.read_json(described)
      if described.name == SETTINGS or "model_cfg" in found or "model_type" in found:
        if "model_type" not in found:
          return "open_clip"
        return "blip" if str(found["model_type"]).startswith("blip") else "transformers"
  with _naming(path):
    return "blip" if blip_weights.is_original(files.names(path)) else "open_clip"


def _settings(folder: Path, model: str, config: str) -> tuple[str | Path, dict]:
  """The place of open_clip's settings, and these."""
  if model:
    if model not in open_clip_models.MODELS:
      raise ValueError(
        f"--model={model} is not known; these are: {', '.join(open_clip_models.MODELS)}. For others, "
        "give open_clip's config with --config=FILE"
      )
    return f"--model={model}", open_clip_models.MODELS[model]
  path = Path(config or folder / SETTINGS)
  if not path.exists():
    raise FileNotFoundError(
      f"no {path}: say which model this is, with --model=NAME ({', '.join(open_clip_models.MODELS)}) or --config=FILE"
    )
  return path, files.read_json(path)
