"""Shapes and dtypes of the models and losses: `conftest.py` has each call checked against its annotations."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

import coca.models
import coca.objectives
from coca.models.attention import dot_product_attention
from coca.objectives.captioning import next_tokens
from coca.objectives.matching import matching_loss

FILES = sorted(file for room in (coca.models, coca.objectives) for file in Path(room.__file__).parent.glob("*.py"))


def zeros(*shape, dtype=jnp.float32):
  return jnp.zeros(shape, dtype)


@pytest.mark.parametrize(
  "function, right, wrong",
  [
    (
      dot_product_attention,
      (zeros(1, 3, 2, 4), *[zeros(5, 7, 2, 4)] * 2),
      (zeros(2, 3, 2, 4), *[zeros(5, 7, 2, 4)] * 2),
    ),
    (
      dot_product_attention,
      (*[zeros(5, 7, 2, 4)] * 3, zeros(1, 1, 7, 7, dtype=bool)),
      (*[zeros(5, 7, 2, 4)] * 3, zeros(1, 1, 7, 7, dtype=jnp.int32)),
    ),
    (next_tokens, (zeros(3, 5, dtype=jnp.int32), zeros(3)), (zeros(3, 5, dtype=jnp.int32), zeros(4))),
    (matching_loss, (zeros(4, 3, 2), zeros(4), zeros(4, dtype=bool)), (zeros(4, 3), zeros(4), zeros(4, dtype=bool))),
  ],
  ids=["batch", "dtype", "weight", "rank"],
)
def test_a_wrong_shape_or_dtype_is_refused(function, right, wrong):
  jax.eval_shape(function, *right)
  with pytest.raises(TypeCheckError):
    jax.eval_shape(function, *wrong)


def test_every_public_function_of_models_and_objectives_says_its_types():
  missing = []
  for file in FILES:
    tree = ast.parse(file.read_text())
    for scope in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
      for function in scope.body:
        special = isinstance(function, ast.FunctionDef) and function.name in ("__init__", "__call__")
        if isinstance(function, ast.FunctionDef) and (special or not function.name.startswith("_")):
          args = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
          missing += [
            f"{file.name}:{function.lineno} {function.name}: {arg.arg}"
            for arg in args
            if arg.annotation is None and arg.arg != "self"
          ]
  assert not missing
