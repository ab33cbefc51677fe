"""Counts against CoCa's Table 1, against the traced program and against XLA."""

import dataclasses
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coca.config import (
  Answering,
  Captioning,
  Config,
  Contrastive,
  Data,
  ImageEncoder,
  Masked,
  Matching,
  Med,
  Mesh,
  Model,
  Optim,
  Poolers,
  TextDecoder,
  parse,
)
from coca.devices.batch import batch_arithmetic
from coca.devices.sharding import make_mesh
from coca.objectives.captioning import captioning_loss
from coca.objectives.contrastive import contrastive_loss
from coca.objectives.terms import terms
from coca.planning import arithmetic
from coca.training.flops import flops_per_pair
from coca.training.state import Setup
from coca.training.step import TrainStep, batch_shapes
from support.processes import ROOT

TABLE_1 = {  # image layers, image MLP, decoder layers (each half), decoder MLP, width, heads
  "base": (12, 3072, 12, 3072, 768, 12),
  "large": (24, 4096, 12, 4096, 1024, 16),
  "giant": (40, 6144, 18, 5632, 1408, 16),
}


def table_1(name: str) -> Config:
  layers, mlp, decoder, decoder_mlp, width, heads = TABLE_1[name]
  return Config(
    model=Model(
      image=ImageEncoder(layers=layers, mlp=mlp, width=width, heads=heads),
      text=TextDecoder(unimodal_layers=decoder, multimodal_layers=decoder, mlp=decoder_mlp, width=width, heads=heads),
    )
  )


def small(**changes) -> Config:
  """All widths and lengths differ, so that no two of them can be mistaken for each other."""
  values = {
    "model": Model(
      image=ImageEncoder(size=24, patch=4, layers=3, width=48, mlp=80, heads=4),
      poolers=Poolers(n_query=7),
      text=TextDecoder(vocab=96, length=10, unimodal_layers=2, multimodal_layers=3, width=32, mlp=72, heads=4),
      embed_dim=40,
    ),
    "data": Data(batch=8),
    "captioning": Captioning(chunk=4096),
    **changes,
  }
  return Config(**values)


def model_with(c: Config, **changes) -> Config:
  return dataclasses.replace(c, model=dataclasses.replace(c.model, **changes))


@pytest.mark.parametrize(
  ("name", "image", "text", "poolers", "printed"),
  [
    # Millions. What Table 1's sizes come to by hand: layers of 4 d^2 + 2 d m (multimodal: 8 d^2 + 2 d m) with biases
    # and norms; embedding and softmax of 64,000 x d each. `printed` is Table 1's rounding, image and text.
    ("base", 86.0, 296.8, 4.9, ("86M", "297M")),
    ("large", 303.6, 483.8, 8.7, ("303M", "484M")),
    ("giant", 1011.7, 1180.2, 16.2, ("1B", "1.1B")),
  ],
)
def test_table_1(name, image, text, poolers, printed):
  c = table_1(name)
  counts = {part: n / 1e6 for part, n in arithmetic.parameter_table(c)}
  # Table 1 has no word of these: the projection of [CLS], position embeddings and final norms.
  width = c.model.text.width
  extras = (width * width + c.model.text.length * width) / 1e6
  ours = sum(counts[part] for part in ("embedding", "unimodal", "multimodal", "softmax")) - extras
  assert counts["image_encoder"] == pytest.approx(image, abs=0.06)
  assert ours == pytest.approx(text, abs=0.06)
  # Each of our two poolers has a LayerNorm more than the paper's: 4 d parameters.
  assert counts["generative_pooler"] + counts["contrastive_pooler"] == pytest.approx(poolers, abs=0.06)
  for value, said in zip((counts["image_encoder"], ours), printed, strict=True):
    given = float(said[:-1]) * (1000 if said.endswith("B") else 1)
    # Untied, the giant has 7 % more than 1.1B; tied it has 1.09B. Base and Large fit only if untied.
    assert value == pytest.approx(given, rel=0.08 if name == "giant" else 0.005)
  assert counts["total"] == pytest.approx(sum(counts.values()) - counts["total"])


