"""Every file in configs/ builds, as it is and with `runlocal`, and its training step lowers on 8 devices."""

import dataclasses
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coca.capfilt import settings as capfilt
from coca.config import parse
from coca.config.durations import in_steps
from coca.data.sources import open_source
from coca.data.tokenizers import sentencepiece, wordpiece
from coca.devices.batch import batch_arithmetic
from coca.devices.sharding import make_mesh
from coca.devices.trees import flat
from coca.evals import build
from coca.interop.open_clip.models import MODELS
from coca.interop.open_clip.settings import to_config
from coca.models.abstract import abstract_model
from coca.planning import arithmetic
from coca.storage.workdir import read_config, write_run
from coca.training.optim import idle, make_optimizer
from coca.training.state import Setup
from coca.training.step import TrainStep, batch_shapes
from support.common import tiny

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
FILES = sorted(set(CONFIGS.glob("*.py")) - {CONFIGS / "capfilt.py"})  # which is no training run: capfilt/test_job.py
PAPER = ["coca_base", "coca_large", "coca_giant"]

FROM_BLIP = ("blip_retrieval", "blip_caption", "blip_vqa")
OTHERS_FROM_BLIP = ("blip_nlvr2", "blip_visdial")
every_file = pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
full_and_local = pytest.mark.parametrize("arg", [None, "runlocal"], ids=["full", "runlocal"])


def save(folder, config=None, **changes):
  """A model directory without parameters."""
  folder.mkdir(exist_ok=True)
  tokens = sentencepiece.train([f"a word number {i}" for i in range(40)], 60)
  tokens.save(folder / tokens.file)
  write_run(config or tiny(**changes), tokens, folder)


def get_config(name, arg=None):
  """As ml_collections does it: by path, the working directory being anywhere."""
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """The directory of a small CoCa."""
  folder = tmp_path_factory.mktemp("model")
  save(folder)
  return folder


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
  """The directory of a small BLIP."""
  folder = tmp_path_factory.mktemp("blip")
  tokens = wordpiece.train(["a picture of word number one and two"] * 4, 100)
  tokens.save(folder / tokens.file)
  write_run(parse(get_config("blip_base", "runlocal")), tokens, folder)
  return folder


@pytest.fixture(scope="module")
def albef(blip, tmp_path_factory):
  """The directory of a small ALBEF."""
  folder = tmp_path_factory.mktemp("albef")
  tokens = wordpiece.find(blip, 100)
  tokens.save(folder / tokens.file)
  write_run(parse(get_config("albef_base", "runlocal")), tokens, folder)
  return folder


@pytest.fixture(scope="module")
def named(model, blip, albef):
  """The settings of a config file; one that starts from a model does so from `start`, else from the small one."""

  def named(name, arg=None, start=None):
    if name.startswith(("finetune", "capfilt_", "lit_")):
      start = start or model
    elif name in FROM_BLIP + OTHERS_FROM_BLIP:
      start = start or blip
    elif name == "albef_retrieval":
      start = start or albef
    return parse(get_config(name, ",".join(filter(None, (arg, start and f"init_from={start}")))))

  return named


def test_a_classifier_of_any_vit(named, blip, albef):
  """The encoder's parameters are those of BLIP's and ALBEF's, by name and shape, and the text side is gone."""
  for start in (blip, albef):
    config = named("finetune_classify", "cache=kept", start)
    there, here = (flat(abstract_model(c)[1]) for c in (read_config(start), config))
    encoder = {name: x.shape for name, x in there.items() if name.startswith("image_encoder/")}
    assert encoder and {name: x.shape for name, x in here.items() if not name.startswith("class_")} == encoder
    assert config.data.embeddings == "kept" and config.optim.lr_scale == {"image_encoder": 0.0}


def test_all_are_here():
  assert {f.stem for f in FILES} >= {
    "coca_tiny",
    "coca_base",
    "coca_large",
    "coca_giant",
    "coca_base_hires",
    "clip_base",
    "siglip_base",
    "cap_base",
    "mammut_base",
    "openvision_base",
    "vit_base",
    "lit_base",
    "unicl_base",
    "finetune_classify",
    "finetune_snli_ve",
    "finetune_nlvr2",
    "finetune_video",
    "lemon_base",
    "vl_t5_base",
    "vl_bart_base",
    "simvlm_base",
    "align_base",
    "blip_base",
    "blip_large",
    "blip_tiny",
    "albef_base",
    "albef_retrieval",
    *FROM_BLIP,
    *OTHERS_FROM_BLIP,
  }


