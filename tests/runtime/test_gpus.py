"""NVIDIA's driver, of which a stand-in answers; MXNet's GPU build, where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from embedding_learning.runtime import gpus
from tests.helpers.limits import HANG_LIMIT
from tests.helpers.paths import ROOT

WITHOUT = "leave --gpus out to train on the CPU"
OLD = "and MXNet needs 11.0; install version 450.80.02 or later"

# The stand-in's answers, --gpus, and the line.
MISTAKES = [
    (
        {"DRIVER_VERSION": "10020", "GPU_CAPABILITIES": "8.6"},
        "0",
        f"--gpus 0: NVIDIA's driver is for CUDA 10.2, {OLD}, or {WITHOUT}",
    ),
    (
        {"DRIVER_STATUS": "999", "GPU_CAPABILITIES": "8.6"},
        "0",
        "--gpus 0: NVIDIA's driver does not start (error 999: unknown error); see what nvidia-smi "
        f"says, or {WITHOUT}",
    ),
    ({}, "0", f"--gpus 0: this machine has no GPU; {WITHOUT}"),
    (
        {"CUDA_VISIBLE_DEVICES": ""},
        "0",
        f"--gpus 0: this machine has no GPU (CUDA_VISIBLE_DEVICES=); {WITHOUT}",
    ),
    (
        {"GPU_CAPABILITIES": "8.6"},
        "0,1",
        "--gpus 0,1: this machine has 1 GPU, numbered from 0; name others, or " + WITHOUT,
    ),
    (
        {"GPU_CAPABILITIES": "8.6,7.5", "CUDA_VISIBLE_DEVICES": "3,5"},
        "5,0",
        "--gpus 5,0: this machine has 2 GPUs, numbered from 0 (CUDA_VISIBLE_DEVICES=3,5); name "
        f"others, or {WITHOUT}",
    ),
    (
        {"GPU_CAPABILITIES": "8.6,9.0"},
        "0,1",
        "--gpus 0,1: GPU 1, Stand-in 1, has compute capability 9.0, and MXNet 1.9.1 has code for "
        f"5.0 to 8.9 only; name another GPU, or {WITHOUT}",
    ),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stand-in for NVIDIA's driver library."""
    if not shutil.which("gcc"):
        pytest.skip("gcc compiles the stand-in for NVIDIA's driver")
    library = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    source = ROOT / "tests" / "helpers" / "gpu_driver.c"
    command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", str(source)]
    subprocess.run([*command, "-o", str(library)], check=True)
    return library.parent


@pytest.fixture(scope="module")
def gpu_python() -> str:
    """A Python with the GPU build of MXNet."""
    if "GPU_PYTHON" in os.environ:
        return os.environ["GPU_PYTHON"]
    try:
        distribution("mxnet-cu112")
    except PackageNotFoundError:
        pytest.skip("mxnet-cu112 is not installed; GPU_PYTHON may name a Python that has it")
    return sys.executable


