"""Copies of a rank's state on the host, made while training goes on.

On a GPU the copies are queued on a stream of their own into page-locked buffers that every save
uses again, so the loop is stopped only for the queueing. The next forward and backward pass run
beside them, since they only read the weights; the optimizer, which writes, waits. Page-locking
costs far more than a copy, so `prepare` does it before the first step. On a CPU the copy is made at
once. The trade-off: the buffers (for checkpoints 12 bytes per parameter of this rank) are held for
the whole run.
"""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor

import torch

TOUCHING_THREADS = 8
#: Elements that are worth a thread.
SMALLEST_PART = 2**20


class HostCopies:
    """Host buffers by name, filled by `copy_out`."""

    def __init__(self, device: torch.device, stream: torch.cuda.Stream | None = None) -> None:
        """``stream``: where to queue copies; None makes one (there are few: CUDA reuses them)."""
        self.device = device
        self._buffers: dict[str, torch.Tensor] = {}
        if device.type == "cuda" and stream is None:
            stream = torch.cuda.Stream(device)
        self.stream = stream
        self._event: torch.cuda.Event | None = None

    def prepare(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """The buffer for tensors like this one, page-locked where a GPU copies into it.

        A larger one of the same name serves as well: this is then the beginning of it.
        """
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < like.numel() or buffer.dtype != like.dtype:
            self.wait()  # the buffer that goes may still be read or written
            buffer = torch.empty(like.numel(), dtype=like.dtype)
            if self.stream is not None:
                _page_lock(buffer)
            self._buffers[name] = buffer
        return buffer[: like.numel()].view(like.shape)

    def begin(self) -> None:
        """Before the `copy_out`s of one save: they see everything queued so far."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def copy_out(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Copy ``value`` into its buffer. Valid after `wait`, until the next save."""
        target = self.prepare(name, value)
        if self.stream is None:
            target.copy_(value)
        else:
            with torch.cuda.stream(self.stream):
                target.copy_(value, non_blocking=True)
        return target

    def copy_back(self, name: str, value: torch.Tensor) -> None:
        """Copy what `copy_out` kept back into ``value``. There before what follows `fence`."""
        source = self.prepare(name, value)
        if self.stream is None:
            value.copy_(source)
        else:
            with torch.cuda.stream(self.stream):
                value.copy_(source, non_blocking=True)

    def end(self) -> None:
        """After the last `copy_out` of a save, or the last `copy_back`."""
        if self.stream is not None:
            self._event = torch.cuda.Event()
            self._event.record(self.stream)

    def wait(self) -> None:
        """Stop the calling thread until the copies are there (the thread that writes them)."""
        event = self._event
        if event is not None:
            event.synchronize()

    def fence(self) -> None:
        """Make what the GPU is given from now on wait for the copies (before the optimizer)."""
        if self._event is not None:
            torch.cuda.current_stream(self.device).wait_event(self._event)


def touch(tensor: torch.Tensor) -> None:
    """Write zeros with several threads, so that the system has given its memory to this tensor.

    CUDA would ask for it page by page with one thread: 0.5 s a GiB, twice as long as both together.
    """
    flat = tensor.view(-1)
    parts = flat.split(max(-(-len(flat) // TOUCHING_THREADS), SMALLEST_PART))
    with ThreadPoolExecutor(TOUCHING_THREADS) as pool:
        list(pool.map(torch.Tensor.zero_, parts))


def _page_lock(tensor: torch.Tensor) -> None:
    """Let a GPU copy straight into this tensor, for as long as it lives. Raises CudaError: what
    CUDA refuses here it would report at some later, unrelated call."""
    if tensor.nbytes:
        touch(tensor)
        # torch's own page-locked allocator rounds sizes up to powers of two.
        runtime, address = torch.cuda.cudart(), tensor.data_ptr()
        torch.cuda.check_error(runtime.cudaHostRegister(address, tensor.nbytes, 0))
        weakref.finalize(tensor, runtime.cudaHostUnregister, address)