@every_file
@full_and_local
def test_builds(file, arg, tmp_path, monkeypatch, named):
  monkeypatch.chdir(tmp_path)
  config = named(file.stem, arg)
  assert config.name == file.stem + ("_runlocal" if arg else "")
  assert f"--config=configs/{file.name}" in file.read_text()
  assert batch_arithmetic(config, 8).per_device * 8 == config.data.batch
  monkeypatch.setattr(arithmetic, "flops_per_pair", lambda _: {"total": 1.0})  # they take a trace of the step
  assert f"{batch_arithmetic(config, 1).total:,} pairs a step" in arithmetic.describe(config, 1)
  assert config.data.sources
  assert config.evals
  for settings in config.evals.values():
    assert not settings.pixel_neighbours or settings.pixel_neighbours in config.data.sources


@pytest.mark.parametrize("name", ["clip_base", "siglip_base", "cap_base", "albef_base", "mammut_base", "align_base"])
def test_the_family_in_small_is_made_of_scenes(name, named):
  config, whole = named(name, "tiny"), named(name)
  theirs = {
    name: dataclasses.replace(source, scenes=dataclasses.replace(source.scenes, styles=()))
    for name, source in named("coca_tiny").data.sources.items()
  }
  assert config.data.sources == theirs and config.evals
  assert config.model.poolers.kind == whole.model.poolers.kind and config.contrastive.loss == whole.contrastive.loss
  assert {e.source.split for e in config.evals.values()} == {"scenes_val", "scenes_new_style"}


@pytest.mark.parametrize("arg", [None, "tiny", "runlocal"])
def test_simvlm_mixes_texts_alone_with_pairs(arg, named):
  """512 to 4,096."""
  sources = named("simvlm_base", arg).data.sources
  alone = [source.weight for source in sources.values() if source.text_only]
  assert len(alone) == 1 and sum(source.weight for source in sources.values()) == pytest.approx(9 * alone[0])


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_models_on_pairs_of_ones_own(name, named):
  config = named(name, "pairs=gs://bucket/pairs/*.tar")
  assert [(source.kind, source.path) for source in config.data.sources.values()] == [
    ("webdataset", "gs://bucket/pairs/*.tar")
  ]
  assert not config.evals and config.mesh.fsdp == -1


@pytest.mark.parametrize("name", ["capfilt_captioner", "capfilt_filter"])
def test_capfilts_fine_tunes_of_a_blip_are_others(name, blip):
  with pytest.raises(ValueError, match=r"is a BLIP: .* configs/blip_caption\.py, .*configs/blip_retrieval\.py"):
    get_config(name, f"init_from={blip}")


def test_a_fine_tune_takes_over_the_limits_of_the_temperature(tmp_path):
  save(tmp_path, contrastive__max_scale=0.0, contrastive__min_scale=1.0)
  config = parse(get_config("finetune_contrastive", f"init_from={tmp_path}"))
  assert (config.contrastive.max_scale, config.contrastive.min_scale) == (0, 1)


@every_file
def test_unknown_arguments_are_refused(file, named):
  with pytest.raises(ValueError, match="'runlokal' is unknown; this config takes: runlocal=False"):
    named(file.stem, "runlokal")


@pytest.mark.slow
@every_file
def test_lowers_on_8_devices(file, named):
  config = named(file.stem)
  mesh = make_mesh(config.mesh)
  setup = Setup(config, mesh)
  lowered = TrainStep(setup).trace(setup.planned, batch_shapes(config, mesh)).lower()
  new_state, metrics = lowered.out_info
  assert jax.tree.map(lambda x: (x.shape, x.dtype), new_state) == jax.tree.map(
    lambda x: (x.shape, x.dtype), setup.planned
  )
  losses = {
    name for name in ("contrastive", "captioning", "matching", "answering", "masked") if getattr(config, name).weight
  }
  assert {"loss", "grad_norm", *losses} <= set(metrics)


