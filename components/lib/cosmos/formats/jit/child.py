"""Runs alone in a child process: TorchScript archive in, safetensors out.

Started by path with ``python -I``; imports nothing of this project. A TorchScript archive is a
program, so before it is opened the process limits what it may use and, where the kernel lets an
ordinary user do that, leaves the network. Argument: SOURCE DESTINATION MAX_BYTES SECONDS.
"""

import ctypes
import resource
import sys

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


def confine(max_bytes: int, seconds: int) -> None:
    """Limits that hold for this process and whatever it would start."""
    ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET)  # best effort: refused in some pods
    for kind, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, max_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, 24 * 1024**3 + 4 * max_bytes),
        (resource.RLIMIT_NOFILE, 256),
    ):
        hard = resource.getrlimit(kind)[1]
        allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (allowed, allowed))


def main() -> None:
    """Write every tensor of the archive's state dict."""
    source, destination, max_bytes, seconds = sys.argv[1:]
    confine(int(max_bytes), int(seconds))

    import torch
    from safetensors.torch import save_file

    state = torch.jit.load(source, map_location="cpu").state_dict()
    save_file(
        {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}, destination
    )


if __name__ == "__main__":
    main()
