"""JAX's buffers as vectors of PETSc, on the host and on a GPU: device pointers, here and only here.

Quirks: PETSc shares an array even if it is read-only, and may write into it: what is given to a KSP
are copies, made where the buffers are. petsc4py hands on where a NumPy array lies, and PETSc asks
CUDA what lies there: so `setValuesCOO` takes an array that lies on the GPU.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from backsolve.adjoint.cached import cached_property
from backsolve.adjoint.status import InputError, SolverBroken

__all__ = ["CudaBuffers", "HostBuffers"]


class HostBuffers:
    """Buffers on the host, where an address can be read."""

    def __init__(self, PETSc: Any):
        self.PETSc = PETSc

    def filled(self, context: Any) -> None:
        """Wait until JAX has filled the buffers."""

    def done(self) -> None:
        """Wait until PETSc has done what it was asked."""

    def address(self, buffer: Any) -> np.ndarray:
        """Return the address of a buffer."""
        return np.asarray(buffer)

    def read(self, address: np.ndarray) -> np.ndarray:
        """Return a copy on the host."""
        return np.array(address)

    def write(self, address: np.ndarray, numbers: np.ndarray) -> None:
        """Copy from the host."""
        address[...] = numbers

    def vec(self, address: np.ndarray) -> Any:
        """Return a Vec on the buffer."""
        return self.PETSc.Vec().createWithArray(address, comm=self.PETSc.COMM_SELF)


class CudaBuffers(HostBuffers):
    """Buffers on an NVIDIA GPU."""

    def filled(self, context):
        """Wait for JAX's stream."""
        _driver("cuStreamSynchronize", ctypes.c_void_p(context.stream))

    def done(self):
        """Wait for PETSc's stream."""
        self.PETSc.DeviceContext.getCurrent().synchronize()

    def address(self, buffer):
        """Return an array that lies on the GPU: to read it would end the process."""
        there, here = buffer.__dlpack_device__()[1], self._number
        if there != here:
            raise InputError(
                f"the operands are on GPU {there}, but PETSc computes on GPU {here}: hide the "
                "others by CUDA_VISIBLE_DEVICES, or set "
                f"PETSC_OPTIONS='-device_select_cuda {there}'"
            )
        return np.asarray(_Located(buffer.__cuda_array_interface__))

    def read(self, address):
        """Return a copy on the host."""
        here = np.empty(address.shape, address.dtype)
        _driver("cuMemcpyDtoH_v2", _pointer(here), _pointer(address), _size(here))
        return here

    def write(self, address, numbers):
        """Copy from the host."""
        here = np.ascontiguousarray(numbers, address.dtype)
        _driver("cuMemcpyHtoD_v2", _pointer(address), _pointer(here), _size(here))

    def vec(self, address):
        """Return a Vec on the buffer."""
        return self.PETSc.Vec().createCUDAWithArrays(
            cudahandle=address.ctypes.data, size=address.size, comm=self.PETSc.COMM_SELF
        )

    @cached_property
    def _number(self) -> int:
        return self.PETSc.DeviceContext.getCurrent().getDevice().getDeviceId()


class _Located:
    """What NumPy asks where an array is."""

    def __init__(self, interface: dict[str, Any]):
        known = ("shape", "typestr", "data", "strides", "version")
        self.__array_interface__ = {k: v for k, v in interface.items() if k in known}


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _size(array: np.ndarray) -> ctypes.c_size_t:
    return ctypes.c_size_t(array.nbytes)


@functools.cache
def _libcuda() -> Any:
    return ctypes.CDLL("libcuda.so.1")  # the driver's own: there is one wherever a GPU works


def _driver(function: str, *arguments: Any) -> None:
    code = getattr(_libcuda(), function)(*arguments)
    if code:
        raise SolverBroken(f"CUDA's {function} failed with error {code}")
