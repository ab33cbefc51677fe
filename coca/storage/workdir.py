"""A run's working directory: the settings it was started with, its tokenizer and its parameters.

    config.json      {"config": ..., "tokenizer_sha256": ..., "sources": {name: {"records": ..., ...}},
                     "labels": [...]}, the last if the model has a class head
    tokenizer.model  SentencePiece; or tokenizer.json, CLIP's byte-pair encoding; or vocab.txt, BERT's WordPiece
    checkpoints/     coca/storage/checkpoint.py
    metrics.jsonl, tensorboard/, curves.png, contact_sheet.png; wandb.id, mlflow.id (coca/training/trackers.py)

In a bucket the lines are in metrics/000000.jsonl, ... (coca/training/metrics_file.py).

A model directory, as `python -m coca.convert` writes it, has model.safetensors in place of checkpoints/, and its sha256
in config.json. Whatever reads a model takes either.
"""

import json
import re

import jax
from etils import epath

from coca.config import Config, parse, to_dict
from coca.config.special import Tokenizer
from coca.config.typed import entry, read_object
from coca.data.tokenizers.load import FILES, load
from coca.files.retries import again, exists
from coca.files.writing import write_atomic
from coca.storage import checkpoint, weights
from coca.storage.bucket import names


def saved_steps(workdir) -> list[int]:
  """The steps of a run that are in its checkpoints, damaged ones too, ascending."""
  folder = epath.Path(workdir) / "checkpoints"
  damaged = re.compile(rf"(\d+){re.escape(checkpoint.DAMAGED)}\d*")
  found = [int(match[1]) for name in names(folder) if (match := damaged.fullmatch(name))]
  return sorted(found + again(lambda: checkpoint.complete(folder), str(folder)))


def read_workdir(workdir) -> tuple[Config, Tokenizer]:
  """The settings and the tokenizer of a run or of a model directory.

  Raises:
    FileNotFoundError: neither of these.
    ValueError: its config or tokenizer is damaged, or from another version.
  """
  workdir = epath.Path(workdir)
  config, run = read_config(workdir), read_run(workdir) or {}
  return config, load(tokenizer_path(workdir), run.get("tokenizer_sha256", ""))


def read_config(workdir) -> Config:
  """The settings alone; raises as `read_workdir`."""
  workdir = epath.Path(workdir)
  for files in (("config.json",), FILES):
    if not any(exists(workdir / name) for name in files):
      raise FileNotFoundError(
        f"{workdir} is no working directory of a run: it has no {' or '.join(files)}. One holds config.json, a "
        f"tokenizer and checkpoints/ or model.safetensors; make one with: python -m coca.train "
        f"--config=configs/coca_tiny.py --workdir={workdir}, or from open_clip's or BLIP's weights with: python -m "
        "coca.convert"
      )
  return parse_run(workdir, read_run(workdir) or {})


def read_params(workdir, abstract_params, part: str | None = None):
  """The parameters of a run's newest usable checkpoint, or those of a model directory.

  Args:
    workdir: of a run, or a model directory.
    abstract_params: tree of `jax.ShapeDtypeStruct`s with shardings: any devices, and any part of the parameters.
    part: of a run: 'params', 'ema' or None, as `coca.storage.checkpoint.load_params` takes it.

  Raises:
    FileNotFoundError: neither of these, or no checkpoint in it yet.
    ValueError: other parameters than `abstract_params`, or damaged weights.
    coca.storage.checkpoint.CheckpointError: all checkpoints are damaged.
  """
  workdir = epath.Path(workdir)
  if exists(workdir / weights.FILE):
    return weights.read(workdir / weights.FILE, abstract_params, (read_run(workdir) or {}).get("weights_sha256", ""))
  return checkpoint.load_params(workdir / "checkpoints", abstract_params, part)


def has_params(workdir) -> bool:
  """True if there is something for `read_params`."""
  return exists(epath.Path(workdir) / weights.FILE) or bool(saved_steps(workdir))


def tokenizer_path(workdir):
  """The path of a directory's tokenizer; in one without, that where it would be."""
  workdir = epath.Path(workdir)
  return next((workdir / name for name in FILES if exists(workdir / name)), workdir / FILES[0])


def write_run(config: Config, tokenizer: Tokenizer, workdir, **more) -> None:
  """Writes config.json, with `more` entries, where it does not say so already: all of it or nothing."""
  if jax.process_index() == 0:
    path = epath.Path(workdir) / "config.json"
    run = json.loads(json.dumps({"config": to_dict(config).to_dict(), "tokenizer_sha256": tokenizer.sha256, **more}))
    if read_run(epath.Path(workdir)) != run:
      write_atomic(path, (json.dumps(run, indent=2) + "\n").encode())


def read_run(workdir) -> dict | None:
  """config.json; None for a new workdir."""
  path = workdir / "config.json"
  if not exists(path):
    return None
  try:
    run = read_object(again(path.read_bytes, str(path)))
  except ValueError as e:
    raise ValueError(f"{path} can't be read ({e}); restore it, or take another workdir") from None
  if "config" not in run:
    raise ValueError(
      f"{path} is not that of a run or a converted model; take another folder. A model of transformers "
      "or open_clip converts: python -m coca.convert"
    )
  return run


def read_labels(workdir) -> tuple[str, ...]:
  """The names of the classes that a run's class head tells apart; none if it has no such head."""
  return tuple((read_run(epath.Path(workdir)) or {}).get("labels", ()))


def parse_run(workdir, run: dict) -> Config:
  try:
    return parse(entry(run, "config", dict))
  except ValueError as e:
    raise ValueError(f"{workdir / 'config.json'} can't be used: {e}") from None


# What others put into the folder of a run before it begins: launchers their logs, file systems hidden files.
NOT_OURS = re.compile(r"\..*|lost\+found|logs|xla_cache|.*\.(log|out|err)|log(\.txt)?|std(out|err)")
