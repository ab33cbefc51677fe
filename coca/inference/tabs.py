"""The tabs of the demo, of what a model can do with an image: plain functions from what is typed to what is shown.

An image is the path of a file. What can't be done is a ValueError, a line for whoever asked.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from coca.config import Config
from coca.inference.captioner import ContrastiveCaptioner
from coca.inference.search_index import Images, SearchIndex, read_found

BARS = 10  # classes that are shown
SIDE = 384  # pixels of a map, which a model of few pixels would leave small
DARK = 0.85  # of an image where nobody looks, as in `coca.notebook.show`
UNREAD = 224  # pixels of what stands for an image that was found and can't be read


def tabs(config: Config) -> tuple[str, ...]:
  """The tabs of a model: those of 'caption', 'classify', 'search' and 'ask' that it has the parts for.

  Raises:
    ValueError: there are none, or the model reads regions in place of images.
  """
  if config.model.reads_regions:
    raise ValueError(
      f"this model reads regions of a detector (config.model.kind is {config.model.kind!r}), and the demo shows images"
    )
  embeds, classes = config.contrastive.heads, config.classification.weight > 0
  has = {
    "caption": config.model.writes and config.learns_to_write and not config.answering.weight,
    "classify": embeds or (classes and not config.has_text_head),
    "search": embeds,
    "ask": config.answering.weight > 0 or config.has_text_head,
  }
  if not any(has.values()):
    raise ValueError(
      "this model writes no texts, makes no embeddings and has no class head: the demo has nothing to show"
    )
  return tuple(name for name in has if has[name])


def caption(model: ContrastiveCaptioner, image: str | None, strategy: str, beams: float, n: float, prompt: str) -> str:
  """Captions of an image, one a line, the best first.

  Args:
    model: one that writes.
    image: path.
    strategy, beams, n: see `coca.config.decoding.Decoding`; `beams` counts in beam search alone.
    prompt: what each begins with; empty: nothing, or what the model was trained with.

  Raises:
    ValueError: as `ContrastiveCaptioner.caption`.
  """
  settings: dict[str, Any] = {"strategy": strategy, "n": int(n)}
  settings |= {"beams": int(beams)} if strategy == "beam" else {}
  found: Any = model.caption(_chosen(image), prompt.strip() or None, **settings)[0]
  return found if isinstance(found, str) else "\n".join(found)


def poolers(config: Config) -> tuple[str, ...]:
  """The poolers whose attention `look` shows: 'generative' and 'contrastive', or one of them, or none."""
  model, kind = config.model, config.model.poolers.kind
  queries = model.poolers.n_query - (kind == "openclip") if model.text.multimodal_layers else 0
  has = {"generative": queries > 0, "contrastive": kind not in ("class_token", "mean") and config.contrastive.heads}
  return tuple(name for name in has if has[name] and model.kind == "coca")


def look(model: ContrastiveCaptioner, image: str | None, pooler: str) -> np.ndarray:
  """An image as the model sees it, dark where a pooler does not look: uint8 [SIDE, SIDE, 3].

  Args:
    model: one with such a pooler.
    image: path.
    pooler: one of `poolers`. Of the generative one the mean over its queries is shown.

  Raises:
    ValueError: an image that can't be read.
  """
  pixels = np.asarray(model.prepare(_chosen(image)))
  rows = np.repeat(pixels[None], model.forward.mesh.size, 0)  # a batch is a row for each device at least
  contrastive, generative = model.forward.attention_maps(model.params, model.forward.put({"image": rows})["image"])
  weights = np.asarray(contrastive[0] if pooler == "contrastive" else generative[0].mean(0), np.float32)
  size = (SIDE, SIDE)
  light = np.asarray(Image.fromarray(weights / weights.max()).resize(size, Image.Resampling.BILINEAR))
  seen = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
  return (seen * (1 - DARK * (1 - light[..., None]))).round().astype(np.uint8)


def classify(model: ContrastiveCaptioner, image: str | None, names: str, templates: str = "") -> dict[str, float]:
  """Probabilities of classes, the likeliest first and `BARS` at most.

  Args:
    model: one that makes embeddings or has a class head.
    image: path.
    names: a class a line; none: those of the class head.
    templates: a prompt a line, with {} where the name goes; none: the name alone.

  Raises:
    ValueError: as `ContrastiveCaptioner.classify`.
  """
  labels = list(dict.fromkeys(_lines(names)))  # a name that stands there twice is one class
  if not labels and not model.config.classification.weight:
    raise ValueError("name the classes to choose from, one a line")
  path = _chosen(image)
  if labels and not model.config.contrastive.heads:
    raise ValueError("this model knows the classes of its head alone: leave the names empty")
  found = model.classify(path, labels or None, _lines(templates) or ("{}",))[0]
  labels = labels or model.labels or [f"class {i}" for i in range(len(found))]
  return {labels[i]: float(found[i]) for i in np.argsort(-found, kind="stable")[:BARS]}


def search(
  model: ContrastiveCaptioner,
  index: SearchIndex,
  opened: Callable[[str], Images],
  allow_urls: bool,
  text: str,
  image: str | None,
  k: float,
) -> list[tuple[np.ndarray, str]]:
  """The images of an index that are closest to a text, or to an image where there is no text.

  Args:
    model: that made the index.
    index: of the images.
    opened, allow_urls: see `read_found`.
    text: what to look for.
    image: path.
    k: images.

  Returns:
    uint8 [H, W, 3] and what stands below it, the closest first: its cosine; of a model with a matching head also the
    probability that the text fits. An image that can't be read is grey, and says why.

  Raises:
    ValueError: neither text nor image, or an image that can't be read.
  """
  text = text.strip()
  if not text and not image:
    raise ValueError("write what to look for, or choose an image to look for the like of")
  query = model.embed_texts(text) if text else model.embed_images(_chosen(image))
  out = []
  for found in index.search(query, int(k))[0]:
    pixels, error = read_found(model, found, opened, allow_urls)
    said = f"{found.cosine:.3f}"
    if pixels is not None and text and model.config.matching.weight:
      said += f", fits by {model.match(pixels, text)[0]:.0%}"
    grey = np.full((UNREAD, UNREAD, 3), 128, np.uint8)
    out.append((grey if pixels is None else pixels, said if pixels is not None else f"{said}: {error}"))
  return out


def ask(model: ContrastiveCaptioner, image: str | None, question: str, answers: str = "") -> str:
  """The answer to a question about an image.

  Args:
    model: one that answers.
    image: path.
    question: not empty.
    answers: the possible ones, one a line; none: it is written, or all classes of a class head are possible.

  Raises:
    ValueError: as `ContrastiveCaptioner.answer`.
  """
  path = _chosen(image)
  if not question.strip():
    raise ValueError("write a question about the image")
  return model.answer(path, question, _lines(answers))[0] or ""


def _lines(text: str) -> Sequence[str]:
  return [line.strip() for line in text.splitlines() if line.strip()]


def _chosen(image: str | None) -> str:
  if not image:
    raise ValueError("choose an image first")
  return image