@every_file
def test_runlocal_needs_no_download(file, named):
  """All it reads is in the package, is found, and makes a small model."""
  config = named(file.stem, "runlocal")
  for settings in config.data.sources.values():
    assert settings.kind == "builtin"
    assert len(open_source(settings)) >= 1000
  sources, neighbours = build.open_sources(config)
  assert set(sources) == set(config.evals)
  assert set(neighbours) == {e.pixel_neighbours for e in config.evals.values() if e.pixel_neighbours}
  assert config.data.batch * int(config.steps) < 4000
  assert dict(arithmetic.parameter_table(config))["total"] < 1e6


@pytest.mark.parametrize("name", PAPER)
def test_recipe_is_that_of_the_paper(name, named):
  """CoCa section 4.1; the sizes are checked against Table 1's counts in test_plan.py."""
  c = named(name)
  assert (c.model.image.size, c.model.image.patch, c.model.poolers.n_query) == (288, 18, 256)
  assert c.model.poolers.kind == "cascade"
  assert c.model.text.vocab == 64_000
  assert (c.data.batch, c.steps) == (65_536, "500000")
  assert (c.optim.name, c.optim.lr, c.optim.schedule, c.optim.warmup) == ("adafactor", 8e-4, "linear", "2%")
  assert (c.optim.b1, c.optim.b2, c.optim.weight_decay, c.optim.clip) == (0.9, 0.999, 0.01, 0.0)
  assert (c.captioning.weight, c.contrastive.weight, c.contrastive.temperature) == (2.0, 1.0, 0.07)
  assert c.data.sources["labels"].weight == c.data.sources["alt_text"].weight
  assert len(c.data.sources) == 2
  assert c.data.sources["labels"].text == "labels"
  assert len(set(c.evals["imagenet"].templates)) == 80
  assert c.data.sources["labels"].prompts == c.evals["imagenet"].templates


def test_entailment_is_that_of_table_10(named):
  c = named("finetune_snli_ve")
  assert (c.steps, c.data.batch, c.optim.warmup) == ("50000", 128, "1000")
  assert (c.optim.name, c.optim.schedule, c.optim.weight_decay, c.optim.clip) == ("adafactor", "cosine", 0.1, 1.0)
  rates = {name: c.optim.lr * scale for name, scale in c.optim.lr_scale.items()}
  assert c.optim.lr == 5e-5 and rates == pytest.approx({"class_pooler": 1e-3, "class_head": 1e-3})
  assert (c.data.rand_augment, c.classification.classes, c.classification.pool) == ((1, 10), 3, "text")
  assert (c.classification.weight, c.captioning.weight, c.contrastive.weight) == (1, 0, 0)


def test_statements_about_two_images_are_those_of_table_10(named):
  c = named("finetune_nlvr2")
  assert (c.steps, c.data.batch, c.optim.warmup, c.data.rand_augment) == ("50000", 64, "1000", (0, 0))
  assert (c.optim.name, c.optim.schedule, c.optim.weight_decay, c.optim.clip) == ("adafactor", "cosine", 0.1, 1.0)
  rates = {name: c.optim.lr * scale for name, scale in c.optim.lr_scale.items()}
  assert c.optim.lr == 2e-5 and rates == pytest.approx({"class_pooler": 5e-4, "class_head": 5e-4})
  assert (c.classification.classes, c.classification.images, c.classification.pool) == (2, 2, "text")


@pytest.mark.parametrize(
  ("arg", "classes", "smoothing", "rate"),
  [("data=kinetics700", 700, 0.1, 1.0), ("data=moments,frozen", 339, 0.0, 0.0)],
)
def test_action_recognition_is_that_of_table_9(arg, classes, smoothing, rate, named):
  c = named("finetune_video", arg)
  assert (c.steps, c.data.batch, c.optim.warmup, c.data.rand_augment) == ("120000", 128, "1000", (0, 0))
  assert (c.optim.name, c.optim.schedule, c.optim.weight_decay, c.optim.clip) == ("adafactor", "cosine", 0.0, 1.0)
  assert (c.optim.lr, c.optim.ema, c.optim.lr_scale) == (5e-4, 0.9999, {"image_encoder": rate})
  assert (c.classification.classes, c.classification.label_smoothing) == (classes, smoothing)
  assert (c.classification.images, c.classification.pool) == (16, "attention") and not c.classification.frame_positions
  assert (c.classification.weight, c.captioning.weight, c.contrastive.weight) == (1, 0, 0)
  assert [s.videos for s in c.data.sources.values()] == [True] and c.evals["actions"].frames == 16


