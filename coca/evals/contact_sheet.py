"""A contact sheet: held-out images, what the model writes about them, where it looks, and what it finds."""

import dataclasses
import textwrap
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, HPacker, TextArea
from matplotlib.patches import Rectangle

from coca.evals.captions import Captions, matches
from coca.evals.classification import Classification
from coca.evals.evaluator import Evaluator
from coca.evals.fonts import families_for
from coca.evals.pairs import Pairs
from coca.evals.retrieval import Retrieval
from coca.evals.sheet_cells import Cell, attention_cells, held_out_cells, retrieval_cells
from coca.evals.vqa import Vqa
from coca.evals.zero_shot import ZeroShot
from coca.files.writing import writing

RIGHT, WRONG, UNTOLD, PLAIN = "#1a7f37", "#cf222e", "#57606a", "black"
WRAP = 27  # characters a line under an image
COLUMNS = 6
SIDE, MARGIN, LINE = 2.0, 0.2, 0.155  # inches: of an image, between two of them, of a line of text
POOLERS = "Where the contrastive pooler looks", "Where the generative pooler looks, mean of its queries"


@dataclasses.dataclass(frozen=True)
class Band:
  """Rows of the sheet under a title."""

  title: str
  cells: Sequence[Cell]


def write_contact_sheet(evaluators: dict[str, Evaluator], params, path, count: int = 30) -> None:
  """Draws what the model makes of the images of its evaluators: of the first of each kind, and of two for captions.

  All processes call this; the first one writes the file.

  Args:
    evaluators: from `coca.evals.build.make_evaluators`; without any, nothing is drawn.
    params: of the model.
    path: of the PNG file, or its URL.
    count: of images of an evaluator, spread over its source; of several, a row each.
  """
  chosen = _chosen(evaluators)
  bands = []
  for name, evaluator in chosen.items():
    if isinstance(evaluator, Retrieval) and len(chosen) > 1:
      texts, images, searched = retrieval_cells(evaluator, params, COLUMNS)
      among = f"among {searched:,} of {name}"
      bands += [Band(f"A text and the nearest images {among}; a frame: right", texts)]
      bands += [Band(f"An image, its text in bold, and the nearest texts {among}; green: right", images)]
      continue
    cells = held_out_cells(evaluator, params, count if len(chosen) == 1 else min(count, COLUMNS))
    bands.append(Band(f"{name}: {_told(evaluator, cells)}", cells))
    if isinstance(evaluator, Captions) and not any(band.title in POOLERS for band in bands):
      bands += [Band(title, maps) for title, maps in zip(POOLERS, attention_cells(cells), strict=False)]
  bands = [band for band in bands if band.cells]
  if bands:
    contact_sheet(bands, path)


def _chosen(evaluators: dict[str, Evaluator]) -> dict[str, Evaluator]:
  """Evaluators whose images are drawn; the first one, if none is of the kinds that have most to show."""
  limits, chosen = {Captions: 2, ZeroShot: 1, Classification: 1, Retrieval: 1, Vqa: 1}, {}
  for name, evaluator in evaluators.items():
    kind = next((kind for kind in limits if isinstance(evaluator, kind)), None)
    if kind and limits[kind]:
      limits[kind] -= 1
      chosen[name] = evaluator
  return chosen or dict([x for x in evaluators.items() if not isinstance(x[1], Pairs)][:1])


def _told(evaluator: Evaluator, cells: Sequence[Cell]) -> str:
  if any(cell.judgement is not None for cell in cells):
    return "captions, right words in green and wrong ones in red, and then a true one in grey"
  asked = "question and true answer" if isinstance(evaluator, Vqa) else "a text and its true class"
  true = asked if any(cell.question for cell in cells) else "the true text"
  caption = ", the caption in quotes" * any(cell.caption is not None for cell in cells)
  labels = ", the likeliest labels below" if isinstance(evaluator, (ZeroShot, Classification)) else ""
  return f"{true} in bold{caption}{labels}; green is right"


