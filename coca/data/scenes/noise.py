"""Texts that are wrong about their scenes, as the web's are, with what is wrong known."""

from dataclasses import replace

from coca.config import SceneNoise
from coca.data.scenes.compose import World
from coca.data.scenes.draws import Draws
from coca.data.scenes.grammar import Group, Sentence, captions, say
from coca.data.scenes.scene import OPPOSITE, Scene

KINDS = ("other", "wrong", "title", "file_name")  # the names of the shares in `SceneNoise`
_TITLES = (
  "untitled drawing",
  "photo of the day",
  "free download in high resolution",
  "image for your blog",
  "best wallpaper {}",
  "stock illustration {}",
  "gallery page {}",
  "click to enlarge",
)
_FILES = ("IMG_{}.jpg", "DSC{}.JPG", "scene-{}-final.png", "image{}.png", "{}_large.jpg", "screenshot {}.png")


def kind_of(noise: SceneNoise, draws: Draws) -> str:
  """One of `KINDS`, as often as its share says, or ''."""
  at = draws.random()
  for kind in KINDS:
    at -= getattr(noise, kind)
    if at < 0:
      return kind
  return ""


def noisy_text(kind: str, scene: Scene, world: World, draws: Draws) -> str:
  """A text of one of `KINDS` in place of a true one."""
  if kind == "title":
    return draws.choice(_TITLES).format(draws.below(10_000))
  if kind == "file_name":
    return draws.choice(_FILES).format(f"{draws.below(10_000):04d}")
  own = captions(scene, draws, 1)[0]
  if kind == "wrong":
    return one_wrong(own, world, draws)
  while True:  # another scene of the same objects and place is none
    text = captions(world[draws.below(1 << 40)], draws, 1)[0]
    if text.statement.first.name not in scene.groups() or text.statement.place != scene.place:
      return text.text


def one_wrong(sentence: Sentence, world: World, draws: Draws) -> str:
  """A true sentence with one part changed: an object, a number or a side. The hard kind: all else is right."""
  statement = sentence.statement
  told = {group.name for group in statement.groups}
  others = [name for name in world.names if name not in told]
  part = draws.choice(["number", *["object"] * bool(others), *["side"] * bool(statement.relation)])
  if part == "side":
    wrong = replace(statement, relation=OPPOSITE[statement.relation])
  elif statement.second and draws.below(2):
    wrong = replace(statement, second=_changed(statement.second, part, others, draws))
  else:
    wrong = replace(statement, first=_changed(statement.first, part, others, draws))
  return say(wrong, sentence.form, sentence.phrase)


def _changed(group: Group, part: str, others: list[str], draws: Draws) -> Group:
  if part == "number":
    return replace(group, count=draws.choice([n for n in range(1, 5) if n != group.count]))
  return replace(group, name=draws.choice(others))
