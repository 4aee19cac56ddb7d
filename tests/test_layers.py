"""The layers of the package: imports go down only, heavy libraries stay at the edge, files and
functions stay short."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "depo_rl"

LEVEL = {
    **dict.fromkeys(
        [
            "types",
            "protocols",
            "errors",
            "files",
            "validation",
            "config",
            "rivals_config",
            "labels",
        ],
        0,
    ),
    **dict.fromkeys(
        [
            *("pool", "selectors", "gates", "importance", "metrics", "breadth"),
            *("features", "estimators", "rivals", "outcomes", "rewards"),
        ],
        1,
    ),
    **dict.fromkeys(
        [
            "curriculum",
            "filling",
            "ledger",
            "guard",
            "futility",
            "survival",
            "methods",
            "parts",
            "checkpoint",
        ],
        2,
    ),
    **dict.fromkeys(["engines", "report", "routing"], 3),
    "commands": 4,
    **dict.fromkeys(["trl", "axolotl", "cli"], 5),
    "__init__": 6,
}
# of level 1: the only ones that may know each other
SIBLINGS = {("estimators", "features"), ("rivals", "estimators"), ("rivals", "selectors")}
TORCH_FREE = [
    name
    for name, level in LEVEL.items()
    if level <= 2 and name not in ("estimators", "features", "rewards")
]
OWNERS = {
    "trl": ["engines.trl"],
    "axolotl": ["engines.axolotl"],
    "verl": ["engines.verl"],
    "ray": ["engines.verl"],
    "litellm": ["routing.gateway"],
}
HEAVY = {"torch", "transformers", "trl", "verl", "ray", "accelerate", "datasets"}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if not any(part.startswith(".") for part in path.relative_to(PACKAGE).parts)
}


def _imports(module: str, *, at_import_time: bool = False) -> set[str]:
    """Absolute names that a module imports, those of this package with "depo_rl." in front.

    at_import_time: leave out what functions import when called, and what only a type checker sees.
    """
    tree = ast.parse(MODULES[module].read_text())
    package = ["depo_rl", *module.split(".")] if module != "__init__" else ["depo_rl", "__init__"]
    if MODULES[module].name == "__init__.py":
        package = package if module == "__init__" else [*package, "__init__"]
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            lazy = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if at_import_time and (lazy or typing_only):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: -child.level] if child.level else []
                stem = ".".join([*base, *([child.module] if child.module else [])])
                found.update(f"{stem}.{alias.name}" for alias in child.names)
            visit(child)

    visit(tree)
    return found


def _part(module: str) -> str:
    return module.split(".")[0]


def _own(module: str) -> set[str]:
    """Parts of this package that a module imports."""
    names = {name.split(".")[1] for name in _imports(module) if name.startswith("depo_rl.")}
    return {name for name in names if name in LEVEL}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    part = _part(module)
    assert part in LEVEL, f"{module}: give the new part {part!r} a level in tests/test_layers.py"
    for other in _own(module) - {part, "__init__"}:
        assert LEVEL[other] <= LEVEL[part], (
            f"{module} (level {LEVEL[part]}) imports {other} (level {LEVEL[other]})"
        )
        if LEVEL[part] == LEVEL[other] == 1:
            assert (part, other) in SIBLINGS, f"{module} imports its sibling {other}"


def _modules_of(module: str) -> set[str]:
    """Other modules of this package that a module imports, for type checkers only or when called
    included."""
    found = set()
    for name in _imports(module):
        parts = name.removeprefix("depo_rl.").split(".") if name.startswith("depo_rl.") else []
        prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        found |= {next((prefix for prefix in prefixes if prefix in MODULES), module)}
    return found - {module}


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Circles of a graph, found by walking on from where every node leads somewhere."""
    left, circles = dict(graph), []
    while left:
        ends = [node for node, others in left.items() if not others & left.keys()]
        if not ends:
            walk = [min(left)]
            while (following := min(left[walk[-1]] & left.keys())) not in walk:
                walk.append(following)
            circles.append(walk[walk.index(following) :])
            ends = walk
        left = {node: others for node, others in left.items() if node not in ends}
    return circles


def test_no_module_imports_one_that_imports_it():
    """Not within a room either, and not for type checkers only: what needs of it what it may need
    is a protocol."""
    assert _circles({module: _modules_of(module) for module in MODULES}) == []


def test_the_search_for_circles_finds_them():
    graph = {
        "a": {"b"},
        "b": {"c", "d"},
        "c": {"a"},
        "d": set(),
        "e": {"f", "a"},
        "f": {"e"},
        "x": {"b"},
    }
    assert _circles(graph) == [["a", "b", "c"], ["e", "f"]]
    assert "engines.trl.driver" in _modules_of("engines.trl.trainer")
    assert "engines.verl.host" in _modules_of("engines.verl.dataset"), "imported when called"


@pytest.mark.parametrize("library", sorted(OWNERS))
def test_each_engine_alone_imports_its_library(library):
    users = [m for m in MODULES if any(name.split(".")[0] == library for name in _imports(m))]
    allowed = tuple(OWNERS[library])
    strangers = [m for m in users if not m.startswith(allowed)]
    assert strangers == []


def test_no_library_is_imported_by_a_string():
    """An address such as "trl.rewards:function" would slip past the test above."""
    address = re.compile(rf"({'|'.join(sorted(HEAVY))})(\.\w+)*:\w+")
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            text = node.value if isinstance(node, ast.Constant) else None
            assert not (isinstance(text, str) and address.fullmatch(text)), f"{module}: {text!r}"


@pytest.mark.parametrize(
    "module", [m for m in MODULES if _part(m) in TORCH_FREE or m in ("__init__", "engines.session")]
)
def test_the_core_never_imports_torch(module):
    assert not {name.split(".")[0] for name in _imports(module)} & HEAVY


def test_the_short_way_to_trl_only_passes_on():
    imported = {name.removeprefix("depo_rl.engines.trl.") for name in _imports("trl")}
    assert imported == {"DEPOConfig", "DEPOTrainer", "TokenBudget"}


@pytest.mark.parametrize(
    "module", [m for m in MODULES if _part(m) in ("cli", "rewards", "outcomes", "report")]
)
def test_heavy_libraries_are_imported_when_used_and_not_before(module):
    assert not {name.split(".")[0] for name in _imports(module, at_import_time=True)} & HEAVY


def test_the_scan_sees_relative_lazy_and_typing_imports():
    """The tests above mean nothing if the scan is blind."""
    assert "depo_rl.errors.PoolExhausted" in _imports("curriculum")
    assert "depo_rl.types.Prompt" in _imports("selectors")
    assert "depo_rl.features.table.FeatureTable" in _imports("estimators.fused.estimator")
    assert "depo_rl.estimators.fused.FusedEstimator" in _imports("parts")
    assert "depo_rl.estimators.fused.FusedEstimator" not in _imports("parts", at_import_time=True)
    assert {"curriculum", "config", "types"} <= _own("__init__")


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_stay_short(module):
    text = MODULES[module].read_text()
    assert len(text.splitlines()) <= (200 if module == "curriculum" else 400)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            # a command's parameters are its options with their help: a table, not what it does
            first = node.body[0] if module == "cli" else node
            assert node.end_lineno - first.lineno < 80, (
                f"{module}.{node.name} is longer than 80 lines"
            )


def test_nearly_all_functions_are_within_40_lines():
    lengths = [
        node.end_lineno - node.lineno + 1
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None
    ]
    assert sum(length <= 40 for length in lengths) >= 0.95 * len(lengths)