def contact_sheet(bands: Sequence[Band], path, columns: int = COLUMNS) -> None:
  """Draws bands as a PNG.

  Args:
    bands: at least one, of at least one cell each.
    path: of the PNG file, or its URL.
    columns: cells a row.

  Raises:
    ValueError: there are no cells.
  """
  if not bands or not all(band.cells for band in bands):
    raise ValueError("a contact sheet needs at least one image")
  families, missing = families_for(
    text for band in bands for text in (band.title, *(s for c in band.cells for line in _lines(c) for s, _ in line[0]))
  )
  note = ""
  if missing:
    note = (
      f"Boxes are characters that no font here has, as U+{ord(missing[0]):04X}; Noto fonts have them "
      "(Debian: fonts-noto-core, fonts-noto-cjk)"
    )
  rows = [
    (band.title if i == 0 else "", band.cells[i : i + columns])
    for band in bands
    for i in range(0, len(band.cells), columns)
  ]
  heights = [0.35 * bool(title) + SIDE + MARGIN + LINE * max(map(_height, cells)) for title, cells in rows]
  width, height = columns * (SIDE + MARGIN), sum(heights) + 0.1 + 0.2 * bool(note)
  figure = Figure(figsize=(width, height), dpi=100)
  FigureCanvasAgg(figure)  # not pyplot: no display, no global state, any thread
  top = height - 0.1
  if note:
    figure.text(0.5, 1 - 0.15 / height, note, ha="center", va="center", fontsize=9, family=families)
    top -= 0.2
  for (title, cells), row_height in zip(rows, heights, strict=True):
    if title:
      place = MARGIN / 2 / width, (top - 0.15) / height
      figure.text(*place, title, va="center", fontsize=11, weight="bold", family=families, parse_math=False)
    below = top - 0.35 * bool(title) - SIDE
    for i, cell in enumerate(cells):
      left = i * (SIDE + MARGIN) + MARGIN / 2
      _draw(figure.add_axes((left / width, below / height, SIDE / width, SIDE / height)), cell, families)
    top -= row_height
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Glyph .* missing")  # the note says it
    with writing(path) as file:
      figure.savefig(file, format="png")


Spans = list[tuple[str, str]]  # texts and their colours, one after the other


def _lines(cell: Cell) -> Iterator[tuple[Spans, str]]:
  """Lines under an image, wrapped, with their weights."""

  def wrapped(text: str, colour: str, weight: str = "normal", most: int = 2):
    for line in textwrap.wrap(text, WRAP, max_lines=most, placeholder="…") or [""]:
      yield [(line, colour)], weight

  true = f"{cell.question} {cell.truth[0]}".strip() if cell.truth else ""
  if cell.image is None:
    return
  if cell.judgement is not None:
    yield from ((line, "bold") for line in _judged(cell))
    if cell.judgement.verdict != "true":
      yield from wrapped(true, UNTOLD, most=3)
  elif true:
    yield from wrapped(true, PLAIN, "bold", most=3 if cell.question else 2)
    if cell.caption is not None:
      yield from wrapped(f"“{cell.caption}”", _colour(matches(cell.caption, cell.truth)))
  for i, label in enumerate(cell.labels, 1):
    yield from wrapped(f"{i}. {label}", _colour(matches(label, cell.truth)), most=2 if cell.caption is None else 1)


def _judged(cell: Cell) -> Iterator[Spans]:
  """The words of a caption, each in the colour of the part that it tells."""
  assert cell.judgement is not None
  line, length = [], 0
  for i, word in enumerate(cell.judgement.words):
    right = cell.judgement.is_right(i)
    colour = UNTOLD if right is None else RIGHT if right else WRONG
    if length + len(word) > WRAP:
      yield line
      line, length = [], 0
    if line and line[-1][1] == colour:
      line[-1] = (f"{line[-1][0]} {word}", colour)
    else:
      line.append((word, colour))
    length += len(word) + 1
  yield line


def _height(cell: Cell) -> int:
  return sum(1 for _ in _lines(cell))


def _draw(axes, cell: Cell, families: Sequence[str]) -> None:
  axes.axis("off")
  if cell.image is None:
    text = textwrap.fill(cell.truth[0], 18)
    axes.text(0.98, 0.5, text, ha="right", va="center", fontsize=11, weight="bold", family=families, parse_math=False)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    return
  extent = (0, cell.image.shape[1], cell.image.shape[0], 0)
  axes.imshow(cell.image, extent=extent, interpolation="bicubic")
  for seen in cell.maps[:1] if not cell.truth else ():
    shade = 1 - seen / np.max(seen)
    axes.imshow(np.zeros_like(shade), cmap="gray", alpha=0.85 * shade, extent=extent, interpolation="bilinear")
  lines = list(_lines(cell))
  is_right = cell.is_right or bool(cell.judgement)
  if cell.judgement is None and cell.caption is not None:
    is_right = matches(cell.caption, cell.truth)
  if is_right:
    axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=RIGHT, linewidth=4))
  for n, (spans, weight) in enumerate(lines):
    # parse_math: a caption with two dollar signs is not a formula.
    looks = {"fontsize": 8, "weight": weight, "parse_math": False, "family": families}
    parts = [TextArea(text, textprops={"color": colour, **looks}) for text, colour in spans]
    line = HPacker(children=parts, pad=0, sep=2.5, align="baseline")
    place = {"xybox": (0, -4 - 72 * LINE * n), "xycoords": "axes fraction", "boxcoords": "offset points"}
    axes.add_artist(AnnotationBbox(line, (0, 0), **place, box_alignment=(0, 1), frameon=False, pad=0))


def _colour(right: bool) -> str:
  return RIGHT if right else UNTOLD
