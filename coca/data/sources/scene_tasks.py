"""Tasks over the built-in world as sources: questions, hypotheses, statements about two scenes, videos with actions,
rounds of dialogs (coca/data/scenes/).

source = open_source(Source(kind="builtin", split="scenes_questions_val", question_key="question"))
source[7].question, source[7].texts, source.truth(7).scene
source = open_source(Source(kind="builtin", split="scenes_hypotheses_val"))
source[7].texts[0].text, source.label_names[source[7].label], source.truth(7).scene
source = open_source(Source(kind="builtin", split="scenes_statements_val"))
source[7].texts[0].text, source.label_names[source[7].label], source.truth(7).left
source = open_source(Source(kind="builtin", split="scenes_videos_val", videos=True))
source[7].frames, source.label_names[source[7].label], source.truth(7).captions
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from coca import config
from coca.data.records import Record, Said, Shard, Text
from coca.data.scenes.compose import World
from coca.data.scenes.dialogs import ROUNDS, Dialog, Dialogs
from coca.data.scenes.entailment import LABELS, Entailment, Hypothesis
from coca.data.scenes.held_out import SPLITS
from coca.data.scenes.pairs import Pair, Pairs
from coca.data.scenes.questions import Question, Questions
from coca.data.scenes.scene import Scene
from coca.data.scenes.videos import ACTIONS, Video, Videos
from coca.data.sources.scenes import bmp, regions, shards_by_number
from coca.files.finding import SETTING

ANNOTATORS = 10  # of VQA v2; here they agree
OUTCOMES = tuple(sorted(LABELS))  # as a folder has SNLI-VE's, so that the two can be mixed
DOINGS = tuple(sorted(ACTIONS))  # as a folder of their files has them


@dataclass(frozen=True)
class Task:
  """A kind of text about scenes."""

  texts: str  # that it has many of
  made: Callable[[World], Any]  # all of them by their numbers
  record: Callable[[str, Any, config.Source], Record]  # of a key and one of them
  label_names: tuple[str, ...] = ()


def _question(key: str, made: Question, s: config.Source) -> Record:
  answers = (Text(made.answer, s.origin or "human"),) * ANNOTATORS
  found = regions(made.scene, s.scenes.pixels) if s.regions else None
  return Record(key, bmp(made.scene, s.scenes.pixels), answers, question=made.question, regions=found)


def _hypothesis(key: str, made: Hypothesis, s: config.Source) -> Record:
  return Record(key, bmp(made.scene, s.scenes.pixels), _said(made.sentence, s), OUTCOMES.index(made.label))


def _statement(key: str, made: Pair, s: config.Source) -> Record:
  left, right = (bmp(scene, s.scenes.pixels) for scene in (made.left, made.right))
  return Record(key, left, _said(made.sentence, s), int(made.label), second=right)


@dataclass(frozen=True)
class Frames(Sequence):
  """The frames of a video as files, each drawn when it is asked for."""

  scenes: Sequence[Scene]
  pixels: int

  def __len__(self) -> int:
    return len(self.scenes)

  def __getitem__(self, n: int) -> bytes:
    return bmp(self.scenes[n], self.pixels)


def _video(key: str, made: Video, s: config.Source) -> Record:
  frames = Frames(made.scenes, s.scenes.pixels)
  texts = tuple(Text(caption, s.origin or "human") for caption in made.captions) if s.text_key else ()
  return Record(key, b"", texts, DOINGS.index(ACTIONS[made.label]), frames=frames)


class DialogRound(NamedTuple):
  """Round `number`, from 0 on, of a dialog."""

  dialog: Dialog
  number: int


class DialogRounds:
  """All rounds of a world's dialogs, one after the other."""

  def __init__(self, world: World):
    self._dialog = functools.lru_cache(64)(Dialogs(world).__getitem__)  # neighbours ask for the same

  def __getitem__(self, index: int) -> DialogRound:
    number, n = divmod(index, ROUNDS)
    return DialogRound(self._dialog(number), n)


