"""A run's working directory: the settings it was started with, its tokenizer and its parameters.

    config.json      {"config": ..., "tokenizer_sha256": ...}
    tokenizer.model  SentencePiece; or tokenizer.json, CLIP's byte-pair encoding; or vocab.txt, BERT's WordPiece
    checkpoints/     coca/checkpoint.py
    metrics.jsonl, tensorboard/, curves.png, contact_sheet.png

A model directory, as `python -m coca.convert` writes it, has model.safetensors in place of checkpoints/, and its sha256
in config.json. Whatever reads a model takes either.
"""

import json
import math
from pathlib import Path

import jax
from etils import epath

from coca import checkpoint, distributed, weights
from coca.config import Config, parse, to_dict
from coca.data import wordpiece
from coca.data.tokenizer import FILES, Tokenizer, load, texts_of, train
from coca.decoding.decode import own_prompt
from coca.retries import again, exists
from coca.typed import entry, read_object

# What may change between two starts in one workdir: nothing here changes the parameters that come out, but that with
# dropout other words are dropped in other micro-batches.
FREE = ("name", "log_every", "evals", "mesh", "checkpoint", "model.remat", "model.attention", "model.unroll",
        "optim.accumulate", "optim.max_nonfinite", "captioning.chunk", "data.threads", "data.prefetch",
        "data.max_skipped", "data.tokenizer_texts")


def local(workdir: str) -> Path:
  """The folder of a run that is to be trained. Raises ValueError where it is in an object store."""
  if "://" in workdir:
    raise ValueError(f"--workdir={workdir}: metrics are appended to files, which object stores cannot; give a local "
                     "folder or mount the bucket (gcsfuse)")
  return Path(workdir).absolute()


def read_workdir(workdir) -> tuple[Config, Tokenizer]:
  """The settings and the tokenizer of a run or of a model directory.

  Raises:
    FileNotFoundError: neither of these.
    ValueError: its config or tokenizer is damaged, or from another version.
  """
  workdir = epath.Path(workdir)
  config, run = read_config(workdir), _read(workdir)
  return config, load(tokenizer_path(workdir), run.get("tokenizer_sha256", ""))


def read_config(workdir) -> Config:
  """The settings alone; raises as `read_workdir`."""
  workdir = epath.Path(workdir)
  for names in (("config.json",), FILES):
    if not any(exists(workdir / name) for name in names):
      raise FileNotFoundError(
        f"{workdir} is no working directory of a run: it has no {' or '.join(names)}. One holds config.json, a "
        f"tokenizer and checkpoints/ or model.safetensors; make one with: python -m coca.train "
        f"--config=configs/coca_tiny.py --workdir={workdir}, or from open_clip's or BLIP's weights with: python -m "
        "coca.convert")
  return _config(workdir, _read(workdir))


def read_params(workdir, abstract_params, part: str | None = None):
  """The parameters of a run's newest usable checkpoint, or those of a model directory.

  Args:
    workdir: of a run, or a model directory.
    abstract_params: tree of `jax.ShapeDtypeStruct`s with shardings: any devices, and any part of the parameters.
    part: of a run: 'params', 'ema' or None, as `coca.checkpoint.load_params` takes it.

  Raises:
    FileNotFoundError: neither of these, or no checkpoint in it yet.
    ValueError: other parameters than `abstract_params`, or damaged weights.
    coca.checkpoint.CheckpointError: all checkpoints are damaged.
  """
  workdir = epath.Path(workdir)
  if exists(workdir / weights.FILE):
    return weights.read(workdir / weights.FILE, abstract_params, (_read(workdir) or {}).get("weights_sha256", ""))
  return checkpoint.load_params(workdir / "checkpoints", abstract_params, part)


def tokenizer_path(workdir):
  """Where a directory keeps its tokenizer; in one without, where it would be."""
  workdir = epath.Path(workdir)
  return next((workdir / name for name in FILES if exists(workdir / name)), workdir / FILES[0])


def write_run(config: Config, tokenizer: Tokenizer, workdir, **more: str) -> None:
  """Writes config.json, with `more` entries: all of it or nothing."""
  if jax.process_index() == 0:
    text = json.dumps({"config": to_dict(config).to_dict(), "tokenizer_sha256": tokenizer.sha256, **more}, indent=2)
    partial = epath.Path(workdir) / "config.json.partial"
    partial.write_text(text + "\n")
    partial.replace(epath.Path(workdir) / "config.json")


