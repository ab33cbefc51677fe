"""The order of the rooms of coca/: a room imports only from rooms below it, no two modules import each other."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up; a line is a floor, whose rooms do not import each other.
FLOORS = (
  ("config", "files"),
  ("devices",),
  ("models", "objectives", "decoding", "data"),
  ("storage",),
  ("inference",),
  ("evals", "interop"),
  ("training", "capfilt"),
  ("planning", "recipes"),
  (
    "train",
    "evaluate",
    "caption",
    "search",
    "demo",
    "probe",
    "export",
    "push",
    "convert",
    "plan",
    "commands",
    "notebook",
    "coca",
  ),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LINES = 400  # of a file


def modules(root: Path) -> dict[str, Path]:
  """Files by their modules' names: 'coca.data.sources'."""
  return {
    ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((root / "coca").rglob("*.py"))
  }


def imported(path: Path, known) -> set[str]:
  """The modules among `known` that a file imports anywhere, in its functions too."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path}: imports name the whole module"
      names = {f"{node.module}.{alias.name}" for alias in node.names}
      # The number of the version is the package's, and above no room.
      found |= {name if name in known else node.module for name in names if name != "coca.__version__"}
  return found & set(known)


def room(module: str) -> str:
  """'coca.data.sources.tfds' -> 'data'; 'coca' itself is a door."""
  return [*module.split("."), "coca"][1] if module != "coca" else "coca"


def upward(arrows: dict[str, set[str]]) -> list[str]:
  """Imports of a room that is not below, a text each."""
  return [
    f"{module} imports {other}"
    for module, others in arrows.items()
    for other in sorted(others)
    if room(other) != room(module) and FLOOR[room(other)] >= FLOOR[room(module)]
  ]


def circle(arrows: dict[str, set[str]]) -> list[str]:
  """Modules of which each imports the next and the last the first; none where there is no such circle."""
  done = set()

  def visit(module, path):
    if module in path:
      return path[path.index(module) :]
    if module in done:
      return []
    found = next(filter(None, (visit(other, [*path, module]) for other in sorted(arrows[module]))), [])
    done.add(module)
    return found

  return next(filter(None, (visit(module, []) for module in arrows)), [])


@pytest.fixture(scope="module")
def arrows():
  found = modules(ROOT)
  # `coca.load` imports its room when it is called, so that `import coca` stays light.
  return {module: imported(path, found) - {module} for module, path in found.items()}


def test_rooms_import_only_what_is_below(arrows):
  assert {room(module) for module in arrows} == set(FLOOR)
  assert not upward(arrows)


def test_no_circle_of_modules(arrows):
  assert not circle(arrows)


def test_files_are_short():
  lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules(ROOT).values()}
  assert not {path: count for path, count in lines.items() if count > LINES}


def test_tests_have_the_same_rooms_and_do_not_import_each_other():
  tests = Path(__file__).parent
  rooms = {path.name for path in tests.iterdir() if path.is_dir() and any(path.rglob("test_*.py"))}
  assert rooms <= set(FLOOR)
  assert not [str(path) for path in tests.rglob("*.py") if re.search(r"^ *(from|import) test_", path.read_text(), re.M)]


def test_what_is_looked_for_is_found(tmp_path):
  for path, text in {
    "coca/__init__.py": "",
    "coca/models/__init__.py": "",
    "coca/models/a.py": "def f():\n  from coca.training import b\n",
    "coca/training/__init__.py": "",
    "coca/training/b.py": "import coca.models.a\nfrom coca.training.c import x\n",
    "coca/training/c.py": "from coca.training import b\n",
  }.items():
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)
  found = modules(tmp_path)
  arrows = {module: imported(path, found) for module, path in found.items()}
  assert upward(arrows) == ["coca.models.a imports coca.training.b"]
  assert circle(arrows) == ["coca.models.a", "coca.training.b"]
