import hashlib
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from coca.data.scenes.objects import OBJECTS, PLACES
from coca.data.scenes.places import VIEWS, background
from coca.data.scenes.render import lay, render, with_shadow
from coca.data.scenes.scene import Scene, Thing
from coca.data.scenes.sprites import STYLES, resize, sprite


def scenes(count: int) -> list[Scene]:
  """Scenes that run over the border, with turned things among them."""
  rng = random.Random(0)
  places = list(PLACES)
  return [
    Scene(
      places[i % len(places)],
      tuple(
        Thing(
          OBJECTS[rng.randrange(100)].name,
          STYLES[rng.randrange(4)],
          rng.random(),
          rng.random(),
          0.1 + 0.5 * rng.random(),
          rng.choice((0.0, 0.0, 360 * rng.random())),
        )
        for _ in range(3)
      ),
      rng.randrange(1000),
    )
    for i in range(count)
  ]


@pytest.mark.parametrize(
  "pixels, digest",
  [(64, "f494f1d884529d4e"), (160, "b38589416cf68024")],
)
def test_the_same_bytes_everywhere(pixels, digest):
  """Taken with NumPy 2.0 and 2.5, OpenCV 4.10 and 5.0, Python 3.11 and 3.13, which agree. New drawings change it."""
  found = hashlib.sha256()
  for scene in scenes(24):
    image = render(scene, pixels)
    assert image.shape == (pixels, pixels, 3) and image.dtype == np.uint8
    found.update(image.tobytes())
  assert found.hexdigest()[:16] == digest


def test_over_is_the_formula():
  """For every byte of the image, and every alpha with the darkest and the brightest colour that it can have."""
  under, alpha = (grid.astype(np.uint8) for grid in np.mgrid[:256, :256])
  for colour in (np.zeros_like(alpha), alpha // 2, alpha):
    image = np.stack([under] * 3, -1)
    lay(image, np.stack([colour, colour, colour, alpha], -1), 0, 0)
    wanted = np.rint(colour + under.astype(np.float64) * (1 - alpha / 255))
    np.testing.assert_array_equal(image, np.stack([wanted] * 3, -1))


@pytest.mark.parametrize(
  "left, top", [(-7, 3), (12, -9), (14, 15), (-3, -3), (2, 3), (-10, 0), (16, 0), (0, 40), (0, -30)]
)
def test_what_is_beyond_the_border_is_cut_off(left, top):
  rng = np.random.default_rng(0)
  drawing = rng.integers(0, 100, (10, 10, 4), np.uint8)
  large = rng.integers(0, 256, (100, 100, 3), np.uint8)
  small = large[42:58, 42:58].copy()
  lay(large, drawing, left + 42, top + 42)
  lay(small, drawing, left, top)
  np.testing.assert_array_equal(small, large[42:58, 42:58])


@pytest.mark.parametrize("turn", [0, 45])
@pytest.mark.parametrize("pixels", [64, 129])
def test_a_thing_is_where_it_is_said_to_be(pixels, turn):
  scene = Scene("room", (Thing("soccer ball", "twemoji", 0.3, 0.6, 0.25, turn),))
  seen = (render(scene, pixels).astype(int) - background("room", 0, pixels)).any(-1)
  rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
  shadow = max(1, round(0.25 * pixels) // 12)
  assert abs((columns[0] + columns[-1] + 1) / 2 - 0.3 * pixels) <= 1.5
  assert abs((rows[0] + rows[-1] + 1) / 2 - 0.6 * pixels) <= 1.5 + shadow
  assert 0.25 * pixels - 1 <= len(columns) <= 0.25 * pixels + 2 * shadow + 2


def test_later_things_hide_earlier_ones():
  first, second = Thing("apple", "noto", 0.5, 0.5, 0.5), Thing("door", "noto", 0.5, 0.5, 0.5)
  image = render(Scene("grass", (first, second)), 64)
  np.testing.assert_array_equal(image[28:36, 28:36], render(Scene("grass", (second,)), 64)[28:36, 28:36])
  assert (image != render(Scene("grass", (second, first)), 64)).any()


def test_a_shadow_is_soft_and_leaves_the_object_as_it_is():
  plain, shaded = sprite("apple", "twemoji", 48), with_shadow("apple", "twemoji", 48, 0)
  inner = shaded[4:-4, 4:-4]
  np.testing.assert_array_equal(inner[..., :3], plain[..., :3])
  np.testing.assert_array_equal(inner[plain[..., 3] == 255], plain[plain[..., 3] == 255])
  added = shaded[..., 3].astype(int) - np.pad(plain[..., 3], 4)
  assert 40 < added.max() <= 85 and added.min() == 0
  assert added[28:].sum() > 1.5 * added[:28].sum()  # further down


def test_places_are_told_apart_at_64_pixels():
  assert set(PLACES) == {scene.place for scene in scenes(8)}
  views = np.stack([[background(place, view, 64) for view in range(10)] for place in PLACES]).astype(np.float64)
  means = views[:, ::2].mean(1)  # of mirrored and plain views there are as many in both halves
  distances = ((views[:, 1::2, None] - means[None, None]) ** 2).mean((3, 4, 5))
  np.testing.assert_array_equal(distances.argmin(-1), np.arange(len(PLACES))[:, None].repeat(5, 1))


def test_views_vary_and_are_the_same_at_every_size():
  for place in PLACES:
    images = {background(place, view, 32).tobytes() for view in range(VIEWS)}
    assert len(images) == VIEWS, place
    large, small = background(place, 5, 128), background(place, 5, 64)
    assert abs(resize(large, 64).astype(int) - small).mean() < 4, place
  np.testing.assert_array_equal(background("beach", 3, 32), background("beach", 3 + VIEWS, 32))


def test_threads_draw_the_same():
  made = scenes(40)
  alone = [render(scene, 48) for scene in made]
  background.cache_clear(), sprite.cache_clear(), with_shadow.cache_clear()
  with ThreadPoolExecutor(4) as pool:
    together = list(pool.map(lambda scene: render(scene, 48), made * 3))
  np.testing.assert_array_equal(together, alone * 3)


def test_what_is_cached_stays_as_it_was():
  scene = Scene("water", ())
  render(scene, 64)[:] = 0
  assert render(scene, 64).any()
  with pytest.raises(ValueError, match="read-only"):
    background("water", 0, 64)[:] = 0


def test_no_such_place():
  with pytest.raises(ValueError, match="no place 'moon'; the places are beach, snow,"):
    render(Scene("moon", ()), 64)
