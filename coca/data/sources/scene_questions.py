"""Questions about the built-in world (coca/data/scenes/questions.py) as a source.

source = open_source(Source(kind="builtin", split="scenes_questions_val", question_key="question"))
source[7].question, source[7].texts, source.asked(7).scene
"""

from coca import config
from coca.data.records import Record, Shard, Text
from coca.data.scenes.compose import World
from coca.data.scenes.held_out import SPLITS
from coca.data.scenes.questions import Question, Questions
from coca.data.sources.scenes import bmp, regions, shards_by_number
from coca.files.finding import SETTING

PREFIX = "scenes_questions"
ANNOTATORS = 10  # of VQA v2; here they agree


class QuestionSource:
  """Questions about the scenes of a split, as a source; made by `open_questions`."""

  label_names = ()

  def __init__(self, settings: config.Source, world: World):
    self.name = f"builtin:{settings.split}"
    self.problems: list[str] = []
    self._settings, self._questions = settings, Questions(world)

  def __len__(self) -> int:
    return self._settings.scenes.count

  @property
  def shards(self) -> list[Shard]:
    """Questions by the ten thousand."""
    return shards_by_number(len(self))

  def __getitem__(self, i: int) -> Record:
    asked, s = self.asked(i), self._settings
    answers = (Text(asked.answer, s.origin or "human"),) * ANNOTATORS
    found = regions(asked.scene, s.scenes.pixels) if s.regions else None
    image = bmp(asked.scene, s.scenes.pixels)
    return Record(f"{s.split}/{i:06d}", image, answers, question=asked.question, regions=found)

  def asked(self, i: int) -> Question:
    """Question `i`, with its scene and its kind."""
    if not 0 <= i < len(self):
      raise IndexError(f"{self.name} has {len(self)} questions, no number {i}")
    return self._questions[i]


def open_questions(settings: config.Source, where: str = SETTING) -> QuestionSource:
  """Opens questions about a split of the built-in world: 'scenes_questions', 'scenes_questions_val', and so on as
  `coca.data.scenes.held_out.SPLITS` has them. `scenes.count` is how many there are.

  Raises:
    ValueError: there is no such split, or its scenes leave nothing to ask; a setting is for captions.
  """
  s, split = settings.scenes, settings.split.replace(PREFIX, "scenes", 1)
  if split not in SPLITS:
    known = ", ".join(name.replace("scenes", PREFIX, 1) for name in SPLITS)
    raise ValueError(f"{where}: there is no split {settings.split!r} of questions; there are {known}")
  if settings.question_key != "question" or settings.path:
    raise ValueError(
      f"{where}: the split {settings.split!r} takes question_key 'question', not {settings.question_key!r}, and no path"
    )
  default = config.Scenes()
  for name in ("noise", "texts"):
    if getattr(s, name) != getattr(default, name):
      raise ValueError(
        f"{where}.scenes.{name} is for captions; the answers of {settings.split!r} are right, and one each"
      )
  try:
    return QuestionSource(settings, World(split, s.seed, s.objects, s.vocabulary, s.styles))
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from None
