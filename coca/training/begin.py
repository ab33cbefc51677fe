"""A run takes its folder: which folders do, which settings may differ from those that the run was started with, and the
tokenizer and config.json that it keeps there.
"""

import hashlib
import json
import math
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath

from coca.config import Config, to_dict
from coca.config.differing import differing, flat
from coca.config.durations import in_steps
from coca.config.special import PAD, Tokenizer
from coca.config.stages import spans
from coca.data.fingerprint import fingerprint
from coca.data.tokenizers import wordpiece
from coca.data.tokenizers.load import FILES, load, texts_of
from coca.data.tokenizers.sentencepiece import train
from coca.decoding.decode import own_prompt
from coca.devices import processes
from coca.devices.host import from_first
from coca.files.retries import exists
from coca.storage import weights
from coca.storage.bucket import names
from coca.storage.workdir import (
  NOT_OURS,
  parse_run,
  read_config,
  read_run,
  read_workdir,
  saved_steps,
  tokenizer_path,
  write_run,
)
from coca.training.init_from import takes_words
from coca.training.optim import make_schedule

# What may change between two starts in one workdir: nothing here changes the parameters that come out, but that with
# dropout other words are dropped in other micro-batches. What may change too, and is said at the start: `steps`, as
# long as they are no fewer than are done; where the data are, as long as the records are the same; and what a run that
# has begun does not read again. Before the first checkpoint there is no past, and everything may change.
FREE = (
  "name",
  "log_every",
  "trackers",
  "evals",
  "mesh",
  "checkpoint",
  "model.remat",
  "model.attention",
  "model.unroll",
  "optim.accumulate",
  "optim.max_nonfinite",
  "captioning.chunk",
  "data.embeddings",
  "data.threads",
  "data.prefetch",
  "data.max_skipped",
  "data.tokenizer_texts",
  "data.tokenizer_pieces",
)
READ_ONCE = ("init_from", "init_parts", "data.tokenizer")
PLACES = (".path", ".sidecars")  # of a source
# What decides a tokenizer that is trained.
TOKENIZER = (
  "seed",
  *READ_ONCE,
  "model.kind",
  "model.text.vocab",
  "data.tokenizer_texts",
  "data.tokenizer_pieces",
  "data.sources",
)


def check_folder(workdir) -> None:
  """Raises ValueError unless a run can be trained here: in a new or an empty folder, or in that of a run."""
  workdir = epath.Path(workdir)
  if exists(workdir / weights.FILE):
    raise ValueError(
      f"{workdir} holds a model, which a run would not change; take another --workdir, and "
      f"--config.init_from={workdir} to start from that model"
    )
  if exists(workdir / "config.json") or not exists(workdir):
    return
  try:
    found = sorted(name for name in names(workdir) if not NOT_OURS.fullmatch(name))
  except NotADirectoryError:
    raise ValueError(f"--workdir={workdir} is a file; name a folder") from None
  if found:
    raise ValueError(
      f"{workdir} is neither empty nor the workdir of a run (it has no config.json): it holds "
      f"{', '.join(found[:5])}{', ...' if found[5:] else ''}. Take another --workdir"
    )


def check_temperature(config: Config) -> None:
  """Raises ValueError if a new run's first step would change the temperature that it is to begin with."""
  contrastive = config.contrastive
  scale, least, most = 1 / contrastive.temperature, contrastive.min_scale, contrastive.max_scale or math.inf
  if contrastive.weight and not least <= scale <= most:
    raise ValueError(
      f"config.contrastive.temperature {contrastive.temperature} is a scale of {scale:.6g}, which "
      f"config.contrastive.min_scale and max_scale don't let be: {least:g} to {most:g}"
    )


def check_same_run(config: Config, workdir) -> list[str]:
  """Differences to the settings of the run in this workdir that have to be said, a line each.

  Raises:
    ValueError: the run has begun, and settings differ that change its past. They are listed.
  """
  workdir = epath.Path(workdir)
  saved, done = read_run(workdir), saved_steps(workdir)
  if not saved or not done:
    return []
  old = parse_run(workdir, saved)
  said, refused = [], []
  for name, (before, now) in _differing(old, config).items():
    line = f"config.{name}: {before!r} before, {now!r} now"
    # A classifier's embeddings are of images that are decoded as in evaluation.
    changes_images = name == "data.embeddings" and config.classification.weight and not (before and now)
    if _is_in(name, FREE) and not changes_images:
      continue
    if name in READ_ONCE:
      said.append(f"{line}; the run has begun and does not read it again")
    elif name == "steps":
      said += _longer(old, config, done[-1])
    elif name.startswith("data.sources.") and name.endswith(PLACES) and name.split(".")[2] in saved.get("sources", {}):
      said.append(line)  # `begin` compares the records
    else:
      refused.append(f"  {line}")
  if refused:
    raise ValueError(
      f"{workdir} holds a run with other settings:\n" + "\n".join(refused) + "\nGo on with those, or "
      f"take a new workdir (config.init_from={workdir} starts from these parameters)"
    )
  return said


