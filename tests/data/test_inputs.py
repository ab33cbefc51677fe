"""What models see of videos in training and in evaluation: which frames, and that all are changed alike."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from coca.config import Classification
from coca.data.images import decode_eval
from coca.data.inputs import blank, eval_input, train_input
from coca.data.records import BadRecord, Record
from support.films import film, middles, numbers
from support.pipeline import make_config


def config_of(frames, **data):
  config = make_config(**data)
  return replace(config, classification=Classification(weight=1.0, classes=2, images=frames))


def png(seed):
  out = io.BytesIO()
  Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3)).astype(np.uint8)).save(out, "PNG")
  return out.getvalue()


@pytest.mark.parametrize("frames", [1, 3, 16])
def test_frames_are_the_middles_of_equal_parts_in_training_too(frames):
  config, record = config_of(frames), Record("k", film(12), ())
  for seen in (
    train_input(record, config, np.random.default_rng(0), is_video=True),
    train_input(record, config, np.random.default_rng(1), is_video=True),
    eval_input(record, config, frames),
  ):
    assert numbers(seen if seen.ndim == 4 else seen[None]) == middles(12, frames)
  assert blank(config, frames).shape == eval_input(record, config, frames).shape


def test_frames_that_are_images():
  files = [png(n) for n in range(10)]
  config, size = config_of(4), make_config().model.image.size
  found = eval_input(Record("k", b"", (), frames=files), config, 4)
  assert (found == [decode_eval(files[n], size) for n in middles(10, 4)]).all()
  few = eval_input(Record("k", b"", (), frames=files[:2]), config, 4)  # each is shown twice
  assert (few == [decode_eval(files[n], size) for n in (0, 0, 1, 1)]).all()
  with pytest.raises(BadRecord, match="not decodable"):
    train_input(Record("k", b"", ()), config, np.random.default_rng(0), is_video=True)


@pytest.mark.parametrize("of_a_file", [False, True])
def test_all_frames_are_cropped_flipped_and_changed_alike(of_a_file):
  config = config_of(6, crop=(0.2, 0.6), flip=True, rand_augment=(2, 10))
  still = film(1, size=64) if of_a_file else b""
  record = Record("k", still, (), frames=() if of_a_file else [png(3)] * 6)
  seen = [train_input(record, config, np.random.default_rng(seed), is_video=True) for seed in range(4)]
  for frames in seen:
    assert frames.shape[0] == 6 and (frames == frames[:1]).all()
  assert len({frames.tobytes() for frames in seen}) > 1
