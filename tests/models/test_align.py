"""ALIGN: against transformers' AlignModel, on one device and on eight; counts; a step with batch norms, and resume."""

import dataclasses
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from coca.config import EfficientNet, parse, to_dict
from coca.devices.host import put_batch
from coca.devices.trees import flat
from coca.models.abstract import abstract_model
from coca.storage.checkpoint import Checkpoints
from coca.training.state import Setup
from coca.training.step import TrainStep
from support.align import align_params, tiny_align
from support.common import make_mesh, new_state, pairs

# Of `align_params` and `pairs(tiny_align(), 8)`, in float64: transformers 5.24.0 with torch 2.13.0, the token types'
# embeddings 0, `text` with token 3 in the first place. The statistics are those of a forward pass with `train()` and
# batch norms of momentum 1, with torch's correction of the variance taken back.
GOLDEN = np.load(Path(__file__).parent / "golden" / "align.npz")
LAST, SCANNED = "image_encoder/stage_7/first/norm_reduce", "image_encoder/stage_6/layers/norm_depthwise"


def close(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_outputs_and_statistics_are_those_of_transformers_on_any_mesh(mesh):
  settings, mesh = tiny_align(), make_mesh(*mesh)
  graphdef, _ = abstract_model(settings)

  @jax.jit
  def run(params, image, text):
    model = nnx.merge(graphdef, params)
    return model.embed_image(image), model(image, text, key=jax.random.key(0))

  batch = put_batch({name: pairs(settings, 8)[name] for name in ("image", "text")}, mesh)
  with jax.set_mesh(mesh):
    image, out = run(align_params(settings), **batch)
  close(image, GOLDEN["image"])
  close(out.text, GOLDEN["text"])
  close(out.image, GOLDEN["image_in_training"])
  stats = flat(out.stats)
  close(stats[f"{LAST}/mean"], GOLDEN["last_mean"])
  close(stats[f"{LAST}/variance"], GOLDEN["last_variance"])
  close(stats[f"{SCANNED}/mean"][0], GOLDEN["scanned_mean"])
  assert set(stats) == {name for name in flat(abstract_model(settings)[1]) if name.endswith(("/mean", "/variance"))}


@pytest.mark.parametrize(
  ("width", "depth", "printed"),
  [(1.0, 1.0, 5_288_548), (2.0, 3.1, 66_347_960), (4.3, 5.3, 480_309_308)],
  ids=["B0", "B7", "L2"],
)
def test_parameter_counts_are_those_of_efficientnet(width, depth, printed):
  """Trainable ones of Keras' B0 and B7, and of timm's L2, which have a 1x1 convolution, a norm and 1,000 classes."""
  out = EfficientNet(width=width, depth=depth).stages[-1].n_out
  settings = tiny_align(model__efficientnet__width=width, model__efficientnet__depth=depth, model__embed_dim=out)
  tower = flat(abstract_model(settings)[1]["image_encoder"])
  count = sum(math.prod(x.shape) for n, x in tower.items() if not n.endswith(("/mean", "/variance")))
  assert count + (out + 2) * 4 * out + (4 * out + 1) * 1000 == printed


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model__embed_dim": 24}, "config.model.embed_dim is 24; of kind 'align' it is the width of the image tower, 160"),
    ({"optim__accumulate": 2}, "config.optim.accumulate has to be 1 for config.model.kind 'align', not 2"),
    ({"optim__lr_scale": {"image_encoder": 0.0}}, "freezes the 'image_encoder'"),
    ({"model__text__multimodal_layers": 1}, "is trained by the contrastive loss alone"),
    ({"model__image__patch_dropout": 0.5}, "patch_dropout has to be 0"),
    ({"contrastive__loss": "sigmoid"}, "label_smoothing needs config.contrastive.loss 'softmax'"),
    ({"data__resize": 63}, "config.data.resize 63 needs to be config.model.image.size 64 or more"),
  ],
)
def test_what_does_not_go_together_is_named(changes, message):
  with pytest.raises(ValueError, match=message):
    tiny_align(**changes)


@pytest.mark.slow
def test_a_step_moves_statistics_and_a_run_goes_on_bit_for_bit(tmp_path):
  settings, mesh = tiny_align(optim__ema=0.5, optim__decay_mask="all", optim__clip=1.0), make_mesh(4, 2, 1)
  draft = to_dict(settings)
  draft.model.efficientnet.drop_connect, draft.model.med.dropout = 0.5, 0.1
  settings = parse(draft)
  setup = Setup(settings, mesh)
  step, before = TrainStep(setup), new_state(settings, mesh, align_params(settings))
  moments = [name for name, x in flat(before.opt).items() if x.ndim]
  assert moments and not any(name.endswith(("/mean", "/variance")) for name in moments)
  batches = [pairs(settings, seed=i) for i in range(3)]
  batches[1]["weight"] = np.where(np.arange(16) == 7, np.nan, batches[1]["weight"])

  def train(state, batches):
    for batch in batches:
      state, _ = step(state, put_batch(batch, mesh))
    return state

  old = flat(jax.tree.map(np.array, before.params))
  first = train(before, batches[:1])
  kept = jax.tree.map(np.array, first)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, first, {})
  checkpoints.close()
  skipped = jax.tree.map(np.array, train(first, batches[1:2]))
  jax.tree.map(np.testing.assert_array_equal, (skipped.params, skipped.ema), (kept.params, kept.ema))
  checkpoints = Checkpoints(tmp_path)
  again, _, _ = checkpoints.restore(setup.planned)
  checkpoints.close()
  here = train(jax.device_put(skipped, setup.shardings), batches[2:])
  there = train(again, batches[1:])
  jax.tree.map(np.testing.assert_array_equal, dataclasses.asdict(here), dataclasses.asdict(there))

  # The stem's norm sees neither dropout nor stochastic depth.
  new, ema = flat(kept.params), flat(kept.ema)
  graphdef, _ = abstract_model(settings)
  run = jax.jit(lambda params, x: nnx.merge(graphdef, params).image_encoder.stem(x))
  x = run(align_params(settings), batches[0]["image"] / np.float32(127.5) - 1)
  for name, value in (("mean", x.mean((0, 1, 2))), ("variance", x.var((0, 1, 2)))):
    name = f"image_encoder/norm_stem/{name}"
    close(new[name], 0.99 * old[name] + 0.01 * value)
    close(ema[name], 0.5 * old[name] + 0.5 * new[name])
