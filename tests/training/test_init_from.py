"""`config.init_from`: what is loaded, resized, skipped and fresh, from a workdir and from a model directory."""

from pathlib import Path

import jax
import numpy as np
import pytest

from coca.data.tokenizers import sentencepiece
from coca.devices.trees import path_name
from coca.inference.forward import Forward
from coca.storage import weights
from coca.storage.checkpoint import Checkpoints
from coca.storage.workdir import write_run
from coca.training.init_from import fit_length, initial_params, resize_positions, start_from, takes_words
from support.blip_reference import tiny_blip
from support.common import classifier, make_mesh, new_state, random_params, tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokens():
  return sentencepiece.train([f"a word number {i}" for i in range(40)], 60)


def save(folder, settings, params, tokens, as_run=False):
  folder.mkdir(parents=True)
  tokens.save(folder / tokens.file)
  if as_run:
    write_run(settings, tokens, folder)
    checkpoints = Checkpoints(folder / "checkpoints")
    put = jax.device_put(params, Forward(settings, make_mesh()).params_shardings)
    checkpoints.save(1, {"params": put}, {})
    checkpoints.close()
  else:
    write_run(settings, tokens, folder, weights_sha256=weights.write(folder / weights.FILE, params))
  return folder


def start(folder, settings, mesh=None):
  mesh = mesh or make_mesh()
  fresh = new_state(settings, mesh, random_params(settings, 1)).params
  params, report = initial_params(folder, settings, fresh, mesh)
  assert jax.tree.structure(params) == jax.tree.structure(fresh)
  assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, fresh)
  return flat(params), flat(fresh), report


