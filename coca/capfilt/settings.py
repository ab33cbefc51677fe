"""Settings of a CapFilt job: typed and checked, as those of a training run (coca/config/settings.py)."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Literal

from ml_collections import ConfigDict

from coca.config import Source, to_dict
from coca.config.data_checks import check_source
from coca.config.typed import from_plain, to_plain
from coca.decoding.settings import Decoding

# BLIP section 3.3 and Table 2: nucleus sampling. Length limits and the repetition penalty are not in the paper.
NUCLEUS = Decoding(strategy="sample", top_p=0.9)
# What changes nothing in the sidecars: a job may go on with other values.
FREE = ("threads", "max_failed", "engine", "address", "workers", "resources", "attempts")


@dataclass(frozen=True, kw_only=True)
class CapFilt:
  """BLIP's captioning and filtering (arXiv 2201.12086, section 3.3).

  Of the texts by humans all are kept; of the others, those whose scores all reach `min_matching` and
  `min_contrastive`. With `share` or `top`, instead, those with the highest score `rank_by` among all texts of the job.
  """

  # Model that writes a text for each image. Empty: none is written.
  captioner: str = ""
  # Model that scores texts, another one (Table 4). Empty: all texts are kept.
  filter: str = ""
  # The images and their texts; kind, path, split, image_key, text_key, texts, subset and origin are read.
  source: Source = field(default_factory=Source)
  # How texts are written.
  decoding: Decoding = NUCLEUS
  # What synthetic texts begin with. Empty: the captioner's own `config.data.prompt`, then left out.
  prompt: str = ""
  # Of an image's `decoding.n` texts, those that are filtered: the best by `rank_by`, or by `decoding.rerank`.
  best: int = 1
  # Least P(match) of the filter; the authors' value. -1: it does not count.
  min_matching: float = 0.5
  # Least cosine of the filter's embeddings. -2: it does not count.
  min_contrastive: float = -2.0
  # The score by which texts are compared.
  rank_by: Literal["matching", "contrastive"] = "matching"
  # Share of the texts that are kept. 0: the thresholds decide.
  share: float = 0.0
  # Number of the texts that are kept. 0: the thresholds decide.
  top: int = 0
  # Images at once, on all devices of a process together. Another size rounds other bits.
  batch: int = 64
  # Records of a shard at most: larger input files are cut.
  shard: int = 10_000
  # Threads that read and decode images. 0: as many as cores.
  threads: int = 0
  # Share of images with a problem that ends the job, from 200 images on.
  max_failed: float = 0.05
  # Where the job runs: on this machine, or on a cluster of Ray.
  engine: Literal["local", "ray"] = "local"
  # Of 'ray': address of a cluster that runs. Empty: one is started on this machine.
  address: str = ""
  # Of 'ray': processes with models loaded. 0: as many as there is room for, without GPUs one a node.
  workers: int = 0
  # Of 'ray': what a worker takes, as {"GPU": 8.0}. Empty: a GPU, or a CPU where no node has a GPU.
  resources: dict[str, float] = field(default_factory=dict)
  # Of 'ray': attempts at a shard before it is set aside.
  attempts: int = 3


def default() -> ConfigDict:
  """Every setting at its default: what a file in configs/ starts from."""
  config = to_dict(CapFilt())
  config.lock()
  config.resources.unlock()
  return config


def parse(config: ConfigDict | dict) -> CapFilt:
  """Checks `config` and freezes it.

  Raises:
    ValueError: names the setting, what it holds and what it may hold.
  """
  settings = from_plain(CapFilt, dict(config), "config")

  def check(ok, message):
    if not ok:
      raise ValueError(message)

  check(
    settings.captioner or settings.filter,
    "config.captioner and config.filter are empty: name at least one model, such as runs/captioner and runs/filter",
  )
  check_source(settings.source, "config.source")
  check(
    not settings.source.sidecars,
    "config.source.sidecars: the texts of a job before are not filtered again; leave it empty",
  )
  for name in ("videos", "regions", "text_only"):
    check(not getattr(settings.source, name), f"config.source.{name}: texts are written for images; leave it out")
  check(not settings.source.question_key, "config.source.question_key: answers are no captions; leave it empty")
  for name, least in (
    ("best", 1),
    ("top", 0),
    ("batch", 1),
    ("shard", 1),
    ("threads", 0),
    ("workers", 0),
    ("attempts", 1),
  ):
    check(getattr(settings, name) >= least, f"config.{name} is {getattr(settings, name)}; it takes {least} or more")
  check(
    settings.best <= settings.decoding.n,
    f"config.best {settings.best} is more than config.decoding.n {settings.decoding.n} texts that are written",
  )
  check(
    settings.filter or settings.best == settings.decoding.n or settings.decoding.rerank,
    "config.best below config.decoding.n needs config.filter, or config.decoding.rerank",
  )
  for name in ("share", "max_failed"):
    check(0 <= getattr(settings, name) <= 1, f"config.{name} is {getattr(settings, name)}; it is a share, 0 to 1")
  check(
    settings.min_matching == -1 or 0 <= settings.min_matching <= 1,
    f"config.min_matching is {settings.min_matching}; it is a probability, or -1: it does not count",
  )
  check(
    settings.min_contrastive == -2 or -1 <= settings.min_contrastive <= 1,
    f"config.min_contrastive is {settings.min_contrastive}; it is a cosine, or -2: it does not count",
  )
  check(not (settings.share and settings.top), "config.share and config.top are both set; leave one of them at 0")
  check(settings.filter or not (settings.share or settings.top), "config.share and config.top need config.filter")
  return settings


def threshold(settings: CapFilt) -> dict[str, float] | None:
  """The scores that decide, each with the least value kept; None: it takes all scores to tell (`share`, `top`)."""
  if settings.share or settings.top:
    return None
  asked = {"matching": settings.min_matching, "contrastive": settings.min_contrastive}
  off = {"matching": -1.0, "contrastive": -2.0}
  return {name: value for name, value in asked.items() if settings.filter and value > off[name]}


def described(settings: CapFilt) -> dict:
  """The settings that decide what the sidecars hold, as plain JSON."""
  plain = json.loads(json.dumps(to_plain(settings)))
  for name in ("question_key", "answer_weight"):  # of other sources than CapFilt's
    del plain["source"][name]
  return {name: value for name, value in plain.items() if name not in FREE}


def decoding_text(settings: CapFilt) -> str:
  """The settings a text was written with, for its row: what differs from `Decoding`'s defaults."""
  plain = {f.name: getattr(settings.decoding, f.name) for f in dataclasses.fields(Decoding)}
  changed = {k: v for k, v in plain.items() if v != getattr(Decoding(), k)} | {"strategy": settings.decoding.strategy}
  return json.dumps(changed | ({"prompt": settings.prompt} if settings.prompt else {}), sort_keys=True)
