"""How long it takes to draw scenes, in ms each, and how many threads can draw at once.

  python tests/benchmarks/scenes.py

Scenes of one to four things with everything that is random in them, each drawn once, as a loader does: the caches are
warm (places, and the sprites they hold), the scenes are new. CPU time of one thread, the best of several
rounds; the first round, with cold caches, apart. Threads by the wall clock.
"""

import argparse
import random
import time
from concurrent.futures import ThreadPoolExecutor

from coca.data.scenes.objects import OBJECTS, PLACES
from coca.data.scenes.places import VIEWS, background
from coca.data.scenes.render import render, with_shadow
from coca.data.scenes.scene import Scene, Thing
from coca.data.scenes.sprites import STYLES, sprite


def scenes(count: int, seed: int) -> list[Scene]:
  rng = random.Random(seed)
  return [
    Scene(
      rng.choice(list(PLACES)),
      tuple(
        Thing(rng.choice(OBJECTS).name, rng.choice(STYLES), rng.random(), rng.random(), rng.uniform(0.2, 0.5))
        for _ in range(rng.randint(1, 4))
      ),
      rng.randrange(VIEWS),
    )
    for _ in range(count)
  ]


def drawing(pixels: int, count: int, rounds: int) -> None:
  for cache in (background, sprite, with_shadow):
    cache.cache_clear()
  times = []
  for seed in range(rounds + 1):
    made = scenes(count, seed)
    began = time.thread_time()
    for scene in made:
      render(scene, pixels)
    times.append((time.thread_time() - began) / count * 1e3)
  print(f"{pixels:>4} px  {min(times[1:]):.3f} ms   first round {times[0]:.3f} ms")


def threads(pixels: int, count: int) -> None:
  made = scenes(count, 100)
  for workers in (1, 2, 4):
    with ThreadPoolExecutor(workers) as pool:
      for _ in range(2):  # the first time, of all, fills the caches
        began = time.perf_counter()
        list(pool.map(lambda scene: render(scene, pixels), made, chunksize=50))
        seconds = time.perf_counter() - began
    print(f"{pixels:>4} px  {workers} threads  {count / seconds:,.0f} scenes/s")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--scenes", type=int, default=2000, help="in a round")
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  for pixels in (64, 128, 224):
    drawing(pixels, args.scenes, args.rounds)
  for pixels in (64, 224):
    threads(pixels, args.scenes)
