"""Displays of the notebooks: programs with their output, runs with live curves, images with maps over them."""

import shlex
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, Pretty, display

from coca.training.curves import plot_curves


def train(config: str, workdir, *flags: str, every: float = 5.0) -> None:
  """`python -m coca.train` with its curves, drawn anew every few seconds; run again, it goes on where it was.

  Raises:
    RuntimeError: it failed; the message is the end of what it printed.
  """
  command = ["-m", "coca.train", f"--config={config}", f"--workdir={workdir}", *flags]
  print("python", shlex.join(command))
  shown = display(Pretty("starting"), display_id=True)
  with tempfile.TemporaryFile("w+") as output:
    # In a session of its own: Jupyter interrupts all processes of the kernel's.
    with subprocess.Popen(
      [sys.executable, *command], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
      try:
        while process.poll() is None:
          try:
            process.wait(every)
          except subprocess.TimeoutExpired:
            _show_curves(shown, workdir)
      except KeyboardInterrupt:  # it saves, and the same cell goes on from there
        process.terminate()
        raise
    output.seek(0)
    printed = output.read()
  if process.returncode:
    raise RuntimeError("\n".join(printed.splitlines()[-20:]))
  _show_curves(shown, workdir)
  print(f"done; the model is in {workdir}")


def _show_curves(shown, workdir) -> None:
  try:
    shown.update(Image(str(plot_curves(workdir))))
  except FileNotFoundError:  # it has not begun to count yet
    return


def show(images: Sequence, titles: Sequence[str] = (), maps: Sequence = (), columns: int = 6) -> None:
  """Images in a grid.

  Args:
    images: uint8 arrays [H, W, 3] or PIL images.
    titles: a text below each.
    maps: [h, w] for each, such as attention's weights: dark where they are small.
    columns: of the grid.
  """
  columns = min(columns, len(images))
  rows = -(-len(images) // columns)
  wrapped = ["\n".join("\n".join(textwrap.wrap(line, 26)) for line in str(title).splitlines()) for title in titles]
  below = 0.1 + 0.15 * max((1 + text.count("\n") for text in wrapped), default=0)  # inches
  figure = plt.figure(figsize=(1.9 * columns, (1.8 + below) * rows))
  for i, image in enumerate(images):
    row, column = divmod(i, columns)
    left, bottom = (column + 0.03) / columns, 1 - (row + 1 - below / (1.8 + below)) / rows
    panel = figure.add_axes((left, bottom, 0.94 / columns, 1.8 / (1.8 + below) / rows))
    panel.axis("off")
    image = np.asarray(image)
    extent = (0, image.shape[1], image.shape[0], 0)
    panel.imshow(image, extent=extent)
    if len(maps):
      shade = 1 - maps[i] / np.max(maps[i])
      panel.imshow(np.zeros_like(shade), cmap="gray", alpha=0.85 * shade, extent=extent, interpolation="bilinear")
    if wrapped:
      panel.annotate(
        wrapped[i],
        (0.5, 0),
        (0, -2),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        ha="center",
        fontsize=8,
        parse_math=False,
      )
  plt.show()
  plt.close(figure)


def run(*command: str) -> None:
  """`python -m ...`, with what it prints.

  Raises:
    RuntimeError: it failed.
  """
  print("python -m", shlex.join(command))
  done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  lines = done.stdout.decode(errors="replace").split("\n")
  text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)  # a progress bar as it ended
  print(text.replace(f"{Path.cwd()}/", "").strip())
  if done.returncode:
    raise RuntimeError(f"exit status {done.returncode}")