@pytest.mark.parametrize(("name", "millions"), [("coca_base", 388.3), ("coca_large", 797.1), ("coca_giant", 2210.3)])
def test_sizes(name, millions, named):
  """Table 1's 383M, 787M and 2.1B, with poolers, projection and position embeddings, which it leaves out."""
  assert arithmetic.parameter_table(named(name))[-1][1] / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize(("name", "published"), [("clip_base", 149_620_737), ("siglip_base", 203_155_970)])
def test_sizes_of_clip_and_siglip_are_the_published_ones(name, published, named):
  """Those of OpenAI's ViT-B/16 and of Google's siglip-base-patch16-224, to the last parameter."""
  assert arithmetic.parameter_table(named(name))[-1][1] == published
  assert (CONFIGS / f"{name}.py").read_text().count(f"{published:,}") == 2


def test_size_of_albef_is_the_published_one(named):
  """By hand, and section 4.1's 85.8M of the ViT and 123.7M of BERT; [DEC] and [ENC] are here in place of segments."""
  d, m, words = 768, 3072, 30_522
  layer = 4 * (d * d + d) + 2 * d * m + m + d + 4 * d
  vit = 768 * d + d + (256 + 2) * d + 12 * layer + 2 * d
  bert = (words + 512 + 2) * d + 2 * d + 12 * layer + 6 * (4 * (d * d + d) + 2 * d) + d * d + 3 * d + words
  found = dict(arithmetic.parameter_table(named("albef_base")))
  assert found["image_encoder"] == vit and round(vit / 1e6, 1) == 85.8
  assert found["text_encoder"] + found["fusion"] + found["masked_head"] == bert + 2 and round(bert / 1e6, 1) == 123.7
  total = vit + bert + 2 + 2 * (d * 256 + 256) + 2 * d + 2 + 1
  assert found["total"] == total and f"{total:,}" in (CONFIGS / "albef_base.py").read_text()


@pytest.mark.parametrize(("arg", "mask"), [(None, 0), ("parallel", 768)])
def test_size_of_the_captioner_alone(arg, mask, named):
  """By hand: ViT-B/16 at 224, six layers of 12 d^2 + 4 d m / 2 with 3 norms, 32,000 words twice; biases apart."""
  d, words = 768, 32_000
  vit = 768 * d + d + 196 * d + 12 * (4 * (d * d + d) + 2 * d * 3072 + 3072 + d + 4 * d) + 2 * d
  theirs = vit + words * d + 64 * d + 6 * (8 * d * d + 2 * d * 3072 + 3 * d) + 2 * d + words * d + words
  biases = 6 * (8 * d + 3072 + d + 3 * d)
  assert arithmetic.parameter_table(named("cap_base", arg))[-1][1] == theirs - words + biases + mask
  said = (CONFIGS / "cap_base.py").read_text()
  for number in (theirs, theirs - words + biases, biases):
    assert f"{number:,}" in said


@pytest.mark.parametrize(
  ("size", "millions"),
  [
    ("tiny", 13.4),
    ("tiny12", 18.1),
    ("small", 34.3),
    ("small24", 55.6),
    ("base", 111.7),
    ("base24", 196.7),
    ("large", 338.3),
    ("huge", 675.4),
  ],
)
def test_sizes_of_lemon_are_those_of_table_2(size, millions, named):
  """With BERT's pooler, which captions do not use, and without two of BLIP's tokens."""
  c = named("lemon_base", f"size={size}")
  d, total = c.model.text.width, arithmetic.parameter_table(c)[-1][1]
  assert (total + d * d + d - 2 * (d + 1)) / 1e6 == pytest.approx(millions, abs=0.051)
  assert size != "base" or f"{total:,} here" in (CONFIGS / "lemon_base.py").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siglip_base", "cap_base"])
