"""Makes MXNet 1.9.1 work with Pythons and numpys that are newer than itself.

MXNet 1.9.1 is the last release of the project. Its binary still works, but its import fails with a
current numpy, and by default it trains at about half speed. `install()` runs when the package
`embedding_learning` is imported. From then on `import mxnet` works anywhere in the process, in its
data workers and in child processes that import the package. `import gluoncv` then works next to
PyTorch 2, too, which it refuses otherwise.

The program `python -m embedding_learning.runtime.mxnet_compat` prints in one line whether this
installation works, and if not, what to install.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from embedding_learning.runtime import lazy_operators
from embedding_learning.runtime.install_commands import format_install_command

# The system libraries that the wheels of MXNet and OpenCV need, and the package that contains each
# of them on Debian and Ubuntu.
_DEBIAN_PACKAGES = {
    "libgomp.so": "libgomp1",
    "libquadmath.so": "libquadmath0",
    "libGL.so": "libgl1",
    "libgthread-2.0.so": "libglib2.0-0",
    "libglib-2.0.so": "libglib2.0-0",
}

# The names of the CUDA libraries that requirements-gpu.txt installs begin with these.
_CUDA_LIBRARIES = (
    "libcublas",
    "libcudart",
    "libcudnn",
    "libcufft",
    "libcurand",
    "libcusolver",
    "libcusparse",
    "libnccl",
    "libnvrtc",
    "libnvToolsExt",
)

# Import names, and the names of their packages, of what requirements.txt installs.
_PYTHON_PACKAGES = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "distutils": "setuptools",
    "gluoncv": "gluoncv",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
    "threadpoolctl": "threadpoolctl",
    "graphviz": "graphviz",
    "matplotlib": "matplotlib",
    "mxnet": "mxnet",
    "numpy": "numpy",
    "requests": "requests",
    "scipy": "scipy",
    "setuptools": "setuptools",
    "tqdm": "tqdm",
}

# The systems and machines, as Python names them, for which MXNet 1.9.1 has wheels.
_WHEELS = {("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "x86_64")}

# Modules that MXNet imports at once, and of which training and embedding use nothing. Their import
# would take a quarter of the time of MXNet's own.
_IMPORTED_LATE = ("onnx", "requests", "scipy.sparse")

# The module with which gluoncv looks for MXNet and PyTorch during its import.
_GLUONCV_CHECK = "gluoncv.check"

_MISSING_LIBRARY = re.compile(r"\b(lib[\w+-]+(?:\.\d+)?\.so)([.\d]*): cannot open shared object")


# Whether this module set OMP_NUM_THREADS, not the user.
has_chosen_threads = False


def install() -> None:
    """Makes `import mxnet` work and use all cores. It is cheap and may be called again."""
    # Without it MXNet loses up to half of its speed: on two cores it trained ResNet-50 at 3.4
    # images/s instead of 4.6 to 5.1. libgomp reads the variable only once, when it is loaded.
    global has_chosen_threads
    if not os.environ.get("OMP_NUM_THREADS"):
        has_chosen_threads = True
        os.environ["OMP_NUM_THREADS"] = str(_usable_cores())
    # A thread that waits for the others sleeps. libgomp's default is to spin for some milliseconds,
    # which takes the cores from the threads that it waits for if other programs compute too: with
    # two of them on two cores, training and embedding were half as fast.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # `python -m` on this module would warn that the package has already imported it.
    warnings.filterwarnings("ignore", f"'{__name__}' found in sys.modules", RuntimeWarning)
    if "mxnet" in sys.modules:
        _prepare()
    if not any(isinstance(finder, _MXNetFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MXNetFinder())


class _MXNetFinder:
    """Prepares the import of MXNet when it begins, and that of gluoncv.

    It stays installed, because an import that failed may be tried again. Once MXNet is imported,
    Python does not call it for MXNet any more.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Prepares for MXNet and returns where it is. Of other packages it knows nothing."""
        if fullname == "mxnet":
            _prepare()
        elif fullname != _GLUONCV_CHECK and fullname not in lazy_operators.MODULES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec and spec.loader:
            loader: Any = _QuickLoader(spec.loader)
            spec.loader = loader
        return spec


class _QuickLoader:
    """Loads MXNet without modules and functions that it makes but does not need.

    gluoncv is loaded without PyTorch.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        """Runs the code of MXNet or of one of its modules."""
        if module.__name__ in lazy_operators.MODULES:
            lazy_operators.prepare(module)
            self._loader.exec_module(module)
            return
        if module.__name__ == _GLUONCV_CHECK:
            self._loader.exec_module(module)
            vars(module)["_require_pytorch_version"] = _hide_pytorch
            return
        with _without_unused_modules():
            self._loader.exec_module(module)


