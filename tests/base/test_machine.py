import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from resnet_bench.base import machine

ZEN4 = """\
processor	: 0
vendor_id	: AuthenticAMD
cpu family	: 25
model		: 17
model name	: AMD EPYC
stepping	: 1
cache size	: 1024 KB
flags		: fpu sse2 avx2 avx512f hypervisor avx512_bf16

processor	: 1
"""
ZEN5 = ZEN4.replace(": 25", ": 26").replace(": 17", ": 2").replace("avx2", "avx2 avx_vnni")
ARM = "processor\t: 0\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\nCPU variant\t: 0x1\nCPU part\t: 0xd40\n"


def test_processors_that_share_a_name_are_told_apart(tmp_path: Path) -> None:
    def read(name: str, text: str) -> dict[str, object]:
        (tmp_path / name).write_text(text)
        return machine.processor(tmp_path / name)

    zen4, zen5, arm = (read(name, text) for name, text in (("zen4", ZEN4), ("zen5", ZEN5), ("arm", ARM)))
    assert zen4["cpu"] == zen5["cpu"] == "AMD EPYC"
    assert zen4["cpu_model"] == "AuthenticAMD, family 25, model 17, stepping 1, cache 1024 KB"
    assert zen4["cpu_instructions"] == "avx512_bf16 avx512f avx2", "and none that kernels are not chosen by"
    assert (arm["cpu_model"], arm["cpu_instructions"]) == ("implementer 0x41, part 0xd40, variant 0x1", "sve asimd")
    kinds = [machine.machine_kind({**each, "cores": 2}) for each in (zen4, zen5)]
    assert kinds[0] != kinds[1]
    assert list(machine.kind_marks(kinds).values()) == [zen4["cpu_model"], zen5["cpu_model"]]
    assert machine.kind_marks([kinds[0], kinds[0]]) == {kinds[0]: ""}
    old = machine.machine_kind({"cpu": "AMD EPYC", "cores": 2})
    assert machine.kind_marks([kinds[0], old])[old] == "model not recorded"
    assert machine.kind_text(old) == "AMD EPYC, 2 cores"


def group(root: Path, path: str, files: dict[str, str]) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)


@pytest.mark.parametrize(
    ("membership", "groups", "cores"),
    [
        ("0::/a/b\n", {"a": {"cpu.max": "400000 100000"}, "a/b": {"cpu.max": "max 100000"}}, 4),
        ("0::/a/b\n", {"a": {"cpu.max": "max 100000"}, "a/b": {"cpu.max": "250000 100000"}}, 2),
        ("0::/not/visible/here\n", {"": {"cpu.max": "300000 100000"}}, 3),
        ("0::/a\n", {"a": {"cpu.max": "50000 100000"}}, 1),
        ("0::/a\n", {"a": {"cpu.max": "max 100000"}}, 64),
        ("0::/\n", {}, 64),
        (
            "5:cpu,cpuacct:/a\n3:memory:/b\n",
            {"cpu/a": {"cpu.cfs_quota_us": "600000\n", "cpu.cfs_period_us": "100000\n"}},
            6,
        ),
        ("5:cpu:/a\n", {"cpu/a": {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}}, 64),
    ],
)
def test_usable_cores_keeps_to_the_quota_of_the_container(
    membership: str, groups: dict[str, dict[str, str]], cores: int, tmp_path: Path, many_cores: None
) -> None:
    (tmp_path / "membership").write_text(membership)
    for path, files in groups.items():
        group(tmp_path / "cgroup", path, files)
    assert machine.usable_cores(cgroups=tmp_path / "cgroup", membership=tmp_path / "membership") == cores


@pytest.mark.parametrize(
    ("wanted", "threads"), [(None, 64), ("", 64), ("3", 3), ("3,2", 3), ("0", 64), ("x", 64), ("1000", 64)]
)
def test_default_threads_follow_omp_num_threads_up_to_the_cores(
    wanted: str | None, threads: int, many_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if wanted is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    assert machine.default_threads() == threads


def dead_process() -> tuple[int, str]:
    code = "import os; from resnet_bench.base.machine import process_start; print(process_start(os.getpid()))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    start = process.communicate()[0].strip()
    return process.pid, start


def test_this_process_is_alive_and_an_ended_one_is_gone() -> None:
    this = machine.this_process()
    host, pid, start = this["host"], int(this["pid"]), this["pid_start"]
    assert machine.is_alive(pid, start)
    assert machine.is_alive(pid, start, host=host)
    assert machine.exit_reason(host, pid, start, one_machine=True) is None
    dead, its_start = dead_process()
    assert not machine.is_alive(dead, its_start)
    assert machine.exit_reason(host, dead, its_start, one_machine=False) == f"its process {dead} on {host} is gone"
    assert machine.exit_reason(host, pid, its_start, one_machine=False) is not None, "another process has its id"


def test_of_other_machines_and_containers_nothing_is_claimed() -> None:
    this = machine.this_process()
    boot, namespace, tick = this["pid_start"].split("/")
    assert not machine.is_alive(1, this["pid_start"], host="elsewhere")
    assert machine.exit_reason("elsewhere", 1, "x/y/1", one_machine=True) is None
    container = f"{boot}/another {namespace}/{tick}"
    assert machine.exit_reason(this["host"], 1, container, one_machine=True) is None
    before = f"another boot/{namespace}/{tick}"
    assert machine.exit_reason(this["host"], 1, before, one_machine=False) is None
    assert "restarted" in str(machine.exit_reason(this["host"], 1, before, one_machine=True))
    assert not machine.is_alive(os.getpid(), "")


SOCKETS = """
import sys
from multiprocessing.connection import Listener
from resnet_bench.base import machine
machine.SOCKET_FOLDERS = tuple(sys.argv[1:])
if machine.ensure_sockets():
    with Listener(family="AF_UNIX") as listener:
        print(listener.address)
else:
    print("none")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such sockets")
@pytest.mark.parametrize("usable", [True, False])
def test_sockets_are_made_elsewhere_where_the_temporary_folder_has_too_long_a_path(
    usable: bool, tmp_path: Path, short_folder: Path
) -> None:
    long = tmp_path / ("x" * 108)
    long.mkdir()
    folders = [str(tmp_path / "missing"), *([str(short_folder)] if usable else [])]
    done = subprocess.run(
        [sys.executable, "-c", SOCKETS, *folders],
        env={**os.environ, "TMPDIR": str(long)},
        capture_output=True,
        text=True,
    )
    address = done.stdout.strip()
    assert Path(address).is_relative_to(short_folder) if usable else address == "none", done.stderr
    assert not list(long.iterdir())
    assert not list(short_folder.iterdir()), "it is removed with its process"


@pytest.fixture
def short_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as folder:
        yield Path(folder)
