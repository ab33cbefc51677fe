"""The captioner and the filter on the devices of this process.

Shapes: B images of a batch, n texts written for each, K texts scored for each, T text length.
"""

import jax
import jax.numpy as jnp
import numpy as np

from coca import inference
from coca.capfilt.settings import CapFilt, threshold
from coca.config import Config
from coca.config.special import Special
from coca.decoding.decode import own_prompt, prompts
from coca.decoding.settings import check_decoding_model
from coca.devices.host import round_up, to_host
from coca.inference import identity
from coca.storage.hub import local_folder
from coca.storage.workdir import read_config

MOST_TEXTS = 32  # of each image, that are scored at once


class Models:
  """Loads both models.

  Args:
    settings: captioner, filter, decoding, prompt and batch are read.
    devices: see `coca.inference.load`.

  Raises:
    FileNotFoundError, ValueError, coca.storage.checkpoint.CheckpointError: as `coca.inference.load`.
    ValueError: a model has not the head that the settings need; says which to train.
  """

  def __init__(self, settings: CapFilt, devices=None):
    self.settings = settings
    _check(settings, *(name and read_config(local_folder(name)) for name in (settings.captioner, settings.filter)))
    self.captioner = inference.load(settings.captioner, devices=devices) if settings.captioner else None
    if settings.filter and settings.filter == settings.captioner:
      self.filter = self.captioner
    else:
      self.filter = inference.load(settings.filter, devices=devices) if settings.filter else None
    self.identities = {"captioner": identity(self.captioner), "filter": identity(self.filter)}
    self.batch = round_up(settings.batch, (self.captioner or self.filter).forward.mesh)
    if self.captioner:
      length = settings.decoding.max_length or self.captioner.config.model.text.length
      tokenizer = self.captioner.tokenizer
      self._special = Special(tokenizer.bos, tokenizer.eos)
      if settings.prompt:
        given = prompts(tokenizer, [settings.prompt] * self.batch, length)
        self._prompt, self._begins = dict(zip(("prompt", "lengths"), given, strict=True)), 1
      else:
        self._prompt, self._begins = own_prompt(self.captioner.config, tokenizer, self.batch, length)

  def prepare(self, image: bytes) -> dict[str, np.ndarray]:
    """An encoded image as each model takes it: uint8 [S, S, 3]. Raises BadRecord."""
    return {name: model.decode(image) for name, model in self._each()}

  def blank(self) -> dict[str, np.ndarray]:
    """In the place of an image that can't be read."""
    sides = {name: model.config.model.image.size for name, model in self._each()}
    return {name: np.zeros((side, side, 3), np.uint8) for name, side in sides.items()}

  def encode(self, images: list[dict]) -> dict:
    """B prepared images, filled up to a batch -> what each model knows of them, on the devices, by the model's name."""
    images = images + [self.blank()] * (self.batch - len(images))
    stacked = {name: np.stack([image[name] for image in images]) for name in images[0]}
    return {name: model.forward.encode(model.params, model.forward.put(stacked[name])) for name, model in self._each()}

  def write(self, encoded: dict, ids: np.ndarray):
    """Starts to write texts: a device array of tokens [B, n, T], for `read`. `ids` uint32 [B] decide what is drawn."""
    model = self.captioner
    inputs = model.forward.put({"ids": np.resize(ids, self.batch), **self._prompt})
    return model.forward.caption(
      model.writer, encoded["captioner"], self.settings.decoding, special=self._special, **inputs
    ).text

  def read(self, text) -> list[list[str]]:
    """Tokens [B, n, T] as texts."""
    return [[self.captioner.tokenizer.decode(row[self._begins :]) for row in rows] for rows in to_host(text)]

  def score(self, encoded: dict, texts: list[list[str]]):
    """Starts to score each image's texts: device arrays [B, K], K rounded up, which makes few programs."""
    model = self.filter
    most = max(map(len, texts))
    unit = most if most <= 2 else 4 if most <= MOST_TEXTS else MOST_TEXTS
    length, slots = model.config.model.text.length, -(-most // unit) * unit
    ids = np.zeros((self.batch, slots, length), np.int32)
    for row, of_image in zip(ids, texts, strict=False):
      for k, text in enumerate(of_image):
        row[k] = model.tokenizer.encode(text, length)
    scores = [
      model.forward.score(model.params, encoded[self._filter_name], model.forward.put(ids[:, k : k + MOST_TEXTS]))
      for k in range(0, slots, MOST_TEXTS)
    ]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *scores) if len(scores) > 1 else scores[0]

  @property
  def _filter_name(self) -> str:
    return "captioner" if self.filter is self.captioner else "filter"

  def _each(self):
    if self.captioner:
      yield "captioner", self.captioner
    if self.filter and self.filter is not self.captioner:
      yield "filter", self.filter


def _check(settings: CapFilt, captioner: Config | str, config: Config | str) -> None:
  """Checks the captioner's and the filter's settings, before the models are loaded; empty: there is none."""
  if any(c and c.model.reads_regions for c in (captioner, config)):
    raise ValueError("CapFilt reads images, and a model of kind 'lemon' a detector's regions: name another model")
  if captioner:
    check_decoding_model(settings.decoding, captioner)
  if not config:
    return
  if not (config.matching.weight or config.contrastive.heads):
    raise ValueError(f"config.filter {settings.filter} has neither a matching nor a contrastive head: it can't score")
  needed = set(threshold(settings) or ())
  if settings.share or settings.top or (settings.best < settings.decoding.n and not settings.decoding.rerank):
    needed.add(settings.rank_by)
  if "matching" in needed and not config.matching.weight:
    file = "blip_retrieval" if config.model.kind == "blip" else "capfilt_filter"
    raise ValueError(
      f"config.filter {settings.filter} has no matching head. Train one: python -m coca.train "
      f"--config=configs/{file}.py:init_from={settings.filter} --workdir=runs/filter; or filter by the cosine "
      "alone: --config.min_matching=-1. --config.min_contrastive=0.3 --config.rank_by=contrastive"
    )
  if "contrastive" in needed and not config.contrastive.heads:
    raise ValueError(
      f"config.filter {settings.filter} was trained without a contrastive loss: it has no cosine; use "
      "its matching score alone: --config.min_contrastive=-2. --config.rank_by=matching"
    )