def flat(tree):
  return {path_name(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def same(a, b):
  return a.shape == b.shape and (a == b).all()


@pytest.mark.parametrize("as_run", [False, True], ids=["model directory", "workdir"])
def test_the_same_model_is_loaded_whole_on_any_mesh(as_run, tokens, tmp_path):
  settings = tiny()
  old = random_params(settings)
  folder = save(tmp_path / "m", settings, old, tokens, as_run)
  params, _, report = start(folder, settings, make_mesh(data=2, fsdp=2))
  assert params.keys() == flat(old).keys()
  for name, x in flat(old).items():
    assert same(params[name], x), name
  assert f"({sum(x.size for x in params.values()):,} parameters)" in report
  assert "skipped" not in report and "fresh" not in report and "resized" not in report


def test_average_and_momentum_encoders_start_as_the_loaded_parameters(tokens, tmp_path):
  settings = tiny_blip(contrastive__momentum=0.995, contrastive__queue=16, optim__ema=0.9)
  old = random_params(settings)
  fresh = new_state(settings, make_mesh(), random_params(settings, 1))
  names, count = flat(fresh.momentum).keys(), len(jax.tree.leaves(fresh.opt))
  state, report = start_from(save(tmp_path / "m", settings, old, tokens), settings, fresh, make_mesh())
  assert "parameters)" in report and len(jax.tree.leaves(state.opt)) == count
  params, average, momentum = (flat(part) for part in (state.params, state.ema, state.momentum))
  assert params.keys() == average.keys() and momentum.keys() == names and names < params.keys()
  for name, x in flat(old).items():
    assert same(params[name], x) and same(average[name], x) and (name not in names or same(momentum[name], x)), name
  parts = state.params, state.ema, state.momentum
  buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(parts)]
  assert len(set(buffers)) == len(buffers)  # each is written over for itself


def test_parts_come_and_go_as_a_whole(tokens, tmp_path):
  kind = {"model__poolers__kind": "parallel"}
  both, dual = tiny(**kind), tiny(**kind, captioning__weight=0.0, model__text__multimodal_layers=0)
  old = random_params(both)
  params, _, report = start(save(tmp_path / "both", both, old, tokens), dual)
  assert "skipped, not in the new model: generative_pooler, multimodal, softmax" in report
  assert same(params["unimodal/cls"], np.asarray(old["unimodal"]["cls"]))

  old = random_params(dual)
  params, fresh, report = start(save(tmp_path / "dual", dual, old, tokens), both)
  assert "freshly initialised: generative_pooler, multimodal, softmax" in report
  for name, x in params.items():
    part = name.split("/")[0]
    expected = fresh[name] if part in ("generative_pooler", "multimodal", "softmax") else flat(old)[name]
    assert same(x, expected), name


def test_named_parts_alone_are_taken_over(tokens, tmp_path):
  """As LiT takes an image encoder of any CoCa, of other words and another width of texts."""
  new = tiny(init_parts=("image_encoder",), model__text__width=64, model__text__vocab=90, optim__ema=0.9)
  old = random_params(tiny())
  params, fresh, report = start(save(tmp_path / "m", tiny(), old, tokens), new)
  assert "loaded: image_encoder (" in report and "skipped" not in report
  for name, x in params.items():
    assert same(x, flat(old)[name] if name.startswith("image_encoder/") else fresh[name]), name
  assert not takes_words(new) and takes_words(tiny()) and takes_words(tiny(init_parts=("embedding", "unimodal")))
  with pytest.raises(ValueError, match=r"config\.init_parts has 'tower', .*lacks; both have: .*image_encoder"):
    start(tmp_path / "m", tiny(init_parts=("tower",)))


@pytest.mark.parametrize("changes", [{"classes": 5}, {"pool": "class_token"}, {}])
def test_a_class_head_is_new_where_it_has_other_classes_or_reads_something_else(changes, tokens, tmp_path):
  image = {"model__image__class_token": True}
  settings = classifier(others=image)
  old = random_params(settings)
  params, fresh, _ = start(save(tmp_path / "m", settings, old, tokens), classifier(others=image, **changes))
  for name, x in params.items():
    known = name in flat(old) and not (changes and name.startswith("class_head/"))
    assert same(x, flat(old)[name] if known else fresh[name]), name


def test_the_contrastive_side_comes_and_goes(tokens, tmp_path):
  both, mute = tiny(), tiny(contrastive__weight=0.0)
  folder = save(tmp_path / "mute", mute, random_params(mute), tokens)
  params, fresh, report = start(folder, both)
  new = "contrastive_pooler, unimodal/cls, unimodal/norm, unimodal/projection, temperature"
  for name in new.split(", "):
    assert name in report.split("freshly initialised: ")[1]
  assert same(params["unimodal/cls"], fresh["unimodal/cls"])
  _, _, report = start(save(tmp_path / "both", both, random_params(both), tokens), mute)
  assert "unimodal/projection" in report.split("skipped, not in the new model: ")[1]


def test_a_captioner_alone_becomes_a_coca_and_the_mask_token_comes_and_goes(tokens, tmp_path):
  alone = {"contrastive__weight": 0.0, "model__text__unimodal_layers": 0}
  cappa, cap = tiny(**alone, captioning__parallel=0.75), tiny(**alone)
  folder = save(tmp_path / "cappa", cappa, random_params(cappa), tokens)
  _, _, report = start(folder, tiny())
  assert "skipped, not in the new model: embedding/mask (48 " in report
  assert "freshly initialised: contrastive_pooler, temperature, unimodal (" in report  # whole, not piece by piece
  _, _, report = start(save(tmp_path / "cap", cap, random_params(cap), tokens), cappa)
  assert "freshly initialised: embedding/mask (48 " in report


def test_a_matching_head_is_new(tokens, tmp_path):
  settings = tiny()
  old = random_params(settings)
  params, fresh, report = start(save(tmp_path / "m", settings, old, tokens), tiny(matching__weight=1.0))
  assert "freshly initialised: matching_head, matching_pooler (" in report
  for name, x in params.items():
    assert same(x, fresh[name] if name.startswith("matching") else flat(old)[name]), name


def test_positions_fit_the_new_sizes(tokens, tmp_path):
  changes = {"model__image__class_token": True, "model__text__cls_position": True}
  old_settings, new = tiny(**changes), tiny(**changes, model__image__size=24, model__text__length=6)
  old = random_params(old_settings)
  params, _, report = start(save(tmp_path / "m", old_settings, old, tokens), new)
  image, text = old["image_encoder"]["positions"], old["embedding"]["positions"]
  assert "resized: image_encoder/positions [17, 32] to [37, 32]" in report
  assert "resized: embedding/positions [9, 48] to [7, 48]" in report
  assert same(params["image_encoder/positions"][0], image[0])  # the class token's
  np.testing.assert_allclose(params["image_encoder/positions"][1:], resize_positions(image[1:], 36), atol=1e-6)
  assert same(params["embedding/positions"], text[[0, 1, 2, 3, 4, 5, 8]])  # the last one is [CLS]'


@pytest.mark.parametrize("as_run", [False, True], ids=["model directory", "workdir"])
def test_simvlm_with_images_of_another_size(as_run, tokens, tmp_path):
  changes = {"model__kind": "simvlm", "model__stem__blocks": (1, 1, 2), "model__stem__width": 4}
  changes |= {"model__image__patch": 16, "model__image__width": 48, "contrastive__weight": 0.0}
  old_settings, new = (tiny(**changes, model__text__unimodal_layers=0, model__image__size=size) for size in (32, 64))
  old = random_params(old_settings)
  params, _, report = start(save(tmp_path / "m", old_settings, old, tokens, as_run), new)
  head = next(name for name in params if name.startswith("stem/heads/0/"))
  assert same(params[head], flat(old)[head])
  assert "resized: positions [4, 48] to [16, 48]" in report
  np.testing.assert_allclose(params["positions"], resize_positions(old["positions"], 16, method="bicubic"), atol=1e-6)


@pytest.mark.parametrize("case", ["4_to_6", "6_to_4", "2_to_7", "5_to_5", "12_to_5"])
def test_bicubic_positions_are_those_of_torch(case):
  """BLIP's interpolate_pos_embed: fp64 results of torch, made by golden/make_positions.py."""
  golden = np.load(Path(__file__).parent / "golden" / "positions.npz")
  old, new = golden[f"{case}/old"], golden[f"{case}/new"]
  out = resize_positions(old.astype(np.float32), len(new) - 1, 1, "bicubic")
  np.testing.assert_allclose(out, new, atol=2e-6)


def test_a_longer_text_gets_fresh_positions():
  old, fresh = np.arange(5.0)[:, None], -np.arange(8.0)[:, None]
  assert fit_length(old, fresh).ravel().tolist() == [0, 1, 2, 3, 4, -5, -6, -7]
  assert fit_length(old, fresh, last=1).ravel().tolist() == [0, 1, 2, 3, -4, -5, -6, 4]
  assert fit_length(old, fresh[:3]).ravel().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({"model__text__width": 64}, "contrastive_pooler/attention/key/bias: [48] there, [64] here"),
    ({"model__image__layers": 3}, "[2, 32] there, [3, 32] here"),
    ({"model__text__vocab": 90}, "embedding/tokens: [88, 48] there, [90, 48] here"),
    ({"model__text__feedforwards": 2}, "multimodal/stack/layers/norm_self_mlp/bias: none there"),
    ({"model__image__norm_pre": True}, "image_encoder/norm_pre/bias: none there, [32] here"),
    ({"model__image__class_token": True}, "image_encoder/class_token: none there"),
  ],
)
def test_a_difference_inside_a_part_is_an_error(changes, expected, tokens, tmp_path):
  settings = tiny()
  folder = save(tmp_path / "m", settings, random_params(settings), tokens)
  new = tiny(**changes)
  with pytest.raises(ValueError, match="holds another model") as e:
    initial_params(folder, new, None, make_mesh())
  assert expected in str(e.value)


def test_no_model_there(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"python -m coca.convert"):
    initial_params(tmp_path, tiny(), None, make_mesh())
