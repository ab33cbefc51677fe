"""Curves of a run as an image."""

import math

import numpy as np
from etils import epath

from coca.files.writing import writing
from coca.objectives.terms import LOSSES
from coca.training import metrics

SHOWN = ("train/loss", *(f"train/{name}" for loss in LOSSES for name in loss.metrics))


def plot_curves(workdir) -> epath.Path:
  """Draws `metrics.jsonl`, training and every `eval/` number in a panel each, to `WORKDIR/curves.png`.

  Raises:
    FileNotFoundError: no numbers are there yet.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  from matplotlib.ticker import MaxNLocator

  folder = epath.Path(workdir)
  curves = _curves(metrics.read(folder / metrics.FILE))
  if not curves:
    raise FileNotFoundError(f"no training or evaluation numbers in {folder / metrics.FILE}")
  columns = min(len(curves), 4 if len(curves) > 3 else 3)
  rows = math.ceil(len(curves) / columns)
  figure = Figure(figsize=(3.6 * columns, 2.5 * rows), layout="constrained")
  FigureCanvasAgg(figure)
  panels = figure.subplots(rows, columns, squeeze=False).flatten()
  for panel, (name, points) in zip(panels, curves.items(), strict=False):
    steps, values = zip(*points, strict=True)
    is_eval = name.startswith("eval/")
    colour = "tab:orange" if is_eval else "tab:blue"
    many = len(points) > 100
    panel.plot(
      steps,
      values,
      color=colour,
      alpha=0.3 if many else 1,
      linewidth=0.8 if many else 1.5,
      marker="o" if len(points) < 20 else None,
      markersize=3,
    )
    if many:
      panel.plot(steps, _smooth(values), color=colour, linewidth=1.5)
    last = next((v for v in reversed(values) if not math.isnan(v)), math.nan)
    panel.set_title(f"{name}: {last:.4g}", fontsize=9)
    panel.tick_params(labelsize=7)
    panel.grid(alpha=0.3)
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
  for panel in panels[len(curves) :]:
    panel.set_axis_off()
  figure.supxlabel("step", fontsize=8)
  path = folder / "curves.png"
  with writing(path) as file:
    figure.savefig(file, dpi=110, format="png")
  return path


def _curves(lines: list[dict]) -> dict[str, list[tuple[int, float]]]:
  evaluated = {k for line in lines for k in line if k.startswith("eval/") and not k.endswith("/examples")}
  names = dict.fromkeys(SHOWN) | dict.fromkeys(sorted(evaluated))
  found = {
    name: [(line["step"], math.nan if line[name] is None else line[name]) for line in lines if name in line]
    for name in names
  }
  # One point is no curve: what was measured once stands in metrics.jsonl.
  curves = {name: points for name, points in found.items() if len(points) > 1}
  return curves or {name: points for name, points in found.items() if points}


def _smooth(values) -> np.ndarray:
  """Mean over a fiftieth of the points around each one (a trailing average would lag behind); NaNs are left out."""
  values, half = np.asarray(values, np.float64), max(1, len(values) // 100)
  there = ~np.isnan(values)
  sums, counts = (np.concatenate([[0.0], np.cumsum(x)]) for x in (np.where(there, values, 0), there))
  low = np.maximum(np.arange(len(values)) - half, 0)
  high = np.minimum(np.arange(len(values)) + half + 1, len(values))
  number = counts[high] - counts[low]
  return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)
