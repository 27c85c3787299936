"""Two "machines" through launch/torchrun.sh: on one box, and with a network of their own each where Linux allows it."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from processes import free_port, torchrun
from shell import PREFIX
from support import ROOT, logged, tensor_hashes

pytestmark = pytest.mark.slow
OPTIONS = ["--schedule.total_steps=8", "--checkpoint.every=3"]
NAMES, ADDRESSES = ("sparlow-a", "sparlow-b"), ("10.213.7.1", "10.213.7.2")


@dataclass
class Machine:
    """How to run something on a machine, and what its environment has to say."""

    address: str
    prefix: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


def _ip(*arguments: str) -> int:
    return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode


@pytest.fixture(params=["one box", "namespaces"])
def machines(request) -> Iterator[list[Machine]]:
    """Two; the namespaces know no other address than each other's."""
    if request.param == "one box":
        yield [Machine("localhost"), Machine("localhost")]
        return
    try:
        if any(_ip("netns", "add", name) for name in NAMES):
            pytest.skip("no network namespaces here")
        pair = ["veth-a", "netns", NAMES[0], "type", "veth", "peer", "name", "veth-b", "netns", NAMES[1]]
        assert not _ip("link", "add", *pair)
        for name, address, link in zip(NAMES, ADDRESSES, ("veth-a", "veth-b"), strict=True):
            assert not _ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            assert not _ip("-n", name, "link", "set", "lo", "up")
            assert not _ip("-n", name, "link", "set", link, "up")
        yield [
            Machine(address, ["ip", "netns", "exec", name], {"GLOO_SOCKET_IFNAME": link, "PET_LOCAL_ADDR": address})
            for name, address, link in zip(NAMES, ADDRESSES, ("veth-a", "veth-b"), strict=True)
        ]
    except FileNotFoundError:
        pytest.skip("no ip command here")
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def train_on(machines: list[Machine], *arguments: str, **environment: str) -> list[str]:
    """Run the script on both with a process each; both must end well. The outputs."""
    common = {"NODES": "2", "NPROC": "1", "RENDEZVOUS": f"{machines[0].address}:{free_port()}"}
    common |= {"VIRTUAL_ENV": str(PREFIX), "OMP_NUM_THREADS": "1"} | environment
    started = [
        subprocess.Popen(
            [*machine.prefix, "bash", "launch/torchrun.sh", *arguments],
            cwd=ROOT,
            env=os.environ | common | machine.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for machine in machines
    ]
    try:
        outputs = [process.communicate(timeout=200)[0] for process in started]
    finally:
        for process in started:
            process.terminate()
    assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)
    return outputs


@pytest.mark.fault("F17")
def test_two_machines_equal_one_and_heal(machines, tiny, tmp_path):
    """Also when a process of the second one is killed: torchrun starts those of both anew, from the last checkpoint."""
    one = torchrun(2, "-m", "pretrain", "train", str(tiny), *OPTIONS, f"--run.dir={tmp_path}/one")
    assert one.returncode == 0, one.stderr
    train_on(machines, str(tiny), *OPTIONS, f"--run.dir={tmp_path}/two")
    fault = {"SPARLOW_FAULT": "micro_step:14/1", "RESTARTS": "2"}
    outputs = train_on(machines, str(tiny), *OPTIONS, f"--run.dir={tmp_path}/healed", **fault)
    assert any("exitcode: -9" in output for output in outputs)
    assert any("healed at step 6 (" in output for output in outputs), outputs
    for name in ("two", "healed"):
        assert logged(tmp_path / name) == logged(tmp_path / "one")
        assert tensor_hashes(tmp_path / name, 8) == tensor_hashes(tmp_path / "one", 8)
