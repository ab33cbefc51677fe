"""Statements about two scenes of the built-in world (coca/data/scenes/pairs.py) as a source: true or false.

source = open_source(Source(kind="builtin", split="scenes_statements_val"))
source[7].texts[0].text, source.label_names[source[7].label], source.pair(7).left
"""

from coca import config
from coca.data.records import Record, Shard, Text
from coca.data.scenes.compose import World
from coca.data.scenes.held_out import SPLITS
from coca.data.scenes.pairs import Pair, Pairs
from coca.data.sources.scenes import bmp, shards_by_number
from coca.files.finding import SETTING

PREFIX = "scenes_statements"


class StatementSource:
  """Statements about pairs of a split's scenes, as a source; made by `open_statements`."""

  label_names = ("False", "True")  # as a folder has NLVR2's

  def __init__(self, settings: config.Source, world: World):
    self.name = f"builtin:{settings.split}"
    self.problems: list[str] = []
    self._settings, self._pairs = settings, Pairs(world)

  def __len__(self) -> int:
    return self._settings.scenes.count

  @property
  def shards(self) -> list[Shard]:
    """Statements by the ten thousand."""
    return shards_by_number(len(self))

  def __getitem__(self, i: int) -> Record:
    made, s = self.pair(i), self._settings
    left, right = (bmp(scene, s.scenes.pixels) for scene in (made.left, made.right))
    texts = (Text(made.sentence, s.origin or "human"),) if s.text_key else ()
    return Record(f"{s.split}/{i:06d}", left, texts, int(made.label), second=right)

  def pair(self, i: int) -> Pair:
    """Statement `i`, with its two scenes and whether it is true."""
    if not 0 <= i < len(self):
      raise IndexError(f"{self.name} has {len(self)} statements, no number {i}")
    return self._pairs[i]


def open_statements(settings: config.Source, where: str = SETTING) -> StatementSource:
  """Opens statements about a split of the built-in world: 'scenes_statements', 'scenes_statements_val', and so on as
  `coca.data.scenes.held_out.SPLITS` has them. `scenes.count` is how many there are.

  Raises:
    ValueError: there is no such split, or its scenes leave nothing to compare; a setting is for captions or questions.
  """
  s, split = settings.scenes, settings.split.replace(PREFIX, "scenes", 1)
  if split not in SPLITS:
    known = ", ".join(name.replace("scenes", PREFIX, 1) for name in SPLITS)
    raise ValueError(f"{where}: there is no split {settings.split!r} of statements; there are {known}")
  for name in ("path", "question_key", "regions"):
    if value := getattr(settings, name):
      raise ValueError(f"{where}.{name} is {value!r}: the statements of {settings.split!r} take none")
  default = config.Scenes()
  for name in ("noise", "texts"):
    if getattr(s, name) != getattr(default, name):
      raise ValueError(
        f"{where}.scenes.{name} is for captions; the labels of {settings.split!r} are right, and one each"
      )
  try:
    return StatementSource(settings, World(split, s.seed, s.objects, s.vocabulary, s.styles))
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from None
