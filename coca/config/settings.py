"""Settings of a run: typed, checked, and the bridge to ml_collections' command line.

A file in `configs/` is plain Python: `get_config(arg)` calls `default()`, changes what differs from the papers'
defaults and returns the ConfigDict, so that `--config.model.image.width=512` works for every name in `Config`.
`parse(config)` turns it into the frozen `Config` that all other code takes: a wrong name, type or combination is an
error here, before anything is read or compiled.

The comment above a setting says what it is and where its default comes from; docs/settings.md is made of these comments
(coca/config/help.py).

Durations are text, wherever they appear: "10000" or "10000 steps", "1e6 examples", "2%" (of the run).
"""

from dataclasses import dataclass, field
from typing import Literal

from coca.config.data import Data, Eval
from coca.config.durations import Duration, in_steps
from coca.config.losses import (
  Answering,
  Captioning,
  Classification,
  Contrastive,
  Dialog,
  Masked,
  Matching,
  SelfCritical,
)
from coca.config.model import Model
from coca.config.optim import Optim
from coca.config.stages import Stage


@dataclass(frozen=True, kw_only=True)
class Mesh:
  """Devices: data x fsdp x tensor; -1 takes what is left."""

  # Parts of the batch, each with a copy of the parameters.
  data: int = -1
  # Parts of the batch that share a copy of the parameters, a part of it each.
  fsdp: int = 1
  # Parts of the heads, of the feed-forwards' width and of the vocabulary.
  tensor: int = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
  """Saved steps, to go on from."""

  # Time between two checkpoints.
  every: Duration = "1%"
  # The number of latest checkpoints that are kept.
  keep: int = 2
  # Time between two checkpoints that are kept for good: the first ones at or behind its multiples. Empty: none is.
  keep_every: Duration = ""


@dataclass(frozen=True, kw_only=True)
class Config:
  """A run."""

  # Name of the run.
  name: str = "coca"
  # Seed of everything random.
  seed: int = 0
  # Length of the run (CoCa section 4.1).
  steps: Duration = "500000"
  # Time between two lines of metrics.
  log_every: Duration = "100"
  # Experiment trackers that get the numbers too, 'wandb' and 'mlflow'; where, their own environment variables say.
  trackers: tuple[Literal["wandb", "mlflow"], ...] = ()
  # A workdir or model directory whose parameters start this run (coca/training/init_from.py).
  init_from: str = ""
  # The parts of the model that `init_from` gives, such as 'image_encoder'; all else begins anew. Empty: all it has.
  init_parts: tuple[str, ...] = ()
  model: Model = field(default_factory=Model)
  contrastive: Contrastive = field(default_factory=Contrastive)
  captioning: Captioning = field(default_factory=Captioning)
  matching: Matching = field(default_factory=Matching)
  answering: Answering = field(default_factory=Answering)
  masked: Masked = field(default_factory=Masked)
  classification: Classification = field(default_factory=Classification)
  self_critical: SelfCritical = field(default_factory=SelfCritical)
  dialog: Dialog = field(default_factory=Dialog)
  optim: Optim = field(default_factory=Optim)
  data: Data = field(default_factory=Data)
  # Stages with images of other sizes, before the last one, by names of your own.
  stages: dict[str, Stage] = field(default_factory=dict)
  # Evaluators by names of your own.
  evals: dict[str, Eval] = field(default_factory=dict)
  mesh: Mesh = field(default_factory=Mesh)
  checkpoint: Checkpoint = field(default_factory=Checkpoint)

  @property
  def has_text_head(self) -> bool:
    """True where the class head reads a text beside the image (CoCa section 4.2.3)."""
    return self.classification.weight > 0 and self.classification.pool == "text"

  @property
  def answers_by_classes(self) -> bool:
    """True where that learns answers to questions."""
    return self.has_text_head and any(source.question_key for source in self.data.sources.values())

  @property
  def learns_to_write(self) -> bool:
    """True where a loss teaches the decoder captions."""
    return max(self.captioning.weight, self.self_critical.weight) > 0

  @property
  def total_steps(self) -> int:
    """Steps of the run."""
    return in_steps(self.steps, self.data.batch)


def frozen_parts(config: Config) -> set[str]:
  """Parts whose learning rate is 0: they get no gradient and no optimizer state."""
  return {part for part, scale in config.optim.lr_scale.items() if scale == 0}