def test_weight_decay_is_a_step_s_at_the_highest_rate(name, named):
  """big_vision adds its 1e-4 behind the learning rate: the peak takes 1e-4 off a weight that has no gradient."""
  c = named(name)
  c = dataclasses.replace(c, optim=dataclasses.replace(c.optim, warmup="0"))  # the first step is the peak
  params = {"head": {"kernel": jnp.full((3, 5), 2.0)}}
  optimizer = make_optimizer(c, 1000, params)
  updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
  np.testing.assert_allclose(updates["head"]["kernel"], -1e-4 * 2, rtol=1e-6)


def test_clip_is_the_model_that_open_clips_weights_are_read_into(named):
  c, converted = named("clip_base"), to_config(MODELS["ViT-B-16-quickgelu"])
  assert dataclasses.replace(c.model, embed_dim=c.model.text.width, remat="none") == dataclasses.replace(
    converted.model, poolers=c.model.poolers
  )
  assert c.model.poolers.kind == converted.model.poolers.kind == "class_token"
  assert c.model.poolers.n_query == converted.model.poolers.n_query == 0
  assert in_steps(c.steps, c.data.batch) == 32 * 400e6 // 32_768
  assert (c.optim.b2, c.optim.eps, c.optim.weight_decay, c.optim.lr, c.optim.warmup) == (0.98, 1e-6, 0.2, 5e-4, "2000")
  assert (c.contrastive.temperature, c.contrastive.max_scale, c.contrastive.directions) == (0.07, 100, "mean")
  assert c.data.tokenizer and not named("clip_base", "runlocal").data.tokenizer


def test_runlocal_keeps_what_makes_siglip_and_cappa_themselves(named):
  siglip = named("siglip_base", "runlocal")
  assert (siglip.model.text.mask, siglip.model.text.pool, siglip.model.poolers.mlp) == ("full", "last", 256)
  loss = siglip.contrastive
  assert (loss.loss, loss.bias, loss.temperature) == ("sigmoid_ring", -10, 0.1)
  cappa = named("cap_base", "parallel,runlocal")
  assert (cappa.name, cappa.captioning.parallel, cappa.model.text.unimodal_layers) == ("cappa_base_runlocal", 0.75, 0)
  assert (cappa.contrastive.weight, cappa.model.poolers.n_query, cappa.evals["twemoji"].kind) == (0, 0, "captions")
  assert named("cap_base").captioning.parallel == 0


def test_fine_tunes_of_a_captioner_alone(tmp_path, named):
  """It stays one; there is no text embedding to tune."""
  save(tmp_path, contrastive__weight=0.0, model__text__unimodal_layers=0, captioning__parallel=0.5)
  for name in ("finetune_caption", "capfilt_captioner"):
    c = named(name, start=tmp_path)
    assert (c.contrastive.heads, c.captioning.parallel, set(c.evals)) == (False, 0, {"captions"})
  for name in ("finetune_contrastive", "capfilt_filter"):
    with pytest.raises(ValueError, match=r"needs config\.model\.text\.unimodal_layers above 0"):
      named(name, start=tmp_path)


@pytest.mark.parametrize("name", ["finetune_caption", "finetune_contrastive"])
def test_a_fine_tune_takes_the_model_it_starts_from(name, tmp_path, named, model):
  c = named(name)
  assert c.init_from == str(model)
  assert c.model == tiny().model
  assert c.contrastive.weight > 0 and c.captioning.weight > 0  # neither side is given up
  if name == "finetune_caption":
    alone = dataclasses.replace(c.contrastive, weight=0.0)
    assert arithmetic.parameter_table(c) == arithmetic.parameter_table(dataclasses.replace(c, contrastive=alone))
  assert {e.kind for e in c.evals.values()} == {"zero_shot", "retrieval", "captions"}  # and both are looked at
  assert (c.optim.name, c.optim.lr, c.optim.weight_decay, c.optim.clip) == ("adafactor", 1e-5, 0.1, 1.0)  # Table 10
  with pytest.raises(ValueError, match="init_from=DIR"):
    get_config(name)
  with pytest.raises(FileNotFoundError, match=r"python -m coca\.convert"):
    get_config(name, f"init_from={tmp_path}")


