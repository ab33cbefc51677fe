"""CapFilt's stage beside its two models used apart: images a second, in turns in one run.

    python tests/benchmarks/capfilt.py --captioner=runs/captioner --filter=runs/filter --images=512

Apart: `caption` for all images, then `match` for the web's texts and for the written ones, as one would with the models
alone. Images are read and decoded for each call and encoded by the filter for each of the two, while nothing else goes
on. Both write and score the same texts. The wait is the share of the stage's time in which no program was running.
"""

import argparse
import io
import statistics
import threading
import time

import jax
import numpy as np
from PIL import Image

from coca.capfilt.models import Models
from coca.capfilt.settings import CapFilt
from coca.capfilt.stage import Stage, draw_id
from coca.config import Source
from coca.data.sources import open_source
from coca.decoding.settings import Decoding


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--captioner", required=True)
  parser.add_argument("--filter", required=True)
  parser.add_argument("--images", type=int, default=512)
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  source = open_source(Source(kind="builtin", split="openclipart"))
  decoding = Decoding(strategy="sample", top_p=0.9)
  models = Models(CapFilt(captioner=args.captioner, filter=args.filter, decoding=decoding))
  numbers = range(min(args.images, len(source)))
  waits = []

  def stage():
    started = time.perf_counter()
    busy = Busy(models)
    [(_, columns)] = Stage(busy, source).run([("all", numbers)])
    waits.append(1 - busy.until_now() / (time.perf_counter() - started))
    return [text or "" for text, made in zip(columns["text"], columns["captioner"], strict=True) if made]

  def apart():
    def pictures():
      return [Image.open(io.BytesIO(source[n].image)) for n in numbers]

    records = [source[n] for n in numbers]
    ids = [draw_id(record.key) for record in records]
    written = models.captioner.caption(pictures(), ids=ids, strategy="sample", top_p=0.9)
    for texts in ([record.texts[0].text for record in records], written):
      models.filter.match(pictures(), texts)
    return written

  ours, theirs = stage(), apart()  # compiles
  same = np.mean([a == b for a, b in zip(ours, theirs, strict=True)])
  waits.clear()
  times = {stage: [], apart: []}
  for _ in range(args.rounds):
    for function, seconds in times.items():
      started = time.perf_counter()
      function()
      seconds.append(time.perf_counter() - started)
  a, b = (statistics.median(times[f]) for f in (stage, apart))
  print(
    f"stage {len(numbers) / a:.1f} images/s, apart {len(numbers) / b:.1f}: {b / a:.2f} x; {same:.0%} of the texts "
    f"are the same; waiting {statistics.median(waits):.0%}"
  )


class Busy:
  """The models, with the time in which some of their work was under way on the device."""

  def __init__(self, models):
    self._models, self._under_way, self._since, self._seconds = models, 0, 0.0, 0.0
    self._lock = threading.Lock()

  def __getattr__(self, name):
    return getattr(self._models, name)

  def write(self, *args):
    return self._begin(self._models.write(*args))

  def score(self, *args):
    return self._begin(self._models.score(*args))

  def until_now(self) -> float:
    with self._lock:
      return self._seconds + (time.perf_counter() - self._since if self._under_way else 0)

  def _begin(self, arrays):
    with self._lock:
      if not self._under_way:
        self._since = time.perf_counter()
      self._under_way += 1

    def wait():
      jax.block_until_ready(arrays)
      with self._lock:
        self._under_way -= 1
        if not self._under_way:
          self._seconds += time.perf_counter() - self._since

    threading.Thread(target=wait, daemon=True).start()
    return arrays


if __name__ == "__main__":
  main()
