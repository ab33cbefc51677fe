"""Images as people name them: files, folders and URLs, PIL images and arrays.

What has "://" in it is an fsspec URL (gs://bucket/a.png, https://...) and stays as it is given; all else is local.
"""

import os
from pathlib import Path

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from coca.config import Config
from coca.config.regions import Regions
from coca.config.special import Tokenizer
from coca.data import regions, videos
from coca.data.images import colour, decode_eval, resize_eval, to_rgb
from coca.data.records import BadRecord, Detected
from coca.data.videos import check_installed
from coca.files import finding, reading

ENDINGS = tuple(f".{extension}" for extension in finding.IMAGE_EXTENSIONS)  # what a folder is searched for
VIDEO_ENDINGS = tuple(f".{extension}" for extension in finding.VIDEO_EXTENSIONS)
WEB = ("http://", "https://")  # of which single files are read, and nothing is listed or written


def is_url(name) -> bool:
  """True if a name is a URL and no local path."""
  return "://" in os.fspath(name)


def as_list(images) -> list:
  """The argument of a function that takes images, as a list of single ones.

  Args:
    images: a path, a URL, a PIL image or an array [H, W, 3]; a list or iterable of those; an array [N, H, W, 3]; or a
      folder (`images_in`).

  Raises:
    TypeError: something else.
    ValueError: a folder without images, or as `locate`.
    ImportError: as `locate`.
  """
  if isinstance(images, (str, os.PathLike)):
    return images_in(images) if is_folder(images) else [images]
  if isinstance(images, (Image.Image, Detected)) or (isinstance(images, np.ndarray) and images.ndim != 4):
    return [images]
  images = list(images)
  for image in images:
    if not isinstance(image, (str, os.PathLike, Image.Image, np.ndarray, Detected)):
      raise TypeError(
        f"an image is a path, a URL, a PIL image or a uint8 array [height, width, 3], not {type(image).__name__}"
      )
  return images


def as_videos(videos, frames: int) -> list:
  """The argument of a function that takes videos, as a list of single ones.

  Args:
    videos: a path, a URL or an array uint8 [F, H, W, 3]; a list or iterable of those; or a folder (`images_in`).
    frames: that are to be looked at.

  Raises:
    TypeError: something else.
    ValueError: `frames` is not above 0, a folder without videos, or as `locate`.
    ImportError: PyAV is not installed, or as `locate`.
  """
  if frames < 1:
    raise ValueError(f"frames is {frames}; of a video one frame or more is looked at")
  if isinstance(videos, (str, os.PathLike)):
    videos = images_in(videos, VIDEO_ENDINGS) if is_folder(videos) else [videos]
  videos = [videos] if isinstance(videos, np.ndarray) and videos.ndim == 4 else list(videos)
  for video in videos:
    if not isinstance(video, (str, os.PathLike, np.ndarray)):
      raise TypeError(
        f"a video is a path, a URL or a uint8 array [frames, height, width, 3], not {type(video).__name__}"
      )
    if not isinstance(video, np.ndarray):
      check_installed(f"{os.fspath(video)}")
  return videos


def as_examples(images, config: Config) -> list:
  """Examples of a class head as a list: images as `as_list` has them, or pairs of a head that reads two, as tuples.

  Raises:
    TypeError, ValueError, ImportError: as `as_list`, or an example that has not two images.
  """
  if not config.classification.pairs:
    return as_list(images)
  pairs = [tuple(pair) if isinstance(pair, (list, tuple)) else (pair,) for pair in images]
  for number, pair in enumerate(pairs, 1):
    if len(pair) != 2:
      raise ValueError(f"example {number}: this model's class head reads two images and a text; give pairs of images")
    as_list(pair)
  return pairs


def is_folder(name) -> bool:
  """True if images are to be looked for below a path or URL."""
  if not is_url(name):
    return os.path.isdir(name)
  if os.fspath(name).startswith(WEB):
    return False
  fs, place = locate(name)
  return fs.isdir(place)


def images_in(folder, endings: tuple[str, ...] = ENDINGS) -> list[Path] | list[str]:
  """The images, or files of other endings, in a folder and the folders in it, in the order of their paths.

  Raises:
    ValueError: there are none, or as `locate`.
    ImportError: as `locate`.
  """
  if is_url(folder):
    fs, place = locate(folder)
    found = sorted(fs.unstrip_protocol(p) for p in fs.find(place) if p.lower().endswith(endings))
  else:
    found = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in endings and p.is_file())
  if not found:
    what = "images" if endings == ENDINGS else "videos"
    raise ValueError(f"no {what} in {folder}; looked for files ending in {', '.join(endings)}")
  return found


def read(name) -> bytes:
  """The bytes of a file, local or at a URL.

  Raises:
    OSError: there is none, or it can't be read.
    ImportError, ValueError: as `locate`.
  """
  fs, place = locate(name)
  return reading.read_all(fs, place)