@contextmanager
def _without_unused_modules() -> Iterator[None]:
    """Hides large modules that MXNet imports, unless they are imported already.

    MXNet tries to import scikit-learn for a base class of its old FeedForward, and scipy.stats for
    its own tests, and works without them; scikit-learn brings pandas. It asks distutils.version,
    which setuptools brings, only whether numpy is at least 1.17. Of some others it needs something
    only in functions that are rarely called. Afterwards all can be imported.
    """
    version = ModuleType("distutils.version")
    vars(version).update(LooseVersion=_version_numbers, StrictVersion=_version_numbers)
    # With None, Python raises ModuleNotFoundError.
    instead: dict[str, ModuleType | None] = {"sklearn": None, "scipy.stats": None}
    instead |= {name: _LateModule(name) for name in _IMPORTED_LATE if _can_be_imported(name)}
    if "distutils" not in sys.modules:
        instead |= {"distutils": ModuleType("distutils"), "distutils.version": version}
    instead = {name: module for name, module in instead.items() if name not in sys.modules}
    sys.modules.update(instead)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name, module in instead.items():
            # A late module that was used has been replaced by the real one, which stays.
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _hide_pytorch(*versions: str) -> None:
    """Replaces gluoncv's check of PyTorch's version, and says that there is no PyTorch.

    If PyTorch 2 is installed, gluoncv would refuse to be imported. Its networks for MXNet need no
    PyTorch.
    """
    raise ImportError("gluoncv is used without PyTorch")


def _can_be_imported(name: str) -> bool:
    """Returns whether a module is installed and not imported yet."""
    try:
        return name not in sys.modules and find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False


class _LateModule(ModuleType):
    """Replaces a module until something of it is used. Only then the module is imported."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def _version_numbers(version: str) -> tuple[int, ...]:
    """Returns the first two numbers of a version; of these, the larger is the later."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _usable_cores() -> int:
    """Returns how many cores this process may use. A container often has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _prepare() -> None:
    """Does what has to be done before MXNet's own code runs."""
    _restore_numpy_names()
    _preload_cuda_libraries()


def _restore_numpy_names() -> None:
    """Defines the names that MXNet looks up in numpy and that numpy has removed."""
    import numpy as np

    _set_missing(np, {"bool": bool})  # removed in 1.24; numpy 2 has its own
    if int(np.__version__.split(".")[0]) < 2:
        return
    _set_missing(np, {"PZERO": 0.0, "NZERO": -0.0, "PINF": np.inf, "NINF": -np.inf})
    _set_missing(np, {"Inf": np.inf, "NaN": np.nan, "NAN": np.nan})
    _set_missing(np, {"alltrue": np.all, "sometrue": np.any})
    _set_missing(np, {"product": np.prod, "round_": np.round})
    # MXNet only re-exports these under mxnet.numpy, which this project does not use.
    unused = ("in1d", "mirr", "msort", "npv", "pmt", "ppmt", "pv", "rate", "trapz")
    _set_missing(np, dict.fromkeys(unused, _removed_from_numpy))
    # MXNet passes lists and tuples of parameters to its operators as text. numpy 2 would write
    # "[np.float32(0.1)]", and they can read only "[0.1]". This is set for the importing thread.
    # The stubs of numpy 1 do not have the value.
    np.set_printoptions(legacy="1.25")  # type: ignore[arg-type, unused-ignore]


def _set_missing(module: ModuleType, names: dict[str, Any]) -> None:
    """Sets attributes of a module unless it has them."""
    # Not hasattr(): numpy warns when a name is looked up that it has removed.
    for name in names.keys() - vars(module).keys():
        setattr(module, name, names[name])