def check_same_run(config: Config, workdir) -> None:
  """Raises ValueError if settings differ that change the result of the run that was started in this workdir."""
  workdir = epath.Path(workdir)
  saved = _read(workdir)
  if not saved:
    return
  # Parsed, a setting that is newer than the run has its default.
  new, old = (_flat(json.loads(json.dumps(to_dict(c).to_dict()))) for c in (config, _config(workdir, saved)))
  differing = [f"  config.{name}: {old.get(name)!r} before, {new.get(name)!r} now" for name in sorted(new | old)
               if new.get(name) != old.get(name) and not any(f"{name}.".startswith(f"{free}.") for free in FREE)]
  if differing:
    raise ValueError(f"{workdir} holds a run with other settings:\n" + "\n".join(differing) + "\nGo on with those, or "
                     f"take a new workdir (config.init_from={workdir} starts from these parameters)")


def find_tokenizer(config: Config, sources: dict, workdir) -> Tokenizer:
  """The run's tokenizer, kept in the workdir: the given one, that of `init_from`, or one trained on the texts.

  Args:
    config: `data.tokenizer`, `init_from`, `data.tokenizer_texts`, `model.kind` and `model.text.vocab` are read.
    sources: opened training sources by name.
    workdir: of the run. All processes see it.

  Raises:
    FileNotFoundError, ValueError: no such tokenizer, another one than the run began with, or one that is too large.
  """
  workdir = epath.Path(workdir)
  sha256 = (_read(workdir) or {}).get("tokenizer_sha256", "")
  if jax.process_index() == 0 and not sha256:
    if config.data.tokenizer:
      tokenizer = load(config.data.tokenizer)
    elif config.init_from:
      tokenizer = read_workdir(config.init_from)[1]  # its parameters know no other numbering
    else:
      texts = texts_of(sources, config.data.sources, config.data.tokenizer_texts, config.seed)
      trainer = wordpiece.train if config.model.kind == "blip" else train
      tokenizer = trainer(texts, config.model.text.vocab)
    for name in FILES:  # that of a start which was given up
      (workdir / name).unlink(missing_ok=True)
    tokenizer.save(workdir / tokenizer.file)
  # Hours, maybe, for millions of texts from a bucket; that the first process is gone jax notices.
  distributed.barrier("the first process to train the tokenizer", math.inf)
  path = tokenizer_path(workdir)
  tokenizer = load(path, sha256)
  _check_tokenizer(config, tokenizer, path)
  return tokenizer


def _check_tokenizer(config: Config, tokenizer, path) -> None:
  """Raises ValueError if the tokenizer is not one for the model, or numbers in the config are not its."""
  if tokenizer.vocab > (vocab := config.model.text.vocab):
    raise ValueError(f"{path} has {tokenizer.vocab} pieces, more than config.model.text.vocab {vocab}")
  med, caption = config.model.med, config.captioning
  if config.model.kind == "blip":
    if not isinstance(tokenizer, wordpiece.WordPiece):
      raise ValueError(f"{path}: a model of kind 'blip' takes BERT's vocab.txt or tokenizer.json in "
                       "config.data.tokenizer; leave it empty to train one")
    # transformers leaves [CLS] where BLIP has [Encode].
    if med.cls != tokenizer.cls or med.encode not in (tokenizer.enc, tokenizer.cls):
      raise ValueError(f"config.model.med.cls {med.cls} and encode {med.encode} are not those of {path}: set them to "
                       f"{tokenizer.cls} and {tokenizer.enc}")
  if caption.weight and caption.prompt_tokens:
    found = own_prompt(config, tokenizer, 1)[1] - 1
    if found != caption.prompt_tokens:
      raise ValueError(f"config.captioning.prompt_tokens is {caption.prompt_tokens}, and config.data.prompt "
                       f"{config.data.prompt!r} has {found} tokens in {path}: set it to that; 0 learns them too")


def _read(workdir) -> dict | None:
  """config.json; None for a new workdir."""
  path = workdir / "config.json"
  if not exists(path):
    return None
  try:
    return read_object(again(path.read_bytes, str(path)))
  except ValueError as e:
    raise ValueError(f"{path} can't be read ({e}); restore it, or take another workdir") from None


def _config(workdir, run: dict) -> Config:
  try:
    return parse(entry(run, "config", dict))
  except ValueError as e:
    raise ValueError(f"{workdir / 'config.json'} can't be used: {e}") from None


def _flat(tree: dict, prefix: str = "") -> dict:
  """{'model.image.size': 288, ...}."""
  out = {}
  for key, value in tree.items():
    out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
  return out
