"""The quick start's commands at tiny size where there is no network, no home folder and no program on PATH.

Run as `python bare_machine.py FOLDER`, in a process of its own. Where the kernel gives no network of our own,
connections to other machines fail as they would there.
"""

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
TINY = ["--model.dim=32", "--model.n_heads=2", "--model.ffn_dim=53", "--linear.rank=4", "--train.seq_len=16"]
TINY += ["--train.micro_batch_size=2", "--train.global_batch_size=4", "--schedule.total_steps=6", "--eval.tokens=64"]


def leave_the_network() -> None:
    """Move this process to a network that has nothing but the loopback interface."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
        connect = socket.socket.connect

        def connect_here(self: socket.socket, address: object) -> None:
            if self.family != socket.AF_UNIX and str(address[0]) not in ("127.0.0.1", "::1", "localhost"):
                raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
            connect(self, address)

        socket.socket.connect = connect_here
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def main() -> int:
    folder = Path(sys.argv[1])
    leave_the_network()
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=5)
    except OSError:
        pass
    else:
        raise AssertionError("there is a network")
    from pretrain.cli import main as sparlow

    run, config = f"--run.dir={folder}/run", str(Path(__file__).parents[1] / "configs" / "quickstart.toml")
    for command in (
        ["prepare", "--text", str(folder / "text"), "--vocab-size", "320", "--out", str(folder / "data")],
        ["train", config, run, f"--data.path={folder}/data", "--model.vocab_size=320", *TINY],
        ["eval", str(folder / "run")],
        ["sample", str(folder / "run"), "--tokens", "5"],
        ["report", str(folder / "run")],
        ["export", str(folder / "run"), "--out", str(folder / "hf")],
    ):
        print("sparlow", *command, flush=True)
        if status := sparlow(command):
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
