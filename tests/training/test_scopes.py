"""Profiles and programs name the parts of the model by the papers' nouns."""

import re

import pytest

from coca.training.state import Setup
from coca.training.step import TrainStep, batch_shapes
from support.blip_reference import tiny_blip
from support.common import make_mesh, tiny

BOTH = {"image_encoder", "contrastive_loss", "captioning_loss", "optimizer", "ema"}
COCA = BOTH | {"generative_pooler", "contrastive_pooler", "unimodal_decoder", "multimodal_decoder"}
BLIP = BOTH | {"text_encoder", "image_grounded_encoder", "image_grounded_decoder", "matching_loss", "momentum"}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("settings", "nouns"),
  [
    (tiny(optim__ema=0.9), COCA),
    (tiny(optim__ema=0.9, optim__accumulate=2), COCA),
    (tiny_blip(optim__ema=0.9, contrastive__momentum=0.9, contrastive__queue=16), BLIP),
  ],
  ids=["coca", "micro", "blip"],
)
def test_a_step_names_the_parts_of_the_model(settings, nouns):
  setup = Setup(settings, make_mesh())
  lowered = TrainStep(setup).trace(setup.planned, batch_shapes(settings, setup.mesh)).lower()
  text = lowered.as_text(dialect="hlo", debug_info=True)
  names = {scope for op in re.findall(r'op_name="([^"]*)"', text) for scope in re.split(r"[/()]+", op)}
  assert names >= nouns