def test_captioner_and_filter_are_those_of_blip(named, model):
  """Table 14, over the built-in corpus; and ViT-L's rates."""
  captioner, filtering = named("capfilt_captioner"), named("capfilt_filter")
  pairs = len(open_source(captioner.data.sources["pairs"]))
  for c, epochs in ((captioner, 5), (filtering, 6)):
    assert c.init_from == str(model)
    assert c.model == tiny().model
    assert (c.data.batch, in_steps(c.steps, 256)) == (256, round(epochs * pairs / 256))
    assert (c.optim.name, c.optim.lr, c.optim.weight_decay, c.optim.schedule) == ("adamw", 1e-5, 0.05, "cosine")
    assert (c.optim.clip, c.optim.warmup, c.optim.b2) == (0.0, "0", 0.999)
  weights = [(c.captioning.weight, c.contrastive.weight, c.matching.weight) for c in (captioner, filtering)]
  assert weights == [(1.0, 0.0, 0.0), (0.0, 1.0, 1.0)]
  assert (captioner.captioning.label_smoothing, filtering.contrastive.directions) == (0.1, "mean")
  assert {e.kind for e in captioner.evals.values()} == {"captions"}
  assert {e.kind for e in filtering.evals.values()} == {"zero_shot", "retrieval", "matching"}
  assert named("capfilt_filter", "res=24").model.image.size == 24


