"""What ONNX Runtime is here, and what it runs on."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version

import onnxruntime as ort

from enginehouse_server.engine.cuda import CudaInfo, obstacle_to_cuda, open_device
from enginehouse_server.engine.device import Device
from enginehouse_server.engine.processor import processor_name
from enginehouse_server.errors import PlanMismatchError

__all__ = ["CPU", "CUDA", "check_installed", "computes_on_cuda", "describe_device", "describe_gpu"]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_LEAST_BF16 = (8, 0)  # compute capability


def describe_device(cuda_binding: str = "cuda-core") -> Device:
    """The GPU where ONNX Runtime can compute on one, else the processor.

    Raises:
        PlanMismatchError: Two packages of it are installed over each other.
    """
    check_installed()
    if computes_on_cuda(cuda_binding):
        return describe_gpu(_info(cuda_binding))
    # The provider for processors has no arithmetic in half precision.
    return Device(str(ort.__version__), processor_name(), has_bf16=False, provider=CPU)


def describe_gpu(info: CudaInfo) -> Device:
    """A GPU as ONNX Runtime's provider for CUDA sees it."""
    has_bf16 = info.compute_capability >= _LEAST_BF16
    return Device(str(ort.__version__), info.name, has_bf16, has_fp16=True, provider=CUDA)


def computes_on_cuda(cuda_binding: str = "cuda-core") -> bool:
    """Whether this ONNX Runtime has its provider for CUDA, and the machine a device for it."""
    return CUDA in ort.get_available_providers() and obstacle_to_cuda(cuda_binding) is None


def check_installed() -> None:
    """Raises PlanMismatchError where both packages of ONNX Runtime are installed.

    They have the same files: whichever came last wins, and either may be half the other.
    """
    found = {name: _version(name) for name in ("onnxruntime", "onnxruntime-gpu")}
    if all(found.values()):
        both = " and ".join(f"{name} {number}" for name, number in found.items())
        raise PlanMismatchError(
            f"{both} are both installed and overwrite each other's files: pip uninstall -y "
            "onnxruntime onnxruntime-gpu, then pip install 'enginehouse[cuda]' for a GPU or "
            "'enginehouse[onnxruntime]' for a processor"
        )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _info(cuda_binding: str) -> CudaInfo:
    device = open_device(cuda_binding)
    try:
        return device.info
    finally:
        device.close()
