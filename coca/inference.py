"""A trained model to use: `coca.load(workdir)` embeds pictures and texts and writes captions.

    model = coca.load("runs/tiny")
    similarity = model.embed_images(["cat.jpg", "dog.png"]) @ model.embed_texts(["a cat", "a dog"]).T
    print(model.caption("cat.jpg"))

A working directory holds all it takes: `config.json` (`{"config": ..., "tokenizer_sha256": ...}`), `tokenizer.model`
and `checkpoints/`.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from etils import epath
from PIL import Image
from tqdm import tqdm

from coca import sharding
from coca.config import Config
from coca.data import images as pictures
from coca.data.records import BadRecord
from coca.data.tokenizer import Tokenizer
from coca.forward import Forward
from coca.host import Lagged, round_up
from coca.workdir import read_params, read_workdir

BATCHES = (1, 8, 64)  # rows of a call before rounding up to the devices: one compiled program each
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")  # what a folder is searched for


class ContrastiveCaptioner:
  """Parameters, tokenizer and compiled functions of one model, on the devices of one process.

  Args:
    config: the run's settings.
    tokenizer: the run's.
    forward: compiled functions (`coca.forward.Forward`).
    params: their parameters.
  """

  def __init__(self, config: Config, tokenizer: Tokenizer, forward, params):
    self.config, self.tokenizer, self.forward, self.params = config, tokenizer, forward, params
    self._batches = sorted({round_up(n, forward.mesh) for n in BATCHES})

  def embed_images(self, images) -> np.ndarray:
    """Contrastive embeddings of pictures.

    Args:
      images: a path, a PIL image or a uint8 array [H, W, 3], or a list or iterable of those; an array [N, H, W, 3]; or
        a folder, whose pictures are taken in the order of `images_in`.

    Returns:
      float32 [N, E], unit length; N is 1 for a single picture.

    Raises:
      ValueError: a picture that cannot be read (names the file), an array of another type or shape, or a model trained
        without a contrastive loss.
    """
    self._need_embeddings()
    return self._run(_as_list(images), self._pixels, "image",
                     lambda batch: self.forward.embed_images(self.params, batch), "pictures", self._embed_dim)

  def embed_texts(self, texts: str | Sequence[str]) -> np.ndarray:
    """Contrastive embeddings of a text or several: float32 [N, E], unit length. Long texts are cut.

    Raises:
      ValueError: a model trained without a contrastive loss.
      TypeError: something else than texts.
    """
    self._need_embeddings()
    texts = [texts] if isinstance(texts, str) else list(texts)
    for text in texts:
      if not isinstance(text, str):
        raise TypeError(f"embed_texts takes texts, not {type(text).__name__}")
    return self._run(texts, lambda text: self.tokenizer.encode(text, self.config.model.text.length), "text",
                     lambda batch: self.forward.embed_texts(self.params, batch), "texts", self._embed_dim)

  def caption(self, images, max_length: int | None = None) -> list[str]:
    """Greedy captions.

    Args:
      images: as for `embed_images`.
      max_length: tokens after which a caption is cut; None: as long as the model was trained for.

    Returns:
      a text for every picture, also for a single one.

    Raises:
      ValueError: as `embed_images`, or a model without a multimodal decoder.
    """
    if not self.config.model.text.multimodal_layers:
      raise ValueError("this model has no multimodal decoder (config.model.text.multimodal_layers is 0): it writes no "
                       "captions")
    if max_length is not None and max_length < 1:
      raise ValueError(f"max_length is {max_length}; a caption needs at least 1 token")
    ids = self._run(_as_list(images), self._pixels, "image",
                    lambda batch: self.forward.caption(self.params, batch, self.tokenizer.bos, self.tokenizer.eos),
                    "captions", self.config.model.text.length)
    # The first id is BOS.
    return [self.tokenizer.decode(row if max_length is None else row[:max_length + 1]) for row in ids]

  def _run(self, items: list, prepare: Callable, name: str, function: Callable, unit: str, width: int) -> np.ndarray:
    """`function` over `items` in padded batches, while threads prepare the next ones."""
    if not items:
      return np.zeros((0, width), np.float32)
    largest = self._batches[-1]
    out = Lagged()
    with (ThreadPoolExecutor() as pool,
          tqdm(total=len(items), unit=f" {unit}", disable=None if len(items) > largest else True) as bar):
      ahead = [pool.submit(prepare, item) for item in items[:2 * largest]]
      for start in range(0, len(items), largest):
        rows = [f.result() for f in ahead[:largest]]
        later = items[start + 2 * largest:start + 3 * largest]
        ahead = ahead[largest:] + [pool.submit(prepare, item) for item in later]
        size = next(b for b in self._batches if b >= len(rows))
        batch = np.stack(rows + rows[:1] * (size - len(rows)))
        out.append(function(self.forward.put({name: batch})[name])[:len(rows)])
        bar.update(len(rows))
    return out.concatenate()

  def _pixels(self, image) -> np.ndarray:
    """Any accepted picture as uint8 [S, S, 3], prepared as in evaluation."""
    size, data = self.config.model.image.size, self.config.data
    if isinstance(image, np.ndarray):
      if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"a picture as an array has to be uint8 [height, width, 3] with values from 0 to 255, not "
                         f"{image.dtype} {list(image.shape)}")
      return pictures.resize_eval(image, size)
    background = pictures.colour(data.background)
    if isinstance(image, Image.Image):
      try:
        return pictures.resize_eval(pictures.to_rgb(image, background), size)
      except (BadRecord, OSError) as e:
        raise ValueError(f"PIL image of mode {image.mode}, {image.width} x {image.height}: {e}") from e
    try:
      return pictures.decode_eval(epath.Path(image).read_bytes(), size, background, data.max_pixels)
    except (BadRecord, OSError) as e:
      raise ValueError(f"can't read the picture {image}: {e}") from e

  def _need_embeddings(self) -> None:
    if not self.config.contrastive.weight:
      raise ValueError("this model was trained without a contrastive loss (config.contrastive.weight is 0): it makes "
                       "no embeddings")

  @property
  def _embed_dim(self) -> int:
    return self.config.model.embed_dim or self.config.model.text.width


def load(workdir, ema: bool | None = None, devices=None) -> ContrastiveCaptioner:
  """Opens the newest usable checkpoint of a working directory.

  Args:
    workdir: what `python -m coca.train --workdir=...` wrote; a local path or a URL such as gs://.
    ema: True takes the moving average of the parameters, False the parameters themselves; None the average if the run
      kept one.
    devices: where it runs; None: all of this process.

  Raises:
    FileNotFoundError: not a working directory, or no checkpoint in it yet.
    ValueError: its parts do not belong together: another tokenizer, or parameters of other settings.
    coca.checkpoint.CheckpointError: all checkpoints are damaged.
  """
  config, tokenizer = read_workdir(workdir)
  if ema and not config.optim.ema:
    raise ValueError(f"{workdir} kept no moving average (config.optim.ema is 0); leave ema out")
  # Split over data only, whatever the run had: each device holds all parameters and takes its share of the batch.
  forward = Forward(config, sharding.make_mesh(devices=devices or jax.local_devices()))
  part = {None: None, True: "ema", False: "params"}[ema]
  params = read_params(workdir, forward.abstract_params, part)
  return ContrastiveCaptioner(config, tokenizer, forward, params)


def images_in(folder) -> list[Path]:
  """The pictures in a folder and the folders in it, by the ending of their names, in the order of their paths.

  Raises:
    ValueError: there are none.
  """
  found = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
  if not found:
    raise ValueError(f"no pictures in {folder}; looked for files ending in {', '.join(ENDINGS)}")
  return found


def _as_list(images) -> list:
  if isinstance(images, (str, os.PathLike)):
    return images_in(images) if os.path.isdir(images) else [images]
  if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim != 4):
    return [images]
  images = list(images)
  for image in images:
    if not isinstance(image, (str, os.PathLike, Image.Image, np.ndarray)):
      raise TypeError(f"a picture is a path, a PIL image or a uint8 array [height, width, 3], not "
                      f"{type(image).__name__}")
  return images
