"""The architecture: an import only points down, and the pure layers load neither TensorFlow nor Orbax."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "kd_jax"
LAYERS = (
    {"types", "errors", "keys", "registry", "checksums", "stopping", "terminal", "batches"},
    {
        "losses",
        "models",
        "methods",
        "augment",
        "balance",
        "randaugment",
        "mixing",
        "gradcam",
        "metrics",
        "intervals",
        "ranks",
    },
    {"steps", "optim", "schedules", "sharding", "distributed", "compilation", "allocation"},
    {
        "config",
        "configs",
        "data",
        "teachers",
        "checkpoint",
        "logging",
        "runs",
        "remote",
        "weights",
        "networks",
        "identity",
        "hub",
        "loaded",
        "quiet_tensorflow",
        "experiment",
        "components",
        "tracing",
        "eval_steps",
    },
    {
        "training",
        "extending",
        "evaluation",
        "probing",
        "explaining",
        "exporting",
        "reporting",
        "teacher_cache",
        "planning",
        "advice",
    },
    {
        "__main__",
        "main",
        "plan",
        "evaluate",
        "probe",
        "explain",
        "predict",
        "export",
        "benchmark_export",
        "import_teacher",
        "report",
        "compare",
        "table",
        "sweep",
        "tune",
        "study",
        "many",
        "engines",
        "jobs",
        "quickstart",
        "cli",
        "usage",
        "completion",
    },
)
HEAVY = {
    "orbax": {"checkpoint"},
    "clu": {"logging"},
    "wandb": {"logging"},
    "mlflow": {"logging"},
    "aim": {"logging"},
    "tensorflow": {"quiet_tensorflow"},
    "tensorflow_datasets": {"data"},
    "datasets": {"data"},
    "grain": {"data"},
    "submitit": {"engines"},
    "ray": {"engines"},
    "optuna": {"tune", "study"},
    "fsspec": {"remote"},
}
PURE = {"flax", "jax", "jaxtyping", "numpy", "optax", "scipy"} | set(sys.stdlib_module_names)
EXPERIMENTS = sorted((PACKAGE.parent / "configs").glob("*.py"))
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


def part(path: Path) -> str:
    """The module or sub-package of kd_jax that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def imports(path: Path) -> set[str]:
    """The dotted names that a file imports, anywhere in it; "kd_jax.x" for `from kd_jax import x`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module == "kd_jax"
            names |= {f"kd_jax.{alias.name}" for alias in node.names} if inside else {node.module}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = part(path)
    used = {name.split(".")[1] for name in imports(path) if name.startswith("kd_jax.")} - {own}
    assert [name for name in used if layer(name) > layer(own)] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_heavy_library_is_imported_in_one_place(path):
    used = {name.split(".")[0] for name in imports(path)} & HEAVY.keys()
    assert [name for name in used if part(path) not in HEAVY[name]] == []


@pytest.mark.parametrize("path", [p for p in MODULES if layer(part(p)) <= 2], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_computes_imports_only_jax_and_its_kin(path):
    assert {name.split(".")[0] for name in imports(path)} - PURE - {"kd_jax"} == set()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_runs_from_any_folder(path):
    """Its imports are found wherever kd_jax is installed."""
    allowed = ("kd_jax.config", "kd_jax.errors", "ml_collections", *sys.stdlib_module_names)
    assert [name for name in imports(path) if not f"{name}.".startswith(tuple(f"{own}." for own in allowed))] == []


def loaded(statement: str) -> set[str]:
    """The top-level modules that a fresh Python has loaded after `statement`."""
    program = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    )


def test_steps_load_neither_tensorflow_nor_orbax():
    assert not loaded("import kd_jax.steps") & {"tensorflow", "tensorflow_datasets", "clu", "orbax", "ml_collections"}


@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_the_command_answers_before_it_loads_what_is_slow(argument):
    statement = f"""import sys
sys.argv = ["kd_jax", {argument!r}]
from kd_jax.cli import command
try: command()
except SystemExit: pass"""
    assert not loaded(statement) & {"jax", "tensorflow", "numpy", "orbax"}


def test_the_command_line_reads_its_flags_before_it_loads_what_is_slow():
    assert not loaded("import kd_jax.main") & {"orbax", "tensorflow", "clu", "sklearn", "PIL"}
