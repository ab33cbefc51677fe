"""Hypotheses about the built-in world (coca/data/scenes/entailment.py) as a source: a text an image, with its label.

source = open_source(Source(kind="builtin", split="scenes_hypotheses_val"))
source[7].texts[0].text, source.label_names[source[7].label], source.hypothesis(7).scene
"""

from coca import config
from coca.data.records import Record, Shard, Text
from coca.data.scenes.compose import World
from coca.data.scenes.entailment import LABELS, Entailment, Hypothesis
from coca.data.scenes.held_out import SPLITS
from coca.data.sources.scenes import bmp, shards_by_number
from coca.files.finding import SETTING

PREFIX = "scenes_hypotheses"


class HypothesisSource:
  """Hypotheses about the scenes of a split, as a source; made by `open_hypotheses`."""

  label_names = tuple(sorted(LABELS))  # as a folder has SNLI-VE's, so that the two can be mixed

  def __init__(self, settings: config.Source, world: World):
    self.name = f"builtin:{settings.split}"
    self.problems: list[str] = []
    self._settings, self._hypotheses = settings, Entailment(world)

  def __len__(self) -> int:
    return self._settings.scenes.count

  @property
  def shards(self) -> list[Shard]:
    """Hypotheses by the ten thousand."""
    return shards_by_number(len(self))

  def __getitem__(self, i: int) -> Record:
    made, s = self.hypothesis(i), self._settings
    texts = (Text(made.sentence, s.origin or "human"),) if s.text_key else ()
    return Record(f"{s.split}/{i:06d}", bmp(made.scene, s.scenes.pixels), texts, self.label_names.index(made.label))

  def hypothesis(self, i: int) -> Hypothesis:
    """Hypothesis `i`, with its scene and its label."""
    if not 0 <= i < len(self):
      raise IndexError(f"{self.name} has {len(self)} hypotheses, no number {i}")
    return self._hypotheses[i]


def open_hypotheses(settings: config.Source, where: str = SETTING) -> HypothesisSource:
  """Opens hypotheses about a split of the built-in world: 'scenes_hypotheses', 'scenes_hypotheses_val', and so on as
  `coca.data.scenes.held_out.SPLITS` has them. `scenes.count` is how many there are.

  Raises:
    ValueError: there is no such split, or its scenes leave nothing open; a setting is for captions or questions.
  """
  s, split = settings.scenes, settings.split.replace(PREFIX, "scenes", 1)
  if split not in SPLITS:
    known = ", ".join(name.replace("scenes", PREFIX, 1) for name in SPLITS)
    raise ValueError(f"{where}: there is no split {settings.split!r} of hypotheses; there are {known}")
  for name in ("path", "question_key", "regions"):
    if value := getattr(settings, name):
      raise ValueError(f"{where}.{name} is {value!r}: the hypotheses of {settings.split!r} take none")
  default = config.Scenes()
  for name in ("noise", "texts"):
    if getattr(s, name) != getattr(default, name):
      raise ValueError(
        f"{where}.scenes.{name} is for captions; the labels of {settings.split!r} are right, and one each"
      )
  try:
    return HypothesisSource(settings, World(split, s.seed, s.objects, s.vocabulary, s.styles))
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from None