def _dialog(key: str, made: DialogRound, s: config.Source) -> Record:
  (scene, caption, rounds), asked = made.dialog, made.dialog.rounds[made.number]
  before = tuple((r.question, r.answer) for r in rounds[: made.number])
  texts = tuple(Text(option, s.origin or "human") for option in asked.options)
  said = Said(caption, before, asked.relevance)
  return Record(key, bmp(scene, s.scenes.pixels), texts, asked.gt_index, asked.question, said=said)


def _said(sentence: str, s: config.Source) -> tuple[Text, ...]:
  return (Text(sentence, s.origin or "human"),) if s.text_key else ()


# By what the names of their splits begin with.
TASKS = {
  "scenes_questions": Task("questions", Questions, _question),
  "scenes_hypotheses": Task("hypotheses", Entailment, _hypothesis, OUTCOMES),
  "scenes_statements": Task("statements", Pairs, _statement, ("False", "True")),  # as a folder has NLVR2's
  "scenes_videos": Task("videos", Videos, _video, DOINGS),
  "scenes_dialogs": Task("rounds of dialogs", DialogRounds, _dialog),
}


class TaskSource:
  """Texts of a task about the scenes of a split, as a source; made by `open_task`."""

  def __init__(self, settings: config.Source, task: Task, world: World):
    self.name, self.label_names = f"builtin:{settings.split}", task.label_names
    self.problems: list[str] = []
    self._settings, self._task, self._made = settings, task, task.made(world)

  def __len__(self) -> int:
    return self._settings.scenes.count

  @property
  def shards(self) -> list[Shard]:
    """The texts by the ten thousand."""
    return shards_by_number(len(self))

  def __getitem__(self, i: int) -> Record:
    return self._task.record(f"{self._settings.split}/{i:06d}", self.truth(i), self._settings)

  def truth(self, i: int):
    """Text or video `i` with what is known of it: a `Question`, `Hypothesis`, `Pair` or `Video` of coca.data.scenes, or
    a `DialogRound`."""
    if not 0 <= i < len(self):
      raise IndexError(f"{self.name} has {len(self)} {self._task.texts}, no number {i}")
    return self._made[i]


def open_task(settings: config.Source, where: str = SETTING) -> TaskSource:
  """Opens a task over a split of the built-in world: 'scenes_questions', 'scenes_hypotheses_val', and so on, for the
  splits that `coca.data.scenes.held_out.SPLITS` has. `scenes.count` is how many there are.

  Raises:
    ValueError: there is no such split, or its scenes leave nothing to ask; a setting is for something else.
  """
  prefix = next(prefix for prefix in TASKS if settings.split.startswith(prefix))
  s, task, split = settings.scenes, TASKS[prefix], settings.split.replace(prefix, "scenes", 1)
  if split not in SPLITS:
    known = ", ".join(name.replace("scenes", prefix, 1) for name in SPLITS)
    raise ValueError(f"{where}: there is no split {settings.split!r} of {task.texts}; there are {known}")
  asks, shows = task.made is Questions, task.made is Videos
  if asks and settings.question_key != "question":
    raise ValueError(
      f"{where}: the split {settings.split!r} takes question_key 'question', not {settings.question_key!r}"
    )
  if shows and not settings.videos:
    raise ValueError(f"{where}: the split {settings.split!r} is one of videos: say {where}.videos=True")
  for name in ("path", *("videos",) * (not shows), *("question_key", "regions") * (not asks)):
    if value := getattr(settings, name):
      raise ValueError(f"{where}.{name} is {value!r}: the {task.texts} of {settings.split!r} take none")
  default, right = config.Scenes(), "answers" if asks else "labels"
  for name in ("noise", "texts"):
    if getattr(s, name) != getattr(default, name):
      raise ValueError(
        f"{where}.scenes.{name} is for captions; the {right} of {settings.split!r} are right, and one each"
      )
  try:
    return TaskSource(settings, task, World(split, s.seed, s.objects, s.vocabulary, s.styles))
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from None
