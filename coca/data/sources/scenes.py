"""The built-in world (coca/data/scenes) as a source: scenes that are drawn when they are asked for.

source = open_source(Source(kind="builtin", split="scenes_val"))
source[7].texts, source.scene(7), judge("a dog on the beach", source.scene(7))
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from coca import config
from coca.data.records import Detected, Record, Shard, Text
from coca.data.scenes.compose import World
from coca.data.scenes.draws import Draws
from coca.data.scenes.grammar import captions
from coca.data.scenes.noise import KINDS, kind_of, noisy_text
from coca.data.scenes.render import render
from coca.data.scenes.scene import Scene
from coca.files.finding import SETTING

_SHARD = 10_000  # scenes
CROP = 8  # pixels a side of a thing's feature


@dataclass(frozen=True, slots=True)
class Truth:
  """All that is known of a record: its scene, true captions of it, and which noise is in its place ('': none)."""

  scene: Scene
  captions: tuple[str, ...]
  noise: str = ""


class SceneSource:
  """A split of the world, as a source; made by `open_scenes`. A scene of a single thing has its object as label."""

  def __init__(self, settings: config.Source):
    s = settings.scenes
    self.name = f"builtin:{settings.split}"
    self.problems: list[str] = []
    self._settings, self._with_texts, self._regions = s, bool(settings.text_key), settings.regions
    self._noisy = any(getattr(s.noise, kind) for kind in KINDS)
    self._origin = settings.origin or ("web" if self._noisy else "human")
    self._world = World(settings.split, s.seed, s.objects, s.vocabulary, s.styles)
    self.label_names = self._world.names
    self._labels = {name: i for i, name in enumerate(self.label_names)}

  def __len__(self) -> int:
    return self._settings.count

  @property
  def shards(self) -> list[Shard]:
    """Scenes by the ten thousand."""
    return shards_by_number(len(self))

  def __getitem__(self, i: int) -> Record:
    scene = self.scene(i)
    detected = regions(scene, self._settings.pixels) if self._regions else None
    return self._record(i, scene, bmp(scene, self._settings.pixels), detected)

  def without_image(self, i: int) -> Record:
    """Record `i` for those who want its texts alone: drawing takes most of the time."""
    return self._record(i, self.scene(i))

  def _record(self, i: int, scene: Scene, image: bytes = b"", detected: Detected | None = None) -> Record:
    draws = self._draws(i)
    texts = self._texts(scene, draws) if self._with_texts else ()
    label = self._labels[scene.things[0].name] if len(scene.things) == 1 else -1
    return Record(f"{self._world.split}/{i:06d}", image, texts, label, regions=detected)

  def scene(self, i: int) -> Scene:
    """The scene of record `i`."""
    if not 0 <= i < len(self):
      raise IndexError(f"{self.name} has {len(self)} scenes, no number {i}")
    return self._world[i]

  def truth(self, i: int) -> Truth:
    """All that is known of record `i`, whatever noise is in its texts."""
    scene, draws = self.scene(i), self._draws(i)
    kind = kind_of(self._settings.noise, draws)
    return Truth(scene, tuple(s.text for s in captions(scene, draws, self._settings.texts)), kind)

  def _draws(self, i: int) -> Draws:
    return Draws("texts", self._world.split, self._settings.seed, i)

  def _texts(self, scene: Scene, draws: Draws) -> tuple[Text, ...]:
    kind = kind_of(self._settings.noise, draws)
    if kind:
      return (Text(noisy_text(kind, scene, self._world, draws), self._origin),)
    return tuple(Text(s.text, self._origin) for s in captions(scene, draws, self._settings.texts))


def shards_by_number(count: int) -> list[Shard]:
  """As many records in shards of ten thousand."""
  return [Shard(f"scenes-{n:05d}", at, min(at + _SHARD, count)) for n, at in enumerate(range(0, count, _SHARD))]


def bmp(scene: Scene, pixels: int) -> bytes:
  """The drawn scene as a file."""
  # Of what Pillow reads, it is by far the fastest to write and to read without a loss, and without a library whose next
  # version compresses to other bytes. 64 pixels: 20 us to write and 35 to read, PNG 140 and 125.
  written, encoded = cv2.imencode(".bmp", cv2.cvtColor(render(scene, pixels), cv2.COLOR_RGB2BGR))
  assert written
  return encoded.tobytes()


def regions(scene: Scene, pixels: int) -> Detected:
  """The things of a scene as a perfect detector would find them, those drawn last first.

  A feature is what the image shows in the thing's square, in 8 x 8 pixels from -1 to 1: width 192.
  """
  image, boxes, features = render(scene, pixels), [], []
  for thing in reversed(scene.things):
    sides = np.array([thing.x, thing.y, thing.x, thing.y]) + np.array([-1, -1, 1, 1]) * thing.size / 2
    boxes.append(np.clip(sides, 0, 1))
    left, top, right, bottom = (math.floor(at * pixels + 0.5) for at in boxes[-1])
    crop = cv2.resize(image[top:bottom, left:right], (CROP, CROP), interpolation=cv2.INTER_AREA)
    features.append(crop.reshape(-1) / np.float32(127.5) - 1)
  tags = tuple(thing.name for thing in reversed(scene.things))
  return Detected(np.array(boxes, np.float32), np.array(features, np.float32), tags)


def open_scenes(settings: config.Source, where: str = SETTING) -> SceneSource:
  """Opens a split of the built-in world; those of `coca.data.scenes.held_out.SPLITS`.

  Their texts are of the origin 'human', or 'web' where there is noise among them, but for `Source.origin`.

  Raises:
    ValueError: there is no such split, or the settings leave no scene in it.
  """
  if settings.path or settings.question_key:
    name = "path" if settings.path else "question_key"
    raise ValueError(
      f"{where}.{name} is {getattr(settings, name)!r}: scenes of kind 'builtin' take none; the splits with questions "
      "are 'scenes_questions...'"
    )
  try:
    return SceneSource(settings)
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from None
