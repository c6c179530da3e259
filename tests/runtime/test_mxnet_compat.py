"""MXNet can be imported from anywhere in the package, and failures to do so are explained."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import embedding_learning
from embedding_learning.runtime import mxnet_compat
from embedding_learning.runtime.install_commands import format_install_command
from tests.helpers.limits import HANG_LIMIT
from tests.helpers.paths import ROOT

# The first module of each package stands for all of it.
MODULES = {
    module.name.rpartition(".")[0]: module.name
    for module in sorted(
        pkgutil.walk_packages(embedding_learning.__path__, "embedding_learning."),
        key=lambda module: module.name,
        reverse=True,
    )
    if not module.ispkg
}.values()


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter in the checkout, without OMP_NUM_THREADS unless it is given."""
    environment = {name: os.environ[name] for name in os.environ if name != "OMP_NUM_THREADS"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=HANG_LIMIT,
    )


def output(code: str, **variables: str) -> str:
    """Run a program in a fresh interpreter and return what it printed."""
    done = python("-c", code, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_a_module_of_each_package_can_be_the_first_import() -> None:
    """Each in a process that has MXNet already, which takes seconds to import, but nothing of ours.

    Whether it imports MXNet or not, what prepares for MXNet is installed.
    """
    code = """
import importlib, os, sys, traceback
import embedding_learning, mxnet

def import_alone(module):
    for name in [name for name in sys.modules if name.split(".")[0] == "embedding_learning"]:
        del sys.modules[name]
    sys.meta_path[:] = [each for each in sys.meta_path if type(each).__name__ != "_MXNetFinder"]
    importlib.import_module(module)
    assert any(type(finder).__name__ == "_MXNetFinder" for finder in sys.meta_path)
    mxnet.nd.ones(1).wait_to_read()

for module in sys.argv[1:]:
    process = os.fork()
    if not process:
        try:
            import_alone(module)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(process, 0)[1]:
        print(module)
"""
    assert len(MODULES) > 10
    done = python("-c", code, *MODULES)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_importing_the_package_is_cheap() -> None:
    loaded = output("import sys, embedding_learning; print(*sys.modules)").split()
    assert not {"numpy", "mxnet", "cv2", "importlib.metadata"} & set(loaded)


def test_all_cores_are_used_unless_the_user_says_otherwise() -> None:
    code = "import os, embedding_learning; print(os.environ['OMP_NUM_THREADS'])"
    assert output(code) == str(len(os.sched_getaffinity(0)))
    one_core = f"import os; os.sched_setaffinity(0, [{min(os.sched_getaffinity(0))}])"
    assert output(f"{one_core}; {code}") == "1"
    assert output(code, OMP_NUM_THREADS="7") == "7"
    assert output(code, OMP_NUM_THREADS="") == str(len(os.sched_getaffinity(0)))


def test_installing_twice_adds_one_finder() -> None:
    code = "import sys; from embedding_learning.runtime import mxnet_compat; mxnet_compat.install()"
    count = "print(sum(type(f).__name__ == '_MXNetFinder' for f in sys.meta_path))"
    assert output(f"{code}; {count}") == "1"


def test_each_attempt_to_import_mxnet_is_prepared_for(tmp_path: Path) -> None:
    (tmp_path / "mxnet.py").write_text("raise ImportError('broken on purpose')\n")
    code = """
from embedding_learning.runtime import mxnet_compat
mxnet_compat._prepare = lambda: print("prepared")
for attempt in range(2):
    try:
        import mxnet
    except ImportError as error:
        print(error)
"""
    expected = ["prepared", "broken on purpose"] * 2
    assert output(code, PYTHONPATH=str(tmp_path)).splitlines() == expected


@pytest.mark.slow
def test_what_mxnet_does_not_need_is_not_imported_with_it() -> None:
    """Afterwards they can be imported."""
    unused = (
        "sklearn", "pandas", "scipy.stats", "scipy.sparse", "matplotlib", "setuptools", "distutils",
        "requests", "onnx",
    )  # fmt: skip
    code = f"""
import importlib, inspect, sys
import embedding_learning
embedding_learning.load_model
import mxnet
print(*({{*{unused}}} & {{*sys.modules}}), "not imported")
for name in {unused}:
    importlib.import_module(name)
from distutils.version import LooseVersion
print(LooseVersion("1.10") > LooseVersion("1.9"), inspect.getsource(mxnet)[:2])
"""
    assert output(code).splitlines() == ["not imported", "True #!"]


@pytest.mark.slow
def test_what_mxnet_rarely_needs_is_imported_when_it_is_used() -> None:
    code = """
import sys
import embedding_learning
import mxnet as mx
late = mx.gluon.utils.requests
print(*({"requests", "scipy.sparse"} & {*sys.modules}), "not imported")
print(mx.nd.sparse.csr_matrix([[0, 2.0]]).asscipy().toarray(), late.Session.__name__)
import requests, scipy.sparse
print(late.Session is requests.Session, requests is not late)
print(mx.nd.sparse.spsp.eye is scipy.sparse.eye)
try:
    late.nothing
except AttributeError as error:
    print(error)
"""
    lines = output(code).splitlines()
    assert lines[:4] == ["not imported", "[[0. 2.]] Session", "True True", "True"]
    assert lines[4] == "module 'requests' has no attribute 'nothing'"


def test_a_module_that_is_not_installed_is_missed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ("not_installed", "not_installed.part")
    monkeypatch.setattr(mxnet_compat, "_IMPORTED_LATE", ("requests", *missing))
    monkeypatch.delitem(sys.modules, "requests", raising=False)
    with mxnet_compat._without_unused_modules():
        import requests

        assert type(requests) is mxnet_compat._LateModule
        for name in missing:
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module(name)
    assert sys.modules.get("requests") is not requests


def test_a_module_that_mxnet_uses_at_once_is_imported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mxnet_compat, "_IMPORTED_LATE", ("this_is_late",))
    monkeypatch.setattr(mxnet_compat, "find_spec", lambda name: True)
    real = ModuleType("this_is_late")
    real.value = 3  # type: ignore[attr-defined]
    finds = lambda name: sys.modules.setdefault(name, real)  # noqa: E731
    monkeypatch.setattr(mxnet_compat, "import_module", finds)
    with mxnet_compat._without_unused_modules():
        assert sys.modules["this_is_late"].value == 3
    assert sys.modules.pop("this_is_late") is real


