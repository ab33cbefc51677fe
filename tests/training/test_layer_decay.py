"""The rate of every parameter, against tables written out by hand for each kind of model."""

import jax
import numpy as np
import pytest

from coca.devices.trees import flat
from coca.models.abstract import abstract_model
from coca.training.layer_decay import layer_factors
from coca.training.optim import idle, make_optimizer
from support.blip_reference import ALBEF, tiny_blip
from support.common import tiny

IMAGE = {"patches": 3, "positions": 3, "stack/layers": [2, 1]}
IMAGE = {f"image_encoder/{name}": x for name, x in IMAGE.items()}
UNIMODAL = {"embedding": 3, "unimodal/cls": 3, "unimodal/stack/layers": [2, 1]}
BERT = {"embedding": 3, "norm": 3, "stack/layers": [2, 1]}
REGIONS = dict.fromkeys(("region_projection", "region_norm", "box_projection", "box_norm", "image_order"), 3)

GROUPS = {"unimodal_layers": 4, "multimodal_layers": 4, "cross_every": 2, "two_passes": True}
LEMON = {"kind": "lemon", "med__mask": 5, "regions__width": 6, "regions__count": 3, "text__unimodal_layers": 0}
LEMON |= {"med__positions": 48}
LEMON = {f"model__{name}": x for name, x in LEMON.items()} | {"masked__weight": 1.0, "masked__draw": "number"}
ALONE = {"contrastive__weight": 0.0}
SIMVLM = {"size": 32, "patch": 16, "width": 48}
SIMVLM = {f"model__image__{name}": x for name, x in SIMVLM.items()} | {"model__stem__width": 4, **ALONE}
T5 = {"width": 6, "count": 3, "tags": 4}
T5 = {f"model__regions__{name}": x for name, x in T5.items()} | {"model__text__vocab": 300, "model__med__positions": 48}
T5 |= {"model__activation": "relu", **ALONE}

# How many times the decay is taken, of what begins like this; 0 times of all else.
MODELS = {
  "coca": (
    tiny,
    {"model__image__class_token": True, "model__image__norm_pre": True},
    IMAGE
    | {"image_encoder/class_token": 3, "image_encoder/norm_pre": 3}
    | {"embedding": 5, "unimodal/cls": 5, "unimodal/stack/layers": [4, 3], "multimodal/stack/layers": [2, 1]},
  ),
  "no loss reads the multimodal layers": (
    tiny,
    {"captioning__weight": 0.0},
    IMAGE | UNIMODAL | {"multimodal/stack/layers": [2, 1]},
  ),
  "mammut": (
    tiny,
    {f"model__text__{name}": x for name, x in GROUPS.items()},
    IMAGE
    | {"embedding": 5, "unimodal/cls": 5}
    | {"multimodal/stack/layers/before/0": [4, 2], "multimodal/stack/layers/last": [3, 1]},
  ),
  "blip": (
    tiny_blip,
    {},
    IMAGE
    | {"image_encoder/class_token": 3, "text_encoder/stack/layers": [2, 1]}
    | {f"text_decoder/{name}": x for name, x in BERT.items()},
  ),
  "albef": (
    tiny_blip,
    ALBEF,
    IMAGE
    | {"image_encoder/class_token": 3, "text_encoder/embedding": 5, "text_encoder/norm": 5}
    | {"text_encoder/stack/layers": [4, 3], "fusion/layers": [2, 1]},
  ),
  "lemon": (
    tiny_blip,
    LEMON | ALONE | {"captioning__weight": 0.0, "matching__weight": 0.0},
    {f"text_decoder/{name}": x for name, x in BERT.items()} | {"segments": 3, "region_projection": 3, "region_norm": 3},
  ),
  "simvlm": (
    tiny,
    SIMVLM | {"model__kind": "simvlm", "model__text__unimodal_layers": 0},
    {"stem": 3, "positions": 3, "embedding": 3, "encoder/layers": [2, 1], "decoder/stack/layers": [2, 1]},
  ),
  "vl_t5": (
    tiny,
    T5 | {"model__kind": "vl_t5"},
    REGIONS | {"words": 3, "encoder/layers": [2, 1], "decoder/layers": [2, 1]},
  ),
  "vl_bart": (
    tiny,
    T5 | {"model__kind": "vl_bart", "model__activation": "gelu"},
    REGIONS | {f"{tower}/{name}": x for tower in ("encoder", "text_decoder") for name, x in BERT.items()},
  ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_rate_of_every_parameter(name):
  """Each line of a table is of some parameter."""
  make, changes, times = MODELS[name]
  config = make(**changes, optim__layer_decay=0.5)
  params = flat(abstract_model(config)[1])
  factors, seen = layer_factors(config, params, idle(config)), set()
  assert set(factors) == set(params)
  for path, factor in factors.items():
    begin = next((x for x in times if f"{path}/".startswith(f"{x}/")), None)
    seen.add(begin)
    expected = np.power(0.5, times.get(begin, 0))
    axes = params[path].ndim - 1 if expected.ndim else 0  # a vector along the first one
    np.testing.assert_array_equal(factor, expected.reshape(expected.shape + (1,) * axes), err_msg=path)
  assert seen >= set(times)


def test_state_is_the_same_with_it_and_frozen_parts_have_none():
  """A checkpoint of one fits the other."""
  plain, decayed = (tiny(optim__lr_scale={"image_encoder": 0.0}, optim__layer_decay=x) for x in (1.0, 0.5))
  params = abstract_model(plain)[1]
  states = [jax.eval_shape(make_optimizer(c, 10, params).init, params) for c in (plain, decayed)]
  assert states[0] == states[1]
  assert not [path for path in flat(states[1]) if "image_encoder" in path]


@pytest.mark.parametrize("value", [0.0, -0.5, 1.5])
def test_it_is_a_share_above_0(value):
  with pytest.raises(ValueError, match=r"config\.optim\.layer_decay"):
    tiny(optim__layer_decay=value)