def _longer(old: Config, new: Config, done: int) -> list[str]:
  """The lines that say that `steps` differ. Raises ValueError if more are done."""
  before, now = (c.total_steps for c in (old, new))
  if now < done:
    raise ValueError(f"config.steps is {new.steps}, and {done} are done; it takes {done} or more")
  past = np.arange(done)
  sizes = [[(s.last, s.config.model.image.size) for s in spans(c) if s.first < done] for c in (old, new)]
  if sizes[0][:-1] != sizes[1][:-1] or sizes[0][-1][1] != sizes[1][-1][1]:
    raise ValueError(
      f"config.steps: {before} before, {now} now; of the {done} steps that are done some would have had images of "
      "another size. Write config.stages.NAME.until in steps or examples for a run that may get longer"
    )
  ramps = [min(done, in_steps(c.contrastive.soft_ramp, c.data.batch, c.total_steps)) for c in (old, new)]
  changed = {
    "the learning rate": not np.allclose(
      *(make_schedule(c, total)(past) for c, total in ((old, before), (new, now))), rtol=1e-6
    ),
    "the share of soft targets": new.contrastive.momentum > 0 and ramps[0] != ramps[1],
  }
  line = f"config.steps: {before} before, {now} now"
  if names := " and ".join(name for name, differs in changed.items() if differs):
    line += (
      f"; {names} is that of a run of {now} steps from here on, and was that of one of {before} in the {done} done"
    )
  return [line]


def begin(config: Config, sources: dict, workdir, labels: Sequence[str] = ()) -> tuple[Tokenizer, list[str]]:
  """The run's tokenizer and config.json, kept in the workdir; both are written by a new run, or as settings changed.

  The tokenizer is the given one, that of `init_from`, or one trained on the texts.

  Args:
    config: of the run.
    sources: opened training sources by name.
    workdir: of the run, made when missing. All processes see it, and call this.
    labels: names of the classes, where the model has a class head.

  Returns:
    the tokenizer, and what has to be said of settings and data that changed.

  Raises:
    FileNotFoundError, ValueError: no such tokenizer, another one than the run began with, one that is too large, or
      settings or data of another run.
  """
  workdir = epath.Path(workdir)
  said, told = check_same_run(config, workdir), np.zeros(33, np.uint8)
  if jax.process_index() == 0:
    saved = read_run(workdir) or {}
    begun = bool(saved and saved_steps(workdir))
    records = {name: fingerprint(source) for name, source in sources.items()}
    if begun and list(labels) != saved.get("labels", []):
      raise ValueError(f"the labels of config.data.sources have other names than when the run in {workdir} began")
    if begun:
      said += _check_records(config, parse_run(workdir, saved), records, saved.get("sources", {}))
    if begun and not exists(tokenizer_path(workdir)):
      raise FileNotFoundError(
        f"{workdir} has lost its tokenizer ({', '.join(FILES)}); copy it back from elsewhere, or take a new workdir"
      )
    if begun or (exists(tokenizer_path(workdir)) and _same_tokenizer(config, workdir, saved)):
      tokenizer = load(tokenizer_path(workdir), saved.get("tokenizer_sha256", ""))
      _check_tokenizer(config, tokenizer, tokenizer_path(workdir))
    else:
      tokenizer = _new_tokenizer(config, sources)
      _remove_tokenizer(workdir, saved.get("tokenizer_sha256", ""))
    write_run(config, tokenizer, workdir, sources=records, **({"labels": list(labels)} if labels else {}))
    if not exists(workdir / tokenizer.file):  # last: config.json says whose file it is
      tokenizer.save(workdir / tokenizer.file)
    told = np.array([*bytes.fromhex(tokenizer.sha256), FILES.index(tokenizer.file)], np.uint8)
  # Hours, maybe, for millions of texts from a bucket; that the first process is gone jax notices.
  processes.barrier("the first process to train the tokenizer", math.inf)
  *sha256, file = from_first(told).tolist()
  return load(workdir / FILES[file], bytes(sha256).hex()), said


def _same_tokenizer(config: Config, workdir, saved: dict) -> bool:
  """True if `config` would have the tokenizer of the start before."""
  try:
    return bool(saved) and not any(_is_in(name, TOKENIZER) for name in _differing(parse_run(workdir, saved), config))
  except ValueError:  # settings that are refused today
    return False


