"""A run's working directory: the settings it was started with, and its tokenizer.

    config.json      {"config": ..., "tokenizer_sha256": ...}
    tokenizer.model  SentencePiece
    checkpoints/     coca/checkpoint.py
    metrics.jsonl, tensorboard/, curves.png, contact_sheet.png
"""

import json

import jax
from etils import epath
from jax.experimental import multihost_utils

from coca.config import Config, parse, to_dict
from coca.data.tokenizer import Tokenizer, load, texts_of, train

# What may change between two starts in one workdir: nothing here changes the parameters that come out.
FREE = ("name", "log_every", "evals", "mesh", "checkpoint", "model.remat", "model.attention", "model.unroll",
        "optim.accumulate", "optim.max_nonfinite", "captioning.chunk", "data.threads", "data.prefetch",
        "data.max_skipped", "data.tokenizer_texts")


def read_workdir(workdir) -> tuple[Config, Tokenizer]:
  """The settings and the tokenizer of a run.

  Raises:
    FileNotFoundError: not a working directory.
    ValueError: its config or tokenizer is damaged, or from another version.
  """
  workdir = epath.Path(workdir)
  for name in ("config.json", "tokenizer.model"):
    if not (workdir / name).exists():
      raise FileNotFoundError(
        f"{workdir} is no working directory of a run: it has no {name}. One holds config.json, tokenizer.model and "
        f"checkpoints/; make one with: python -m coca.train --config=configs/coca_tiny.py --workdir={workdir}")
  run = _read(workdir)
  try:
    config = parse(run["config"])
  except (ValueError, KeyError, TypeError) as e:
    raise ValueError(f"{workdir / 'config.json'} can't be used: {type(e).__name__}: {e}") from e
  return config, load(workdir / "tokenizer.model", run.get("tokenizer_sha256", ""))


def write_run(config: Config, tokenizer: Tokenizer, workdir) -> None:
  """Writes config.json: all of it or nothing."""
  if jax.process_index() == 0:
    text = json.dumps({"config": to_dict(config).to_dict(), "tokenizer_sha256": tokenizer.sha256}, indent=2)
    partial = epath.Path(workdir) / "config.json.partial"
    partial.write_text(text + "\n")
    partial.replace(epath.Path(workdir) / "config.json")


def check_same_run(config: Config, workdir) -> None:
  """Raises ValueError if settings differ that change the result of the run that was started in this workdir."""
  saved = _read(epath.Path(workdir))
  if not saved:
    return
  new, old = (_flat(json.loads(json.dumps(c))) for c in (to_dict(config).to_dict(), saved["config"]))
  differing = [f"  config.{name}: {old.get(name)!r} before, {new.get(name)!r} now" for name in sorted(new | old)
               if new.get(name) != old.get(name) and not any(f"{name}.".startswith(f"{free}.") for free in FREE)]
  if differing:
    raise ValueError(f"{workdir} holds a run with other settings:\n" + "\n".join(differing) + "\nGo on with those, or "
                     f"take a new workdir (config.init_from={workdir} starts from these parameters)")


def find_tokenizer(config: Config, sources: dict, workdir) -> Tokenizer:
  """The run's tokenizer, kept in the workdir: the given one, that of `init_from`, or one trained on the texts.

  Args:
    config: `data.tokenizer`, `init_from`, `data.tokenizer_texts` and `model.text.vocab` are read.
    sources: opened training sources by name.
    workdir: of the run. All processes see it.

  Raises:
    FileNotFoundError, ValueError: no such tokenizer, another one than the run began with, or one that is too large.
  """
  workdir = epath.Path(workdir)
  path, sha256 = workdir / "tokenizer.model", (_read(workdir) or {}).get("tokenizer_sha256", "")
  if jax.process_index() == 0 and not sha256:
    if config.data.tokenizer:
      tokenizer = load(config.data.tokenizer)
    elif config.init_from:
      tokenizer = read_workdir(config.init_from)[1]  # its parameters know no other numbering
    else:
      texts = texts_of(sources, config.data.sources, config.data.tokenizer_texts, config.seed)
      tokenizer = train(texts, config.model.text.vocab)
    tokenizer.save(path)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("tokenizer")
  tokenizer = load(path, sha256)
  if tokenizer.vocab > (vocab := config.model.text.vocab):
    raise ValueError(f"{path} has {tokenizer.vocab} pieces, more than config.model.text.vocab {vocab}")
  return tokenizer


def _read(workdir) -> dict | None:
  """config.json; None for a new workdir."""
  path = workdir / "config.json"
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text())
  except ValueError as e:
    raise ValueError(f"{path} can't be read ({e}); restore it, or take another workdir") from None


def _flat(tree: dict, prefix: str = "") -> dict:
  """{'model.image.size': 288, ...}."""
  out = {}
  for key, value in tree.items():
    out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
  return out
