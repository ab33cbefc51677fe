"""The part of a record that a model sees: its image, both of a pair, or frames of a video, as batches have them.

Shapes: S side in pixels, F frames.
"""

from collections.abc import Callable

import numpy as np

from coca.config import Config
from coca.config.regions import Regions
from coca.data import images, regions, videos
from coca.data.augment import rand_augment
from coca.data.records import BadRecord, Record


def train_input(record: Record, config: Config, rng: np.random.Generator, is_video: bool = False) -> np.ndarray:
  """An image of a record as training sees it, augmented as `config.data` says; of a video all frames alike.

  Args:
    record: not decoded yet.
    config: of the run. `config.classification.images` says how many images or frames an example has.
    rng: source of the augmentation.
    is_video: whether the record is a video.

  Returns:
    uint8 [S, S, 3]; of two images [2, S, S, 3], and of more than one frame [F, S, S, 3].

  Raises:
    BadRecord: it can't be read, or the second image is missing.
  """
  data, size, background = config.data, config.model.image.size, images.colour(config.data.background)

  def augmented(image: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    return rand_augment(image, draws, *data.rand_augment, data.rand_augment_kind)

  def read(encoded: bytes, draws: np.random.Generator) -> np.ndarray:
    image = images.decode_train(encoded, size, draws, data.crop, data.flip, background, data.max_pixels, data.resize)
    return augmented(image, draws)

  def cut(pixels: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    return augmented(images.crop_train(pixels, size, draws, data.crop, data.flip, data.resize), draws)

  if not is_video:
    return _stacked([read(encoded, rng) for encoded in _encoded(record, config)])
  seed = int(rng.integers(2**63))  # the same draws for each frame
  return _stacked(
    _frames(
      record,
      config,
      config.classification.images,
      lambda encoded: read(encoded, np.random.default_rng(seed)),
      lambda pixels: cut(pixels, np.random.default_rng(seed)),
    )
  )


def eval_input(record: Record, config: Config, frames: int = 0) -> np.ndarray:
  """The same as evaluation sees it.

  Args:
    record: not decoded yet.
    config: of the run.
    frames: of a video, where the record is one; 0: it is an image, or two.

  Returns:
    uint8 [S, S, 3]; of two images [2, S, S, 3], and of a video [frames, S, S, 3].

  Raises:
    BadRecord: it can't be read, or the second image is missing.
  """
  data, size, background = config.data, config.model.image.size, images.colour(config.data.background)

  def read(encoded: bytes) -> np.ndarray:
    return images.decode_eval(encoded, size, background, data.max_pixels, data.squash, data.resize, data.filter)

  def resized(pixels: np.ndarray) -> np.ndarray:
    return images.resize_eval(pixels, size, data.squash, data.resize, data.filter)

  if not frames:
    return _stacked([read(encoded) for encoded in _encoded(record, config)])
  return np.stack(_frames(record, config, frames, read, resized))


def blank(config: Config, frames: int = 0) -> np.ndarray | Regions:
  """Stands in for what can't be read. `frames`: of a video, as in `eval_input`."""
  if config.model.reads_regions:
    return regions.blank(config.model)
  image = np.full((config.model.image.size,) * 2 + (3,), images.colour(config.data.background), np.uint8)
  return np.stack([image] * (frames or 2)) if frames or config.classification.pairs else image


def _frames(record: Record, config: Config, count: int, read: Callable, resized: Callable) -> list[np.ndarray]:
  """The chosen frames of a video: those that are images by `read`, those of a file by `resized`."""
  if not record.frames:
    return videos.decode(record.image, count, resized, config.data.max_pixels)
  return [read(record.frames[n]) for n in videos.chosen(range(len(record.frames)), 1, count)]


def _encoded(record: Record, config: Config) -> list[bytes]:
  """The images of a record that an example has."""
  if not config.classification.pairs:
    return [record.image]
  if not record.second:
    raise BadRecord("no second image, which config.classification.images 2 asks for")
  return [record.image, record.second]


def _stacked(seen: list[np.ndarray]) -> np.ndarray:
  """One image as it is, several as [n, S, S, 3]."""
  return seen[0] if len(seen) == 1 else np.stack(seen)
