"""How well a model that was trained on scenes knows where things are.

  python tests/benchmarks/sides.py runs/tiny

Of new scenes of two things: how often the model finds a true caption likelier than the same with the opposite side, by
the axis of the side, where chance is 50 %; and how much of the variance of a thing's place, x and y, a linear probe
finds in the image token at its centre (R squared on scenes that the probe was not fitted to).
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

import coca
from coca.data.scenes.compose import World
from coca.data.scenes.grammar import say, statements
from coca.data.scenes.render import render
from coca.data.scenes.scene import OPPOSITE, Scene

AXES = {
  "left, right": ("left of", "right of"),
  "above, below": ("above", "below"),
  "in front, behind": ("in front of", "behind"),
}
SCENES, FITTED, BATCH = 256, 1536, 64  # of each axis; of the 2,048 of the probe
FORM = "{first} {is} {side} {second} {place}"


def of_two(vocabulary: int) -> Iterator[Scene]:
  """New scenes of two things of different kinds."""
  world = World("scenes_val", vocabulary=vocabulary)
  return (scene for i in range(10**9) if len((scene := world[i]).things) == len(scene.groups()) == 2)


def images(scenes: list[Scene], model) -> Iterator[tuple[slice, np.ndarray]]:
  for start in range(0, len(scenes), BATCH):
    part = slice(start, start + BATCH)
    yield part, np.stack([render(scene, model.config.model.image.size) for scene in scenes[part]])


def likelier(model, axis: tuple[str, str], vocabulary: int) -> float:
  """The share of scenes of whose two captions the true one is likelier."""
  scenes, texts = [], []
  for scene in of_two(vocabulary):
    told = [one for one in statements(scene) if one.relation in axis]
    if told:
      one = told[len(scenes) % len(told)]  # from either of the two
      scenes.append(scene)
      texts.append([say(x, FORM) for x in (one, replace(one, relation=OPPOSITE[one.relation]))])
    if len(scenes) == SCENES:
      break
  right = 0
  for part, pixels in images(scenes, model):
    true, false = (
      model.forward.log_likelihood(
        model.params, pixels, np.stack([model.tokenizer.encode(x, model.config.model.text.length) for x in column])
      )
      for column in zip(*texts[part], strict=True)
    )
    right += int((np.asarray(true) > np.asarray(false)).sum())
  return right / SCENES


def probed(model, vocabulary: int) -> list[float]:
  """R squared of x and y of the first thing."""
  scenes = [scene for scene, _ in zip(of_two(vocabulary), range(2048), strict=False)]
  places = np.array([(scene.things[0].x, scene.things[0].y) for scene in scenes])
  side = model.config.model.image.size // model.config.model.image.patch
  column, row = np.minimum((places * side).astype(int), side - 1).T
  tokens = [np.asarray(model.forward.tokens(model.params, pixels)) for _, pixels in images(scenes, model)]
  at_centres = np.concatenate(tokens)[np.arange(len(scenes)), row * side + column].astype(np.float64)
  features = np.c_[at_centres, np.ones(len(scenes))]
  seen = features[:FITTED]
  weights = np.linalg.solve(seen.T @ seen + 0.1 * np.eye(seen.shape[1]), seen.T @ places[:FITTED])
  new = places[FITTED:]
  return list(1 - ((features[FITTED:] @ weights - new) ** 2).mean(0) / new.var(0))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("runs", nargs="+", help="workdirs of runs that write captions")
  parser.add_argument("--objects", type=int, default=26, help="objects that there are in their scenes")
  args = parser.parse_args()
  for run in args.runs:
    model = coca.load(run)
    shares = (f"{name} {likelier(model, axis, args.objects):.1%}" for name, axis in AXES.items())
    x, y = probed(model, args.objects)
    print(f"{run}: {', '.join(shares)}; R squared of x {x:.2f}, of y {y:.2f}", flush=True)


if __name__ == "__main__":
  main()