def locate(name) -> tuple[fsspec.AbstractFileSystem, str]:
  """The file system that a name belongs to, and the path there.

  Raises:
    ImportError: the package for such URLs is not installed.
    ValueError: there are no such URLs.
  """
  if not is_url(name):
    return LocalFileSystem(), os.fspath(name)
  try:
    return fsspec.core.url_to_fs(os.fspath(name))
  except ImportError as e:
    raise ImportError(
      f"{name}: {e}. https:// takes pip install aiohttp requests, gs:// pip install -e '.[gs]', s3:// '.[s3]'"
    ) from None
  except ValueError as e:
    raise ValueError(f"{name}: {e}") from None


def prepared(image, config: Config, tokenizer: Tokenizer) -> np.ndarray | Regions:
  """Any image of `as_list` as uint8 [S, S, 3], as the model of `config` sees it in evaluation, or its regions; a pair
  of `as_examples` as [2, S, S, 3].

  Raises:
    ValueError: it can't be read (names the file), an array of another type or shape, an image for a model that reads
      regions or regions for one that reads images, or as `locate`.
    ImportError: as `locate`.
  """
  size, data = config.model.image.size, config.data
  if isinstance(image, tuple):
    return np.stack([prepared(one, config, tokenizer) for one in image])
  if config.model.reads_regions != isinstance(image, Detected):
    raise ValueError(_other_input(config))
  if isinstance(image, Detected):
    try:
      return regions.padded(image, config.model, tokenizer)
    except BadRecord as e:
      raise ValueError(str(e)) from None
  if isinstance(image, np.ndarray):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
      raise ValueError(
        f"an image as an array has to be uint8 [height, width, 3] with values from 0 to 255, not "
        f"{image.dtype} {list(image.shape)}"
      )
    return prepared_pixels(image, config)
  background = colour(data.background)
  if isinstance(image, Image.Image):
    try:
      return resize_eval(to_rgb(image, background), size, data.squash, data.resize, data.filter)
    except (BadRecord, OSError) as e:
      raise ValueError(f"PIL image of mode {image.mode}, {image.width} x {image.height}: {e}") from e
  try:
    return decoded(read(image), config)
  except (BadRecord, OSError) as e:
    raise ValueError(f"can't read the image {image}: {e}") from e


def prepared_pixels(pixels: np.ndarray, config: Config) -> np.ndarray:
  """An image uint8 [H, W, 3] as the model of `config` sees it."""
  data = config.data
  return resize_eval(pixels, config.model.image.size, data.squash, data.resize, data.filter)


def prepared_video(video, config: Config, frames: int) -> np.ndarray:
  """Frames of a video of `as_videos`, as `frames_of` makes them. Errors as those of `prepared`."""
  if isinstance(video, np.ndarray):
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or 0 in video.shape:
      raise ValueError(
        f"a video as an array has to be uint8 [frames, height, width, 3], not {video.dtype} {list(video.shape)}"
      )
    kept = videos.chosen(range(len(video)), 1, frames)
    return np.stack([prepared_pixels(video[n], config) for n in kept])
  try:
    return frames_of(read(video), config, frames)
  except (BadRecord, OSError) as e:
    raise ValueError(f"can't read the video {video}: {e}") from e


def blank(config: Config, pair: bool = False) -> np.ndarray | Regions:
  """Stands in for an image, or a pair, that can't be read."""
  model, size = config.model, config.model.image.size
  return regions.blank(model) if model.reads_regions else np.zeros((2,) * pair + (size, size, 3), np.uint8)


def decoded(image: bytes, config: Config) -> np.ndarray:
  """An encoded image (JPEG, PNG, ...) as uint8 [S, S, 3], as the model of `config` sees it. Raises BadRecord."""
  data = config.data
  if config.model.reads_regions:
    raise ValueError(_other_input(config))
  size, background = config.model.image.size, colour(data.background)
  return decode_eval(image, size, background, data.max_pixels, data.squash, data.resize, data.filter)


def frames_of(video: bytes, config: Config, frames: int) -> np.ndarray:
  """Frames of an encoded video as uint8 [frames, S, S, 3], as the model of `config` sees them. Raises BadRecord."""
  if config.model.reads_regions:
    raise ValueError(_other_input(config))
  data, size = config.data, config.model.image.size
  return videos.decode_eval(video, frames, size, data.max_pixels, data.squash, data.resize, data.filter)


def _other_input(config: Config) -> str:
  if config.model.reads_regions:
    return (
      f"this model reads regions of a detector, not images (config.model.kind is {config.model.kind!r}): give a "
      "coca.data.records.Detected(boxes, features, tags) for each image"
    )
  return "this model reads images, not the regions of a detector"
