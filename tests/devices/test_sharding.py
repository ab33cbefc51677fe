"""The mesh, the rules that split parameters and state over it, and gathering one layer's parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from coca import config
from coca.devices import sharding
from coca.devices.sharding import gather_layer, param_shardings, param_spec
from coca.devices.trees import path_name
from coca.models.abstract import abstract_model
from coca.training.state import Setup
from support.common import make_mesh, tiny

WIRINGS = [
  {},
  {"model__poolers__kind": "parallel", "contrastive__loss": "sigmoid"},
  {"model__poolers__n_query": 0, "model__text__tied_softmax": True},
  {"contrastive__weight": 0.0},
  {"matching__weight": 1.0},
]


def by_path(tree):
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("changes", WIRINGS)
def test_every_parameter_has_a_rule_and_every_matrix_is_split(changes):
  _, shapes = abstract_model(tiny(**changes))
  for path, split in by_path(param_shardings(shapes, make_mesh(2, 2, 2))).items():
    spec = split.spec
    if path.endswith(("kernel", "tokens", "positions", "queries")):
      assert "fsdp" in spec, path
    else:
      assert not any(spec), path  # vectors are replicated


def test_rules():
  specs = {
    "image_encoder/patches/kernel": ((48, 32), P(None, "fsdp")),
    "image_encoder/positions": ((16, 32), P(None, "fsdp")),
    "image_encoder/stack/layers/self_attention/query/kernel": ((2, 32, 32), P(None, "fsdp", "tensor")),
    "image_encoder/stack/layers/self_attention/out/kernel": ((2, 32, 32), P(None, "tensor", "fsdp")),
    "multimodal/stack/layers/mlp/up/kernel": ((2, 48, 80), P(None, "fsdp", "tensor")),
    "multimodal/stack/layers/mlp/down/kernel": ((2, 80, 48), P(None, "tensor", "fsdp")),
    "multimodal/stack/layers/mlp/down/bias": ((2, 48), P(None, None)),
    "generative_pooler/attention/value/kernel": ((32, 48), P("fsdp", "tensor")),
    "unimodal/projection/kernel": ((48, 24), P("fsdp", None)),
    "embedding/tokens": ((88, 48), P("tensor", "fsdp")),
    "softmax/kernel": ((48, 88), P("fsdp", "tensor")),
    "temperature/log_scale": ((), P()),
  }
  for path, (shape, spec) in specs.items():
    assert param_spec(path, shape) == spec, path
  assert param_spec("self_attention/query/kernel", (32, 32)) == P("fsdp", "tensor")  # one layer inside the scan


def test_a_parameter_without_rule_is_an_error():
  with pytest.raises(ValueError, match=r"no rule in PARAMETERS names the parameter image_encoder/gate/kernel \(4, 4\)"):
    param_spec("image_encoder/gate/kernel", (4, 4))
  with pytest.raises(ValueError, match="no rule"):
    param_spec("monkey/kernel", (4, 4))  # 'key/kernel' names whole parts of a path
  with pytest.raises(ValueError, match="dimensions"):
    param_spec("softmax/kernel", (2, 48, 88))  # not scanned, so nothing may stand in front


def test_two_dimensions_on_one_axis_are_an_error(monkeypatch):
  monkeypatch.setitem(sharding.RULES, "vocab", "fsdp")
  with pytest.raises(ValueError, match=r"two dimensions of softmax/kernel .* claim one mesh axis: \['fsdp', 'fsdp'\]"):
    param_spec("softmax/kernel", (48, 88))


def test_a_size_that_does_not_divide_names_the_setting():
  with pytest.raises(ValueError, match=r"softmax/kernel \(48, 90\): dimension 90 .* 4 devices; .*config.mesh.tensor"):
    param_spec("softmax/kernel", (48, 90), make_mesh(1, 2, 4))
  with pytest.raises(ValueError, match=r"dimension 42 .*config.mesh.fsdp"):
    param_spec("image_encoder/positions", (16, 42), make_mesh(1, 8, 1))


def test_the_mesh_fits_the_devices_or_says_why_not():
  assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
  assert dict(sharding.make_mesh(config.Mesh(data=2, fsdp=-1, tensor=2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  for bad in (config.Mesh(data=3), config.Mesh(fsdp=3), config.Mesh(data=-1, fsdp=-1), config.Mesh(data=0)):
    with pytest.raises(ValueError, match=r"config\.mesh .*does not fit 8 devices"):
      sharding.make_mesh(bad)


@dataclasses.dataclass(frozen=True)
class SliceDevice:
  """What a mesh of several TPU slices asks of a device."""

  id: int
  slice_index: int
  process_index: int
  platform: str = "cpu"
  device_kind: str = "TPU"


def test_slices_are_joined_along_the_data_axis():
  devices = [SliceDevice(i, slice_index=i // 4, process_index=i // 2) for i in range(8)]
  mesh = sharding.make_mesh(config.Mesh(data=4, fsdp=1, tensor=2), devices)
  assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 2}
  slices = np.vectorize(lambda d: d.slice_index)(mesh.devices)
  np.testing.assert_array_equal(slices, np.repeat([0, 0, 1, 1], 2).reshape(4, 1, 2))  # fsdp and tensor stay within one
  assert {d.id for d in mesh.devices.flat} == set(range(8))
  with pytest.raises(ValueError, match=r"config\.mesh\.data 1 is no multiple of the 2 slices"):
    sharding.make_mesh(config.Mesh(data=1, fsdp=8), devices)


def test_the_hosts_of_a_gpu_cluster_are_no_slices():
  """jax numbers them as such, and CoCa's configs split everything over fsdp."""
  devices = [SliceDevice(i, slice_index=i // 4, process_index=i // 4, platform="gpu") for i in range(8)]
  mesh = sharding.make_mesh(config.Mesh(data=1, fsdp=-1), devices)
  assert [d.id for d in mesh.devices.flat] == list(range(8))


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw", "muon"])
def test_moments_and_averages_are_split_as_their_parameters(optimizer):
  mesh = make_mesh(1, 4, 2)
  state = Setup(tiny(optim__name=optimizer, optim__ema=0.9), mesh).planned
  params = by_path(state.params)
  assert by_path(state.ema) == params
  followed = 0
  for path, x in by_path(state.opt).items():
    owner = next((p for p in params if path.endswith("/" + p) and params[p].shape == x.shape), None)
    if owner:
      assert x.sharding == params[owner].sharding, path
      followed += 1
    else:
      assert x.sharding.spec == P(), path
  assert followed >= (1 if optimizer == "muon" else 2) * len(params)  # Muon has one moment
  for counter in ("step", "skipped", "skipped_in_a_row"):
    assert getattr(state, counter).sharding.spec == P()


def test_fsdp_leaves_each_device_its_share():
  state = Setup(tiny(optim__name="adamw", optim__ema=0.9), make_mesh(1, 8, 1)).planned
  whole = sum(x.size for x in jax.tree.leaves(state))
  held = sum(np.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state))
  vectors = sum(x.size for x in jax.tree.leaves(state) if not any(x.sharding.spec))
  assert held == vectors + (whole - vectors) / 8
  assert vectors < 0.05 * whole


def test_gathering_a_layer_casts_it_and_returns_the_gradient_to_its_shards():
  rng = np.random.default_rng(0)
  layer = {"mlp": {"up": {"kernel": rng.normal(size=(16, 8)).astype(np.float32), "bias": np.ones(8, np.float32)}}}
  weight = rng.normal(size=(16, 8)).astype(np.float32)

  def loss(layer):
    kernel = gather_layer(layer, jnp.bfloat16)["mlp"]["up"]["kernel"]
    return jnp.sum(kernel.astype(jnp.float32) * weight)

  mesh = make_mesh(1, 4, 2)
  with jax.set_mesh(mesh):
    split = jax.device_put(layer, param_shardings(layer, mesh))
    gathered = jax.jit(lambda layer: gather_layer(layer, jnp.bfloat16))(split)["mlp"]["up"]
    gradient = jax.jit(jax.grad(loss))(split)["mlp"]["up"]["kernel"]
  assert split["mlp"]["up"]["kernel"].addressable_shards[0].data.shape == (4, 4)
  assert gathered["kernel"].sharding.is_equivalent_to(NamedSharding(mesh, P(None, "tensor")), 2)
  assert gathered["kernel"].dtype == jnp.bfloat16 and gathered["bias"].dtype == jnp.float32
  expected = gather_layer(layer, jnp.bfloat16)["mlp"]["up"]["kernel"]  # no mesh: the cast alone
  np.testing.assert_array_equal(gathered["kernel"].astype(np.float32), expected.astype(np.float32))
  assert gradient.dtype == jnp.float32
  assert gradient.sharding.is_equivalent_to(split["mlp"]["up"]["kernel"].sharding, 2)
  np.testing.assert_allclose(gradient, weight, rtol=0.005)  # through bfloat16