def _removed_from_numpy(*args: Any, **kwargs: Any) -> None:
    """Replaces a function of numpy 1."""
    raise NotImplementedError("numpy 2 no longer has this function")


def _preload_cuda_libraries() -> None:
    """Loads the CUDA libraries installed by pip. The GPU build of MXNet does not look for them."""
    if not _is_gpu_build():
        return
    import ctypes

    waiting = _cuda_library_files()
    while waiting:
        failed = []
        for file in waiting:
            try:
                ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
            except OSError:
                failed.append(file)
        # A library can be loaded only after those that it needs, so this is repeated.
        # If one is missing in the end, the import of MXNet names it.
        if len(failed) == len(waiting):
            return
        waiting = failed


def _is_gpu_build() -> bool:
    """Returns whether the installed MXNet is the one of requirements-gpu.txt."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution("mxnet-cu112")
    except PackageNotFoundError:
        return False
    return True


def _cuda_library_files() -> list[Path]:
    """Returns the shared libraries of the installed nvidia-* packages."""
    spec = find_spec("nvidia")
    folders = (spec and spec.submodule_search_locations) or []
    files = [file for folder in folders for file in Path(folder).glob("*/lib/*.so*")]
    # NVBLAS would intercept all calls of BLAS, and those of SciPy crash in it.
    return sorted(file for file in files if not file.name.startswith("libnvblas"))


def explain_platform(
    system: str = platform.system(), machine: str = platform.machine()
) -> str | None:
    """Returns a line if MXNet has no wheel for this platform, with a way out; otherwise None."""
    if (system, machine) in _WHEELS:
        return None
    name = "macOS" if system == "Darwin" else system
    return (
        f"MXNet 1.9.1 has no wheel for {name} on {machine}, only for Linux on x86-64 and aarch64 "
        "and for macOS on x86-64: run this in a Linux container (Docker, Podman, WSL)"
    )


def explain_import_error(error: BaseException) -> str | None:
    """Returns a line that says what to install if an import failed without it; otherwise None."""
    if isinstance(error, ModuleNotFoundError):
        # If MXNet cannot be installed, pip installs nothing else of the list either.
        return explain_platform() or _explain_missing_module(error.name or "")
    if not isinstance(error, (ImportError, OSError)):
        return None
    match = _MISSING_LIBRARY.search(str(error))
    return _explain_missing_library(match[1], match[1] + match[2]) if match else None


def _explain_missing_module(name: str) -> str | None:
    """Explains a module that Python did not find."""
    package = _PYTHON_PACKAGES.get(name.split(".")[0])
    if package is None:
        return None
    return f"The Python package {package} is missing: run {format_install_command()}"


def _explain_missing_library(name: str, file: str) -> str | None:
    """Explains a shared library that the loader did not find."""
    if name in _DEBIAN_PACKAGES:
        package = _DEBIAN_PACKAGES[name]
        return f"The system library {file} is missing: its Debian or Ubuntu package is {package}"
    if name == "libcuda.so":
        return (
            f"The NVIDIA driver ({file}) is missing: install it, or use the CPU build: "
            f"pip uninstall mxnet-cu112 && {format_install_command()}"
        )
    if name.startswith(_CUDA_LIBRARIES):
        return f"The CUDA library {file} is missing: run {format_install_command('gpu')}"
    return None


def main() -> int:
    """Prints the versions in use, or why MXNet or OpenCV cannot be imported."""
    try:
        import cv2
        import mxnet
        import numpy
    except (ImportError, OSError) as error:
        explanation = explain_import_error(error)
        if explanation is None:
            raise
        print(explanation, file=sys.stderr)
        return 1
    python = ".".join(map(str, sys.version_info[:3]))
    versions = f"mxnet {mxnet.__version__}, numpy {numpy.__version__}, OpenCV {cv2.__version__}"
    print(f"Python {python}, {versions}, {os.environ['OMP_NUM_THREADS']} threads")
    return 0


if __name__ == "__main__":
    sys.exit(main())