def _new_tokenizer(config: Config, sources: dict) -> Tokenizer:
  if config.data.tokenizer:
    tokenizer, where = load(config.data.tokenizer), config.data.tokenizer
  # Its parameters know no other numbering.
  elif config.init_from and takes_words(config) and read_config(config.init_from).model.text.layers:
    tokenizer, where = read_workdir(config.init_from)[1], config.init_from
  else:
    texts = texts_of(sources, config.data.sources, config.data.tokenizer_texts, config.seed)
    vocab = config.model.pieces
    if config.model.is_bert:
      tokenizer = wordpiece.train(texts, vocab)
    else:
      tokenizer = train(texts, vocab, config.data.tokenizer_pieces)
    where = "the tokenizer of these texts"
  _check_tokenizer(config, tokenizer, where)
  return tokenizer


def _remove_tokenizer(workdir, sha256: str) -> None:
  """Removes that of a start which was given up, known by its sha256; raises ValueError if there is another one."""
  found = [path for path in (workdir / name for name in FILES) if exists(path)]
  for path in found:
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
      raise ValueError(
        f"{path} is not what the run in {workdir} wrote; move it elsewhere (config.data.tokenizer names "
        "one that is to be used), or take another workdir"
      )
  for path in found:
    path.unlink()


def _check_records(config: Config, old: Config, now: dict, before: dict) -> list[str]:
  """The lines that say which sources have other records than before. Raises ValueError if such a source has moved."""
  changed = _differing(old, config)
  said = []
  for name in before:
    if name in now and now[name] != before[name]:
      where, (had, has) = f"config.data.sources.{name}", (x[name]["records"] for x in (before, now))
      moved = [where + place for place in PLACES if f"data.sources.{name}{place}" in changed]
      if moved:
        raise ValueError(
          f"{' and '.join(moved)} differs from before, and so do the records ({had:,} before, {has:,} "
          "now): in a run that has begun, data may move but not change. Go on with those, or take a new "
          "workdir"
        )
      said.append(
        f"{where} has other records than when the run began ({had:,} then, {has:,} now): from here on it "
        "is trained on these"
      )
  return said


def _check_tokenizer(config: Config, tokenizer: Tokenizer, path) -> None:
  """Raises ValueError if the tokenizer is not one for the model, or what the config has to fit it does not."""
  if tokenizer.vocab > (most := config.model.pieces):
    taken = " (without those of spans and regions)" * config.model.poses_tasks
    raise ValueError(f"{path} has {tokenizer.vocab} pieces, more than config.model.text.vocab {most}{taken}")
  med, caption = config.model.med, config.captioning
  if config.model.is_bert:
    if not isinstance(tokenizer, wordpiece.WordPiece):
      raise ValueError(
        f"{path}: a model of kind {config.model.kind!r} takes BERT's vocab.txt or tokenizer.json in "
        "config.data.tokenizer; leave it empty to train one"
      )
    # transformers leaves [CLS] where BLIP has [Encode], which LEMON and ALIGN have no use for.
    encode = tokenizer.enc if config.model.kind in ("lemon", "align") else med.encode
    if med.cls != tokenizer.cls or encode not in (tokenizer.enc, tokenizer.cls):
      raise ValueError(
        f"config.model.med.cls {med.cls} and encode {med.encode} are not those of {path}: set them to "
        f"{tokenizer.cls} and {tokenizer.enc}"
      )
    if config.masked.weight and med.mask != tokenizer.mask:
      raise ValueError(f"config.model.med.mask {med.mask} is not [MASK] of {path}: set it to {tokenizer.mask}")
  if config.data.prompt and tokenizer.encode(config.data.prompt, config.model.text.length)[-1] != PAD:
    raise ValueError(
      f"config.data.prompt {config.data.prompt!r} leaves no room for a text in config.model.text.length "
      f"{config.model.text.length} tokens; shorten it"
    )
  if config.self_critical.weight or (caption.weight and caption.prompt_tokens):
    found = own_prompt(config, tokenizer, 1)[1] - 1
    if found != caption.prompt_tokens:
      raise ValueError(
        f"config.captioning.prompt_tokens is {caption.prompt_tokens}, and config.data.prompt "
        f"{config.data.prompt!r} has {found} tokens in {path}: set it to that"
        + ("" if config.self_critical.weight else "; 0 learns them too")
      )


def _differing(old: Config, new: Config) -> dict[str, tuple]:
  """{'model.image.size': (224, 288), ...}, of settings that differ; None where there is no such setting."""
  return differing(*(flat(json.loads(json.dumps(to_dict(c).to_dict()))) for c in (old, new)))


def _is_in(name: str, settings) -> bool:
  return any(f"{name}.".startswith(f"{setting}.") for setting in settings)