def test_blip_is_that_of_the_paper_and_its_code(named):
  for name, batch, lr, width in (("blip_base", 2880, 3e-4, 768), ("blip_large", 2400, 2e-4, 1024)):
    c = named(name)
    assert (c.data.batch, c.optim.lr, c.model.image.width, c.matching.group) == (batch, lr, width, batch // 32)
    assert (c.contrastive.weight, c.captioning.weight, c.matching.weight, c.matching.floor) == (1, 1, 1, 1e-4)
    assert (c.contrastive.momentum, c.contrastive.queue, c.contrastive.soft_targets) == (0.995, 57_600, 0.4)
    assert (c.contrastive.temperature, c.contrastive.min_scale, c.contrastive.max_scale) == (0.07, 2, 1000)
    epochs = [in_steps(d, batch) for d in (c.steps, c.optim.epoch)]
    assert epochs[0] == pytest.approx(20 * epochs[1], rel=1e-3)
    assert in_steps(c.contrastive.soft_ramp, batch, epochs[0]) == pytest.approx(2 * epochs[1], rel=1e-3)
    assert (c.optim.schedule, c.optim.lr_decay, c.optim.warmup, c.optim.weight_decay) == ("epochs", 0.85, "3000", 0.05)
    assert c.optim.final_lr * lr == pytest.approx(1e-6)
    assert (c.model.embed_dim, c.model.med.dropout, c.captioning.label_smoothing) == (256, 0.1, 0.1)
    assert (c.data.crop, c.data.flip, c.data.rand_augment, c.data.squash) == ((0.2, 1), True, (2, 5), True)
  assert f"{dict(arithmetic.parameter_table(named('blip_base')))['total'] / 1e6:.0f}M" == "252M"  # Table 3


def test_blips_fine_tunes_are_those_of_table_14(tmp_path, named, blip):
  """And ViT-L's rates."""
  pairs = len(open_source(named("blip_caption").data.sources["pairs"]))
  for name, lr, large_lr, epochs in (
    ("blip_retrieval", 1e-5, 5e-6, 6),
    ("blip_caption", 1e-5, 2e-6, 5),
    ("blip_vqa", 2e-5, 2e-5, 10),
  ):
    c = named(name)
    assert (c.init_from, c.data.batch, in_steps(c.steps, 256)) == (str(blip), 256, round(epochs * pairs / 256))
    assert (c.optim.name, c.optim.lr, c.optim.weight_decay, c.optim.schedule) == ("adamw", lr, 0.05, "cosine")
    assert c.optim.decay_mask == "all"
    large = json.loads((blip / "config.json").read_text())
    large["config"]["model"]["image"].update(width=1024, size=240)
    large["config"]["model"]["med"]["positions"] = 512
    (tmp_path / "config.json").write_text(json.dumps(large))
    (tmp_path / "vocab.txt").write_bytes((blip / "vocab.txt").read_bytes())
    assert named(name, start=tmp_path).optim.lr == large_lr
    assert named(name, start=tmp_path).model.image.size == (480 if name == "blip_vqa" else 384)
  for name, steps, lr in zip(FROM_BLIP, ("300", "200", "500"), (3e-4,) * 3, strict=True):
    c = named(name, "tiny")
    assert (c.steps, c.data.batch, c.optim.lr, c.data.rand_augment) == (steps, 128, lr, (0, 0))
    of_scenes = "scenes_questions" if name == "blip_vqa" else "scenes"
    assert c.data.sources["pairs"].split == of_scenes and c.model.med.positions >= c.model.text.length == 24
    assert {e.source.split for e in c.evals.values()} == {f"{of_scenes}_val"}
  retrieval, caption, vqa = map(named, FROM_BLIP)
  assert (retrieval.model.text.multimodal_layers, caption.model.text.unimodal_layers) == (0, 0)
  assert (caption.data.prompt, caption.captioning.prompt_tokens) == ("a picture of ", 3)
  written = caption.evals["captions"].decoding
  longest = min(20, caption.model.text.length)
  assert (written.strategy, written.beams, written.min_length, written.max_length) == ("beam", 3, 5, longest)
  assert named("blip_base").evals["coco_captions"].decoding == dataclasses.replace(written, max_length=20)
  assert retrieval.evals["retrieval"].rerank == 256
  assert (vqa.answering.weight, vqa.captioning.weight) == (1, 0)


@pytest.mark.parametrize(("name", "arg"), [("blip_vqa", "vqa=a/vqa,vg=a/vg"), ("finetune_vqa", "vg=a/vg")])
def test_visual_genomes_answers_weigh_as_in_blips_code(name, arg, named):
  config = named(name, arg)
  assert set(config.data.sources) == {"vqa", "visual_genome"} and config.answering.answers == 10
  found = {name: (s.path, s.weight, s.answer_weight) for name, s in config.data.sources.items()}
  assert found["visual_genome"] == ("a/vg", 0.0, 0.2) and found["vqa"][1:] == (0.0, 1.0)
  assert config.evals["vqa"].source.path == found["vqa"][0].replace("train", "val")
  if name == "blip_vqa":
    assert in_steps(config.steps, config.data.batch) == round(10 * 443_757 / 256)


def test_blips_statements_about_two_images_are_those_of_table_14(named):
  c = named("blip_nlvr2")
  assert (c.data.batch, in_steps(c.steps, 256), c.data.swap, c.data.flip) == (256, round(15 * 86_373 / 256), True, True)
  assert (c.optim.name, c.optim.lr, c.optim.weight_decay, c.optim.schedule) == ("adamw", 3e-5, 0.05, "cosine")
  assert (c.classification.classes, c.classification.images, c.model.text.multimodal_layers) == (2, 2, 0)
  assert "text_encoder/stack/layers/cross_attention/" not in idle(c)  # it decays
  tiny_ = named("blip_nlvr2", "tiny")
  assert not (tiny_.data.swap or tiny_.data.flip) and tiny_.model.med.positions >= tiny_.model.text.length == 24


@pytest.mark.parametrize("name", ["finetune_caption", "blip_caption"])
@pytest.mark.parametrize(("baseline", "samples"), [("greedy", 1), ("mean", 5)])
def test_captioners_go_on_by_the_cider_of_what_they_draw(name, baseline, samples, named):
  config, plain = named(name, f"scst={baseline}"), named(name)
  assert (config.self_critical.weight, config.self_critical.samples) == (1, samples)
  assert (config.contrastive.weight, config.captioning.weight, plain.self_critical.weight) == (0, 0, 0)
  assert config.contrastive.keep == plain.contrastive.keep and config.optim == plain.optim
  with pytest.raises(ValueError, match=r"scst=best is unknown; this config takes scst=greedy or scst=mean"):
    named(name, "scst=best")


def test_blips_fine_tunes_are_for_blip(named, model):
  for name in FROM_BLIP + OTHERS_FROM_BLIP:
    with pytest.raises(ValueError, match=r"holds a model of kind 'coca'; this is a recipe for 'blip'"):
      named(name, start=model)


@pytest.mark.parametrize(("name", "lr"), [("capfilt_captioner", 2e-6), ("capfilt_filter", 5e-6)])
def test_captioner_and_filter_of_other_models(name, lr, tmp_path, named):
  save(tmp_path, model__image__width=1024)
  assert named(name, start=tmp_path).optim.lr == lr
  save(tmp_path, captioning__weight=0.0, model__text__multimodal_layers=0)
  with pytest.raises(ValueError, match="has no multimodal decoder"):
    named(name, start=tmp_path)


def test_captioner_and_filter_of_a_tiny_model(named):
  captioner, filtering = named("capfilt_captioner", "tiny"), named("capfilt_filter", "tiny")
  for c, steps, lr in ((captioner, "200", 3e-4), (filtering, "500", 1e-3)):
    assert (c.steps, c.data.batch, c.optim.lr, c.optim.warmup) == (steps, 128, lr, "5%")
  assert filtering.optim.lr_scale == {"softmax": 0.0}
  assert named("capfilt_filter", "tiny,runlocal").steps == "4"


def test_bootstrapping_on_scenes(tmp_path, named, model):
  """The fine-tunes learn from the human pairs of the run that they start from, and CapFilt takes its web pairs."""
  noisy = named("coca_tiny", "web")
  save(tmp_path, noisy)
  for name, kinds in (("capfilt_captioner", {"captions"}), ("capfilt_filter", {"retrieval", "matching"})):
    c = named(name, "tiny", start=tmp_path)
    assert c.data.sources == {"human": noisy.data.sources["human"]}
    assert {e.kind for e in c.evals.values()} == kinds
    assert all((e.source, e.limit) == (noisy.evals["captions"].source, 1000) for e in c.evals.values())
    assert {e.limit for e in named(name, "tiny,runlocal", start=tmp_path).evals.values()} == {64}
    assert named(name, start=tmp_path).data.sources["pairs"].split == "train+unseen_concepts"
  job = get_config("capfilt", f"web_of={tmp_path}")
  job.filter = "runs/filter"
  assert capfilt.parse(job).source == noisy.data.sources["web"]
  assert get_config("capfilt").source.split == "openclipart"
  with pytest.raises(ValueError, match="no source of origin 'web'"):
    get_config("capfilt", f"web_of={model}")
  texts = {name: {t.origin for t in open_source(s)[0].texts} for name, s in noisy.data.sources.items()}
  assert texts == {"human": {"human"}, "web": {"web"}}
  assert named("coca_tiny", "human").data.sources == {"human": noisy.data.sources["human"]}
  kept = named("coca_tiny", "capfilt=runs/capfilt").data.sources
  assert kept == {**noisy.data.sources, "web": dataclasses.replace(noisy.data.sources["web"], sidecars="runs/capfilt")}


def test_a_filter_that_has_a_head_keeps_its_rate(tmp_path, named):
  assert named("capfilt_filter").optim.lr_scale == {"matching_pooler": 50.0, "matching_head": 50.0, "softmax": 0.0}
  save(tmp_path, matching__weight=1.0, model__text__tied_softmax=True)
  assert named("capfilt_filter", start=tmp_path).optim.lr_scale == {}


def test_hires_goes_on_from_base(named):
  base, hires = named("coca_base"), named("coca_base_hires", "init_from=gs://bucket/run=1")
  assert hires.init_from == "gs://bucket/run=1"
  assert named("coca_base_hires").init_from  # never from noise
  assert (hires.model.image.size, hires.model.image.tokens) == (576, 1024)
  same_image = dataclasses.replace(hires.model.image, size=base.model.image.size)
  assert dataclasses.replace(hires.model, image=same_image, remat=base.model.remat) == base.model
  assert hires.data == base.data


def test_hires_runlocal_fits_base_runlocal(named):
  base, hires = named("coca_base", "runlocal"), named("coca_base_hires", "runlocal")
  same_image = dataclasses.replace(hires.model.image, size=base.model.image.size)
  assert dataclasses.replace(hires.model, image=same_image, remat=base.model.remat) == base.model
  assert hires.model.image.size == 2 * base.model.image.size


@pytest.mark.parametrize("name", ["labels", "alt_text"])
def test_a_missing_data_set_says_how_to_prepare_it(name, tmp_path, monkeypatch, named):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(FileNotFoundError, match=r"array_record|img2dataset"):
    open_source(named("coca_base").data.sources[name])