@pytest.mark.slow
def test_what_was_imported_before_mxnet_stays() -> None:
    code = """
import sys
import embedding_learning, scipy.stats, distutils.version
modules = scipy.stats, distutils.version
import mxnet
print(modules == (sys.modules["scipy.stats"], sys.modules["distutils.version"]))
print(mxnet.test_utils.ss is scipy.stats)
"""
    assert output(code).split() == ["True", "True"]


def test_gluoncv_takes_no_notice_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it could not be imported next to PyTorch 2. Without PyTorch it works."""
    spec = find_spec("gluoncv")
    if spec is None:
        pytest.skip("gluoncv is not installed")
    # A package without the rest of gluoncv, which takes seconds to import.
    package, pytorch = ModuleType("gluoncv"), ModuleType("torch")
    package.__path__ = spec.submodule_search_locations or []
    pytorch.__version__ = "2.0.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gluoncv", package)
    monkeypatch.setitem(sys.modules, "torch", pytorch)
    monkeypatch.delitem(sys.modules, "gluoncv.check", raising=False)
    check = importlib.import_module("gluoncv.check")
    # As gluoncv calls it, which catches an ImportError.
    with pytest.raises(ImportError):
        check._require_pytorch_version("1.4.0", "2.0.0")
    del sys.modules["gluoncv.check"]


@pytest.mark.parametrize("earlier, later", [("1.9.5", "1.17"), ("1.26.4", "2.0.0rc1")])
def test_versions_are_compared_by_numbers(earlier: str, later: str) -> None:
    numbers = mxnet_compat._version_numbers
    assert numbers(earlier) < numbers(later)
    assert numbers(later) >= numbers(later)


@pytest.mark.slow
def test_mxnet_works_in_workers_and_child_processes(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        """
import multiprocessing, os, subprocess, sys
import embedding_learning