def test_tied_softmax_and_dual_encoder_drop_their_parts():
  c = small()
  tied = model_with(c, text=dataclasses.replace(c.model.text, tied_softmax=True))
  assert "softmax" not in dict(arithmetic.parameter_table(tied))
  text = dataclasses.replace(c.model.text, multimodal_layers=0)
  dual = dataclasses.replace(model_with(c, text=text), captioning=Captioning(weight=0.0))
  parts = [part for part, _ in arithmetic.parameter_table(dual)]
  assert parts == ["image_encoder", "contrastive_pooler", "embedding", "unimodal", "temperature", "total"]


def parallel(c):
  return model_with(c, poolers=Poolers(kind="parallel", n_query=7))


def open_clip(c, **text):
  """The layout of open_clip's CoCa."""
  return model_with(
    c,
    image=dataclasses.replace(c.model.image, class_token=True, norm_pre=True, norm_post=False, patch_bias=False),
    poolers=Poolers(kind="openclip", n_query=7, norm_inputs=True),
    text=dataclasses.replace(
      c.model.text, cls_position=True, cls_mask="legacy", feedforwards=2, norm_context=True, **text
    ),
  )


def clip(c, **text):
  """The layout of CLIP, with the decoder that it may be given."""
  return model_with(
    c,
    image=dataclasses.replace(c.model.image, class_token=True, norm_pre=True, patch_bias=False),
    poolers=Poolers(kind="class_token", n_query=0),
    text=dataclasses.replace(c.model.text, pool="eos", **text),
  )


def dropping(c):
  return model_with(c, image=dataclasses.replace(c.model.image, patch_dropout=0.5))


def contrastive_only(c):
  return dataclasses.replace(c, captioning=Captioning(weight=0.0))


def siglip(c):
  text = dataclasses.replace(c.model.text, multimodal_layers=0, mask="full", pool="last", projection_bias=True)
  c = model_with(c, text=text, poolers=Poolers(kind="parallel", n_query=0, mlp=56))
  return contrastive_only(dataclasses.replace(c, contrastive=Contrastive(loss="sigmoid")))


def cap(c, **captioning):
  text, poolers = dataclasses.replace(c.model.text, unimodal_layers=0), Poolers(n_query=0)
  return dataclasses.replace(
    model_with(c, text=text, poolers=poolers),
    contrastive=Contrastive(weight=0.0),
    captioning=Captioning(chunk=4096, **captioning),
  )


def blip(momentum=0.9, **changes) -> Config:
  base = small()
  image = dataclasses.replace(base.model.image, class_token=True)
  text = dataclasses.replace(base.model.text, unimodal_layers=3)
  c = model_with(base, kind="blip", image=image, text=text, med=Med(cls=3, encode=4, positions=12))
  return dataclasses.replace(
    c, **{"contrastive": Contrastive(momentum=momentum, queue=22), "matching": Matching(weight=1.0), **changes}
  )


def albef(**changes):
  changes = {"captioning": Captioning(weight=0.0, chunk=4096), "masked": Masked(weight=1.0, most=3)} | changes
  return model_with(blip(**changes), kind="albef")


def frozen(c, *parts):
  return dataclasses.replace(c, optim=Optim(lr_scale=dict.fromkeys(parts, 0.0)))


def runlocal(name: str) -> Config:
  return parse(runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]("runlocal"))


def sharing(c, name):
  return model_with(c, med=dataclasses.replace(c.model.med, sharing=name))


