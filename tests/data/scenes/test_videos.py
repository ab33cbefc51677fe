"""Videos: the action as the frames show it, in their order alone."""

import re
from collections import Counter

import numpy as np
import pytest

from coca.data.scenes.compose import World
from coca.data.scenes.render import render
from coca.data.scenes.videos import ACTIONS, Videos
from support.scenes import A_NAME, A_PLACE, NAMES, is_place

COUNT = 300


@pytest.fixture(scope="module")
def videos():
  made = Videos(World("scenes"))
  return [made[i] for i in range(COUNT)]


def seen(video):
  """The one thing that changes, and its action, from the differences of frames."""
  names = [{t.name: t for t in scene.things} for scene in video.scenes]
  changing = {name for frame in names for name in frame if any(other.get(name) != frame[name] for other in names)}
  assert len(changing) == 1 and len({(s.place, s.view) for s in video.scenes}) == 1
  (name,) = changing
  there = [name in frame for frame in names]
  if not all(there):
    assert there == sorted(there, reverse=there[0]) and 4 <= sum(there) <= 12
    return name, "disappearing" if there[0] else "appearing"
  steps = {key: np.diff([getattr(frame[name], key) for frame in names]) for key in ("x", "y", "size", "turn")}
  steps["turn"] = (steps["turn"] + 180) % 360 - 180
  (key,) = (key for key, step in steps.items() if step.any())
  up = steps[key] > 0
  assert up.all() or not up.any()
  assert abs(steps[key].sum()) > {"x": 0.29, "y": 0.29, "size": 0.15, "turn": 89}[key]
  ways = {"x": ("left", "right"), "y": ("up", "down"), "turn": ("counterclockwise", "clockwise")}
  if key == "size":
    return name, "growing" if up[0] else "shrinking"
  return name, f"{'turning' if key == 'turn' else 'moving'} {ways[key][int(up[0])]}"


def test_actions_and_captions_are_true(videos):
  words = {
    "moving": "moves (?:to the )?(left|right)|moves (up|down)(?:wards)?",
    "turning": "(?:turns|rotates) (clockwise|counterclockwise)",
    "growing": "(grows|gets bigger)",
    "shrinking": "(shrinks|gets smaller)",
    "appearing": "(appears|shows up)",
    "disappearing": "(disappears|vanishes)",
  }
  for video in videos:
    name, action = seen(video)
    assert ACTIONS[video.label] == action and len(video.scenes) == 16 and len(set(video.captions)) == 8
    for text in video.captions:
      verb = words[action.split()[0]]
      said = rf"(?:{A_PLACE} )?(?:there is |a video of )?an? {A_NAME} (?:that )?(?:{verb})(?: {A_PLACE})?"
      before, what, *way, after = re.fullmatch(said, text).groups()
      assert NAMES[what] == name and is_place(video.scenes[0], before or after)
      assert " " not in action or action.split()[1] in way
    for scene in video.scenes:
      for thing in scene.things:
        assert all(thing.size / 2 <= at <= 1 - thing.size / 2 for at in (thing.x, thing.y))


def test_only_the_order_tells(videos):
  """As many videos of each action; of opposite ones, the frames are alike."""
  counts = Counter(video.label for video in videos)
  assert all(0.6 < counts[n] / (COUNT / 10) < 1.4 for n in range(10))
  for action, key, low, high in (
    ("moving left", "x", 0.3, 0.7),
    ("moving up", "y", 0.3, 0.7),
    ("growing", "size", 0.3, 0.5),
  ):
    means = []
    for label in (ACTIONS.index(action), ACTIONS.index(action) + 1):
      at = [
        np.mean([getattr(t, key) for s in v.scenes for t in s.things if t.name == seen(v)[0]])
        for v in videos
        if v.label == label
      ]
      means.append(np.mean(at))
    assert all(low < mean < high for mean in means) and abs(means[0] - means[1]) < 0.06


def test_frames_are_drawn(videos):
  video = videos[0]
  frames = video.frames(32)
  assert frames.shape == (16, 32, 32, 3) and frames.dtype == np.uint8
  assert (frames[5] == render(video.scenes[5], 32)).all() and (frames[0] != frames[15]).any()


def test_a_video_is_a_function_of_split_seed_and_number(videos):
  assert Videos(World("scenes"))[7] == videos[7] != Videos(World("scenes", seed=1))[7]
  style = Videos(World("scenes_new_style"))[0].scenes[0].things[0].style
  assert style == "twemoji" and len({video.scenes for video in videos}) == COUNT
  with pytest.raises(ValueError, match="'scenes_new_counts' has no scene of single things"):
    Videos(World("scenes_new_counts"))