def run(
    command: list[str], libraries: Path | None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in the checkout, where it finds these libraries first."""
    ours = {"CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "MXNET_USE_FUSION"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    if libraries:
        variables["LD_LIBRARY_PATH"] = str(libraries)
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=HANG_LIMIT,
    )


def ask(libraries: Path, numbers: str, what: str = "'fine'", **variables: str) -> str:
    """Returns the error of these GPUs, or else the value of an expression."""
    code = f"""
import os, sys
from embedding_learning.runtime import gpus
from embedding_learning.cli.parser import UsageError
try:
    gpus.check([{numbers}])
    print({what})
except UsageError as error:
    print(error)
assert "mxnet" not in sys.modules
"""
    done = run([sys.executable, "-c", code], libraries, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.rstrip("\n")


@pytest.mark.parametrize(("answers", "numbers", "line"), MISTAKES)
def test_what_is_wrong_is_reported_in_one_line(
    driver: Path, answers: dict[str, str], numbers: str, line: str
) -> None:
    assert ask(driver, numbers, **answers) == line


def test_a_missing_driver_is_reported_in_one_line(tmp_path: Path) -> None:
    # On a machine that has a driver it must not be found.
    (tmp_path / "libcuda.so.1").write_text("not a library")
    assert ask(tmp_path, "0") == (
        "--gpus 0: NVIDIA's driver (libcuda.so.1) is missing; install version 450.80.02 or later, "
        f"or {WITHOUT}"
    )


@pytest.mark.parametrize("capability", ["5.0", "5.2", "6.1", "7.0", "7.5", "8.0", "8.6", "8.9"])
def test_gpus_that_run_the_wheel_pass(driver: Path, capability: str) -> None:
    assert ask(driver, "0", GPU_CAPABILITIES=capability) == "fine"


@pytest.mark.parametrize("capability", ["3.7", "9.0", "10.0", "12.0"])
def test_gpus_without_code_in_the_wheel_do_not(driver: Path, capability: str) -> None:
    line = ask(driver, "0", GPU_CAPABILITIES=capability)
    assert f"has compute capability {capability}, and MXNet 1.9.1 has code for 5.0 to" in line


def test_only_the_gpus_asked_for_are_looked_at(driver: Path) -> None:
    assert ask(driver, "2,0", GPU_CAPABILITIES="8.6,9.0,7.5,3.5") == "fine"


@pytest.mark.parametrize(
    ("version", "of_the_user", "expected"),
    [
        ("11000", None, "0"),
        ("11070", None, "0"),
        ("11070", "1", "1"),
        ("11080", None, "None"),
        ("12040", None, "None"),
    ],
)
def test_mxnet_compiles_at_run_time_only_what_the_driver_can_read(
    driver: Path, version: str, of_the_user: str | None, expected: str
) -> None:
    answers = {"DRIVER_VERSION": version, "GPU_CAPABILITIES": "8.6"}
    if of_the_user:
        answers["MXNET_USE_FUSION"] = of_the_user
    assert ask(driver, "0", "os.environ.get('MXNET_USE_FUSION')", **answers) == expected


def test_the_memory_of_a_gpu(driver: Path) -> None:
    # More than 32 bits hold.
    answers = ask(
        driver, "1", "gpus.read_total_memory(1)", GPU_CAPABILITIES="8.6,8.6", GPU_MEMORY="2" * 11
    )
    assert answers == "2" * 11


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pooled_storage_manager.h:161: cudaMalloc retry failed: out of memory", True),
        ("MXNetError: cudaMalloc failed: out of memory", True),
        ("gpu_device_storage.h, line 71\nMXNetError: CUDA: out of memory", True),
        ("Check failed: e == cudaSuccess || e == x: CUDA: out of memory", True),
        ("Check failed: e == 0 (2 vs. 0) : CUDNN_STATUS_ALLOC_FAILED", True),
        ("Check failed: e == 0 (3 vs. 0) : cuBLAS: CUBLAS_STATUS_ALLOC_FAILED", True),
        ("of 9 bytes, please consider reducing batch/model size or increasing the", True),
        ("please consider reducing the batch/model size, or", True),
        ("CUDA: an illegal memory access was encountered", False),
        ("cuDNN: CUDNN_STATUS_EXECUTION_FAILED", False),
        ("cpu_device_storage.h, line 71\nMXNetError: Failed to allocate CPU Memory", False),
        ("libpng: out of memory", False),
    ],
)
def test_mxnets_errors_that_tell_of_used_up_memory(text: str, expected: bool) -> None:
    assert gpus.is_out_of_memory(mx.base.MXNetError(text)) is expected


def test_the_gpu_build_loads_cuda_from_the_packages_alone(gpu_python: str, driver: Path) -> None:
    code = """
import embedding_learning, mxnet, nvidia
print(list(nvidia.__path__)[0])
print(mxnet.runtime.Features().is_enabled("CUDA"), mxnet.nd.ones(2).sum().asscalar())
print(*sorted({line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}), sep="\\n")
"""
    done = run([gpu_python, "-c", code], driver, GPU_CAPABILITIES="8.6")
    assert done.returncode == 0, done.stderr
    packages, works, *files = done.stdout.splitlines()
    assert works == "True 2.0"
    loaded = {Path(file).name: Path(file) for file in files}
    assert loaded.pop("libcuda.so.1").parent == driver
    # What libmxnet.so and cuDNN ask for.
    needed = [
        "libcublas.so.11", "libcublasLt.so.11", "libcudart.so.11.0", "libcudnn.so.8",
        "libcudnn_cnn_infer.so.8", "libcudnn_cnn_train.so.8", "libcudnn_ops_infer.so.8",
        "libcudnn_ops_train.so.8", "libcufft.so.10", "libcurand.so.10", "libcusolver.so.11",
        "libnccl.so.2", "libnvrtc.so.11.2", "libnvToolsExt.so.1",
    ]  # fmt: skip
    assert [name for name in needed if name not in loaded] == []
    of_cuda = [file for name, file in loaded.items() if name.startswith(("libcu", "libnv"))]
    assert [file for file in of_cuda if Path(packages) not in file.parents] == []


def test_the_gpu_build_leaves_blas_to_the_others(gpu_python: str, driver: Path) -> None:
    code = """
import embedding_learning, mxnet, numpy as np
from scipy.linalg import blas, svd
x = np.eye(400, dtype=np.float32)
print(blas.sgemm(1.0, x, x).sum(), svd(x)[1].sum())
"""
    done = run([gpu_python, "-c", code], driver, GPU_CAPABILITIES="8.6")
    assert (done.returncode, done.stdout) == (0, "400.0 400.0\n"), done.stderr


@pytest.mark.parametrize(("answers", "numbers", "line"), MISTAKES)
def test_the_command_with_the_gpu_build(
    gpu_python: str, driver: Path, tmp_path: Path, answers: dict[str, str], numbers: str, line: str
) -> None:
    prefix = f"--save-model-prefix={tmp_path / 'model'}"
    command = [gpu_python, "train.py", f"--gpus={numbers}", prefix]
    done = run(command, driver, **answers)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"train.py: error: {line}"
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [[], ["--gpus=0"]])
def test_the_gpu_build_without_a_driver(gpu_python: str, flags: list[str], tmp_path: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a driver")
    prefix = f"--save-model-prefix={tmp_path / 'model'}"
    done = run([gpu_python, "train.py", *flags, prefix], None)
    assert done.returncode == 2
    assert done.stderr == (
        "train.py: error: The NVIDIA driver (libcuda.so.1) is missing: install it, or use the CPU "
        "build: pip uninstall mxnet-cu112 && pip install -r requirements.txt\n"
    )


def skip_with_fewer_gpus(count: int) -> None:
    found = mx.context.num_gpus()
    if found < count:
        pytest.skip(f"needs {count} NVIDIA GPUs and MXNet's GPU build, which finds {found} here")


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 2])
def test_training_on_gpus(tiny_cub, train_command, tmp_path, count) -> None:
    skip_with_fewer_gpus(count)
    done = train_command(
        tmp_path,
        f"--data-path={tiny_cub}",
        f"--gpus={','.join(map(str, range(count)))}",
        "--model=resnet18_v1",
        "--image-size=40",
        "--crop-size=32",
        f"--batch-size={8 // count}",
        "--batch-k=2",
        "--epochs=2",
        "--batch-num=4",
        "--log-interval=2",
        "--workers=0",
        "--cache=none",
    )
    assert done.returncode == 0, done.stderr
    losses = [line for line in done.stderr.splitlines() if "training loss=" in line]
    assert len(losses) == 6
    assert all(np.isfinite(float(line.rpartition("=")[2])) for line in losses)
    assert "Best validation Recall@1" in done.stderr


@pytest.mark.gpu
def test_used_up_memory_is_recognised() -> None:
    skip_with_fewer_gpus(1)
    arrays = []
    with pytest.raises(mx.base.MXNetError) as raised:
        for _ in range(gpus.read_total_memory(0) // 2**30 + 1):
            arrays.append(mx.nd.zeros(2**28, mx.gpu(0)))
            arrays[-1].wait_to_read()
    assert gpus.is_out_of_memory(raised.value)