ANSWERS = {
  "contrastive": Contrastive(weight=0.0),
  "captioning": Captioning(weight=0.0, chunk=4096),
  "matching": Matching(),
  "answering": Answering(weight=1.0, answers=3, length=5),
}
# By the formulas of their layers: 2 n k m for a product of n x k and k x m, the same for the gradient of its weights
# unless they are frozen, and for its input's unless nothing before it is trained. Without the projections of the
# poolers' queries, which are made once a batch.
FLOPS = {
  "cascade": (small, 18246528),
  "contrastive only, parallel": (lambda: contrastive_only(parallel(small())), 15458304),
  "three texts": (lambda: small(contrastive=Contrastive(texts=3)), 20753280),
  "open_clip, patch dropout": (lambda: dropping(open_clip(small())), 11793984),
  "open_clip, frozen poolers": (lambda: frozen(open_clip(small()), "image_encoder", "generative_pooler"), 9593280),
  "CLIP with a decoder": (lambda: dropping(clip(small())), 11315904),
  "SigLIP, frozen text": (lambda: frozen(siglip(small()), "embedding", "unimodal"), 14609408),
  "CapPa": (lambda: cap(small(), parallel=0.75), 18160128),
  "matching, no captioning": (lambda: contrastive_only(small(matching=Matching(weight=1.0))), 22983680),
  "BLIP: all losses": (blip, 37231296),
  "BLIP: answers, frozen image encoder": (lambda: frozen(blip(**ANSWERS), "image_encoder"), 12445632),
  "BLIP: partly shared, frozen text encoder": (
    lambda: frozen(sharing(blip(), "all_but_cross_attention"), "text_encoder"),
    35498688,
  ),
  "ALBEF": (albef, 40833984),
  "MaMMUT": (lambda: runlocal("mammut_base"), 35682048),
  "a classifier": (lambda: runlocal("vit_base"), 8494464),
  "SimVLM": (lambda: runlocal("simvlm_base"), 63346176),
  "LEMON": (lambda: runlocal("lemon_base"), 23256576),
  "VL-T5": (lambda: runlocal("vl_t5_base"), 40815104),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", FLOPS)
def test_flops_are_those_of_the_formulas(variant):
  make, by_formula = FLOPS[variant]
  assert flops_per_pair(make())["total"] == pytest.approx(by_formula, rel=7e-4)


@pytest.mark.slow
def test_what_is_computed_again_is_no_model_flops():
  changes = {"optim": Optim(accumulate=2), "captioning": Captioning(chunk=16)}
  again = model_with(small(**changes), remat="full")
  assert flops_per_pair(again) == pytest.approx(flops_per_pair(small()))


@pytest.mark.slow
def test_parts_of_blip_come_in_the_order_of_the_paper():
  assert [part for part, _ in arithmetic.parameter_table(blip())] == [
    "image_encoder",
    "image_projection",
    "text_encoder",
    "text_projection",
    "text_decoder",
    "caption_head",
    "temperature",
    "matching_head",
    "total",
  ]
  assert set(flops_per_pair(blip())) == {
    "image_encoder",
    "text_encoder",
    "text_decoder",
    "momentum",
    "contrastive_loss",
    "matching_head",
    "softmax",
    "rest",
    "total",
  }
  text = arithmetic.describe(blip(), 2)
  held = arithmetic.state_bytes(blip(), 2)
  assert held["queue"] == 22 * (2 * 40 * 4 + 2 * 4 + 4) + 4  # embeddings, hashes, weights, the next place
  assert f"momentum encoders {held['momentum'] / 2**20:,.1f} MiB" in text and "queue 0.0 MiB" in text


@pytest.mark.slow
def test_flops_against_xla():
  c = model_with(
    small(data=Data(batch=16)),
    image=ImageEncoder(size=48, patch=8, layers=2, width=128, mlp=512, heads=4),
    text=TextDecoder(vocab=512, length=16, unimodal_layers=2, multimodal_layers=2, width=128, mlp=512, heads=4),
    embed_dim=0,
    unroll=2,  # a loop's body would be counted once
  )
  setup = Setup(c, make_mesh(devices=jax.devices()[:1]))
  cost = TrainStep(setup).trace(setup.planned, batch_shapes(c, setup.mesh)).lower().compile().cost_analysis()
  # XLA counts elementwise work and the optimizer too.
  assert 1.0 < cost["flops"] / (16 * flops_per_pair(c)["total"]) < 1.06


def test_batch_arithmetic():
  c = small(data=Data(batch=96), optim=Optim(accumulate=3), mesh=Mesh(data=2, fsdp=2, tensor=2))
  assert batch_arithmetic(c, 8) == (8, 4, 3, 96)
  with pytest.raises(ValueError, match=r"batch 90 cannot be split over 4 devices .* multiple of 12, such as 96"):
    batch_arithmetic(dataclasses.replace(c, data=Data(batch=90)), 8)
  with pytest.raises(ValueError, match=r"config.mesh data=2 fsdp=2 tensor=2 does not fit 4 devices"):
    batch_arithmetic(c, 4)


@pytest.mark.slow
def test_planned_state_is_that_of_a_real_one():
  c = small(optim=Optim(ema=0.9), mesh=Mesh(data=1, fsdp=2), steps="10")
  mesh = make_mesh(c.mesh, jax.devices()[:2])
  setup = Setup(c, mesh)
  planned, real = setup.planned, setup.init_state()
  assert jax.tree.structure(planned) == jax.tree.structure(real)
  for p, r in zip(jax.tree.leaves(planned), jax.tree.leaves(real), strict=True):
    assert (p.shape, p.dtype) == (r.shape, r.dtype)
    assert p.sharding.is_equivalent_to(r.sharding, r.ndim)

  def on_first_device(x):
    return sum(shard.data.nbytes for shard in x.addressable_shards if shard.device == mesh.devices.flat[0])

  held = {name: sum(map(on_first_device, jax.tree.leaves(getattr(real, name)))) for name in ("params", "opt", "ema")}
  assert arithmetic.state_bytes(c, 2) == held


@pytest.fixture(scope="module")
def contrastive_losses():
  """Settings, and the loss of embeddings that are all zeros."""
  found, hashes = [], jnp.arange(32, dtype=jnp.uint32).reshape(16, 2)
  for c in (
    Contrastive(),
    Contrastive(directions="sum"),
    Contrastive(loss="sigmoid", bias=-3.0),
    Contrastive(loss="sigmoid_ring", bias=0.5),
  ):
    temperature = {"log_scale": jnp.float32(2), "logit_bias": jnp.float32(c.bias)}
    loss = jax.jit(lambda x, c=c, t=temperature: contrastive_loss(x, x, hashes, jnp.ones(16), t, c))
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
      found.append((c, float(loss(jnp.zeros((16, 4))))))
  return found


@pytest.mark.parametrize("tokens", ["mean", "per_text", "sum"])
def test_first_losses_are_those_of_a_model_that_tells_nothing_apart(contrastive_losses, tokens):
  captioning, text = Captioning(tokens=tokens), small().model.text
  with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
    nll, count = jax.jit(
      lambda states, kernel: captioning_loss(
        states, kernel, jnp.ones((16, text.length), jnp.int32), jnp.ones(16), captioning
      )
    )(jnp.zeros((16, text.length, 4)), jnp.zeros((4, text.vocab)))
  each = text.length - 1 if tokens == "sum" else 1
  for contrastive, loss in contrastive_losses:
    settings = small(data=Data(batch=16), contrastive=contrastive, captioning=captioning)
    first = {term.name: term.at_start() for term in terms(settings)}
    np.testing.assert_allclose(first["contrastive"][0], loss, rtol=1e-5)
    np.testing.assert_allclose(first["captioning"][0] * each, nll / count, rtol=1e-5)
    assert ("each token" in first["captioning"][1]) == (tokens == "sum")


@pytest.mark.slow
def test_description_needs_no_devices():
  c = dataclasses.replace(table_1("base"), name="CoCa-Base", mesh=Mesh(fsdp=64))
  text = arithmetic.describe(c, 2048)
  for expected in (
    "CoCa-Base",
    "85,999,872",
    "2048 devices",
    "data 32 x fsdp 64 x tensor 1",
    "32 per device x 2,048 devices x 1 accumulated = 65,536",
    "500,000 steps, 32,768,000,000 pairs",
    "contrastive 1 x 11.09 (ln 65,536), captioning 2 x 11.07 (ln 64,000)",
  ):
    assert expected in text
  with pytest.raises(ValueError, match=r"768 cannot be split over 2048 devices; choose a config.mesh.fsdp"):
    arithmetic.describe(dataclasses.replace(c, mesh=Mesh(data=1, fsdp=-1)), 2048)


@pytest.mark.slow
def test_flops_scale_with_the_batch_only_in_the_contrastive_loss():
  one, two = (flops_per_pair(small(data=Data(batch=n))) for n in (8, 16))
  changed = {part for part in one if not np.isclose(one[part], two[part], rtol=0.01)}
  assert changed == {"contrastive_loss"}
  assert two["contrastive_loss"] == 2 * one["contrastive_loss"]