def work(value):
    import mxnet
    return float(mxnet.nd.array([value]).asscalar()), os.environ["OMP_NUM_THREADS"]

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*pool.apply(work, (2,)))
    child = "import os; print(os.environ['OMP_NUM_THREADS'])"
    print(subprocess.check_output([sys.executable, "-c", child], text=True).strip())
"""
    )
    done = python(str(program), PYTHONPATH=str(ROOT))
    cores = str(len(os.sched_getaffinity(0)))
    assert done.stdout.split() == ["2.0", cores, cores], done.stderr


@pytest.mark.slow
def test_numpy_scalars_may_be_parameters_of_operators() -> None:
    """Numbers reach the operator as text, which numpy 2 formats in another way."""
    code = """
import embedding_learning, mxnet as mx, numpy as np
image = mx.nd.ones((1, 2, 2))
print(mx.nd.image.normalize(image, mean=(np.float32(0.5),), std=(np.float64(1),)).mean().asscalar())
"""
    assert output(code) == "0.5"


@pytest.mark.slow
def test_the_program_tells_the_versions() -> None:
    done = python("-m", "embedding_learning.runtime.mxnet_compat", OMP_NUM_THREADS="2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Python {sys.version.split()[0]}, mxnet 1.9.1, numpy ")
    assert done.stdout.endswith(", 2 threads\n")


def test_the_program_explains_what_is_missing(tmp_path: Path) -> None:
    message = "libGL.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "cv2.py").write_text(f"raise ImportError({message!r})\n")
    done = python("-m", "embedding_learning.runtime.mxnet_compat", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "The system library libGL.so.1 is missing: its Debian or Ubuntu package is libgl1"
    ]


@pytest.mark.parametrize(
    ("library", "advice"),
    [
        ("libgomp.so.1", "package is libgomp1"),
        ("libquadmath.so.0", "package is libquadmath0"),
        ("libGL.so.1", "package is libgl1"),
        ("libgthread-2.0.so.0", "package is libglib2.0-0"),
        ("libglib-2.0.so.0", "package is libglib2.0-0"),
        ("libcuda.so.1", "NVIDIA driver"),
        ("libcublas.so.11", "requirements-gpu.txt"),
        ("libcublasLt.so.11", "requirements-gpu.txt"),
        ("libcudart.so.11.0", "requirements-gpu.txt"),
        ("libcudnn.so.8", "requirements-gpu.txt"),
        ("libcufft.so.10", "requirements-gpu.txt"),
        ("libcurand.so.10", "requirements-gpu.txt"),
        ("libcusolver.so.11", "requirements-gpu.txt"),
        ("libnccl.so.2", "requirements-gpu.txt"),
        ("libnvrtc.so.11.2", "requirements-gpu.txt"),
        ("libnvToolsExt.so.1", "requirements-gpu.txt"),
    ],
)
@pytest.mark.parametrize("kind", [ImportError, OSError])
def test_a_missing_library_is_explained(library: str, advice: str, kind: type[Exception]) -> None:
    error = kind(f"{library}: cannot open shared object file: No such file or directory")
    explanation = mxnet_compat.explain_import_error(error)
    assert explanation is not None
    assert library in explanation
    assert advice in explanation
    assert "\n" not in explanation


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("mxnet", "mxnet"),
        ("cv2", "opencv-python"),
        ("numpy", "numpy"),
        ("gluoncv.model_zoo", "gluoncv"),
        ("PIL", "pillow"),
        ("distutils.version", "setuptools"),
    ],
)
def test_a_missing_package_is_explained(module: str, package: str) -> None:
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)
    explanation = mxnet_compat.explain_import_error(error)
    assert explanation is not None
    assert f"package {package} is missing" in explanation
    assert explanation.endswith(format_install_command())


@pytest.mark.parametrize("program", [["train.py"], ["-m", "embedding_learning", "check"]])
def test_one_line_says_that_nothing_is_installed(program: list[str], tmp_path: Path) -> None:
    name = "train.py" if "train.py" in program else "embedding_learning"
    (tmp_path / "numpy.py").write_text("raise ModuleNotFoundError('none', name='numpy')\n")
    done = python(*program, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    command = format_install_command()
    assert done.stderr == f"{name}: error: The Python package numpy is missing: run {command}\n"


@pytest.mark.parametrize(
    ("system", "machine"), [("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "x86_64")]
)
def test_platforms_with_a_wheel_need_no_explanation(system: str, machine: str) -> None:
    assert mxnet_compat.explain_platform(system, machine) is None


@pytest.mark.parametrize(
    ("system", "machine", "name"),
    [
        ("Windows", "AMD64", "Windows on AMD64"),
        ("Darwin", "arm64", "macOS on arm64"),
        ("Linux", "armv7l", "Linux on armv7l"),
    ],
)
def test_a_platform_without_a_wheel_is_explained(system: str, machine: str, name: str) -> None:
    explanation = mxnet_compat.explain_platform(system, machine)
    assert explanation is not None
    assert explanation.startswith(f"MXNet 1.9.1 has no wheel for {name}, only for Linux on x86-64")
    assert "Linux container" in explanation
    assert "\n" not in explanation


@pytest.mark.parametrize("module", ["mxnet", "numpy", "fcntl"])
def test_no_package_is_recommended_where_mxnet_has_no_wheel(
    monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setattr(mxnet_compat, "explain_platform", lambda: "no wheel for this platform")
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)
    assert mxnet_compat.explain_import_error(error) == "no wheel for this platform"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("libGL.so.1: cannot open shared object file"),
        ImportError("cannot import name 'x' from 'y'"),
        OSError("libunheardof.so.1: cannot open shared object file: No such file or directory"),
        ModuleNotFoundError("No module named 'unheard_of'", name="unheard_of"),
        ModuleNotFoundError("raised without a name"),
    ],
)
def test_other_errors_are_not_explained(error: Exception) -> None:
    assert mxnet_compat.explain_import_error(error) is None


def compile_library(file: Path, code: str, needs: Sequence[Path] = ()) -> None:
    """Compile a shared library that finds those it needs only if they are loaded already."""
    file.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-shared", "-fPIC", "-Wl,--no-as-needed", f"-Wl,-soname,{file.name}"]
    arguments = ["-x", "c", "-", "-x", "none", *map(str, needs), "-o", str(file)]
    subprocess.run([*command, *arguments], input=code, text=True, check=True)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc compiles the stand-ins for CUDA")
@pytest.mark.parametrize("mxnet_package", ["mxnet_cu112", "mxnet"])
def test_cuda_libraries_are_loaded_before_those_that_need_them(
    tmp_path: Path, mxnet_package: str
) -> None:
    # Neither alphabetical order nor its reverse satisfies these.
    first, middle, last = (
        tmp_path / "nvidia" / name / "lib" / f"lib{name}.so.11" for name in ("b", "c", "a")
    )
    compile_library(first, "int one(void) { return 1; }")
    compile_library(middle, "int one(void); int two(void) { return 2 * one(); }", [first])
    compile_library(last, "int two(void); int three(void) { return 1 + two(); }", [middle])
    metadata = tmp_path / f"{mxnet_package}-1.9.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {mxnet_package}\nVersion: 1.9.1\n")
    (tmp_path / "nvidia" / "b" / "lib" / "libbroken.so.1").write_text("not a library")

    code = (
        "from embedding_learning.runtime import mxnet_compat; mxnet_compat._prepare(); "
        "import ctypes; "
    )
    found = output(f"{code} print(hasattr(ctypes.CDLL(None), 'three'))", PYTHONPATH=str(tmp_path))
    assert found == str(mxnet_package == "mxnet_cu112")
