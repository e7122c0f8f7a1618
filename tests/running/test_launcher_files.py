"""Launchers as files: what they say, what wins over them, and what is wrong with them."""

import importlib.util
from pathlib import Path

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.recipe.benchmark import ProfileName
from resnet_bench.running.launchers.cluster import packs
from resnet_bench.running.launchers.options import RayOptions, SlurmOptions, choose_launcher, load_launcher, minutes
from tests.golden import typed
from tests.running.conftest import tiny_job


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launchers").mkdir()
    return tmp_path / "launchers"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "expected"), [("2h", 120), ("90m", 90), ("90min", 90), ("1d 12h", 2160), ("1d", 1440), ("1h30m", 90)]
)
def test_a_time_is_read_as_people_write_it(text: str, expected: int) -> None:
    assert minutes(text) == expected


def test_the_command_line_wins_over_the_file(folder: Path) -> None:
    write(folder, "slurm", 'partition = "gpu"\ntime = "4h"\nsetup = ["module load cuda"]\n')
    found = choose_launcher("slurm", {"partition": "urgent", "time": "2h", "account": None})
    assert not isinstance(found, str)
    assert found is not None
    assert (found.partition, found.time, found.account) == ("urgent", 120, None)
    assert (found.setup, found.gpus_per_node) == (("module load cuda",), 1)


def test_ray_takes_its_options_from_a_file_and_its_address_from_the_command_line(folder: Path) -> None:
    write(folder, "big", 'launcher = "ray"\naddress = "10.0.0.1:6379"\ncpus = 8\nresources = { H200 = 1 }\n')
    found = choose_launcher("big", {"address": "10.0.0.2:6379"})
    assert found == RayOptions(address="10.0.0.2:6379", gpus=1, cpus=8, resources={"H200": 1.0})
    assert choose_launcher("ray", {}, device="cpu") == RayOptions(gpus=0)
    assert typed("launcher list").out.count("Ray (") == 2


def test_jobs_on_the_cpu_ask_for_no_gpu_unless_told(folder: Path) -> None:
    on_cpu = choose_launcher("slurm", {}, device="cpu")
    told = choose_launcher("slurm", {"gpus_per_node": 2}, device="cpu")
    assert [getattr(found, "gpus_per_node", None) for found in (on_cpu, told)] == [0, 2]


@pytest.mark.parametrize(
    ("profile", "options", "sizes"),
    [
        ("full", SlurmOptions(gpus_per_node=1), [1] * 10),
        ("full", SlurmOptions(gpus_per_node=4), [4, 4, 2]),
        ("full", SlurmOptions(gpus_per_node=0, runs_per_job=5), [5, 5]),
        ("smoke", SlurmOptions(gpus_per_node=1), [4, 4, 2]),
        ("smoke", SlurmOptions(gpus_per_node=2), [8, 2]),
        ("smoke", RayOptions(gpus=1), [1] * 10),
    ],
)
def test_a_job_has_a_run_per_gpu_and_short_runs_share_one(
    profile: ProfileName, options: SlurmOptions | RayOptions, sizes: list[int]
) -> None:
    jobs = [tiny_job(seed=seed, profile=profile) for seed in range(10)]
    found = packs(jobs, options)
    assert [len(pack) for pack in found] == sizes
    assert [number for pack in found for number in pack] == [*range(10)]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("slurm", "partiton = 'gpu'", "unknown key 'partiton'; did you mean 'partition'?"),
        ("slurm", "time = '2 hours'", "time: must be a time such as 2h, 90m or 1d 12h, got '2 hours'"),
        ("slurm", "time = '2m'", "time: must be a time from 5m to 365d, got '2m'"),
        ("slurm", "time = 2", "time: must be a time from 5m to 365d, got 2"),
        ("slurm", "partition = 'a b'", "partition: must be one word, got 'a b'"),
        ("slurm", "setup = ['a\\nb']".replace("'a\\nb'", '"a\\nb"'), "must be one line of shell"),
        ("slurm", "launcher = 'slrm'", "unknown launcher 'slrm'; did you mean 'slurm'?"),
        ("big", "partition = 'gpu'", 'launcher is missing; write launcher = "slurm"'),
        ("inline", "", "the launcher inline takes no options"),
        ("ray", "address = 'here'", "address: must be auto or HOST:PORT, such as 10.0.0.1:6379, got 'here'"),
        ("ray", "gpus = 2", "gpus: should be less than or equal to 1, got 2"),
        ("ray", "partition = 'gpu'", "unknown key 'partition'"),
        ("ray", "node_dir = 'runs'", "node_dir: must be an absolute path, got 'runs'"),
        ("ray", "resources = { H200 = 0 }", "resources.H200: should be greater than 0, got 0"),
        ("slurm", "partition =", "is not valid TOML"),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence(folder: Path, name: str, text: str, says: str) -> None:
    path = write(folder, name, text)
    with pytest.raises(UserError) as error:
        load_launcher(str(path))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_launchers_are_listed_shown_and_validated(folder: Path) -> None:
    path = write(folder, "big", 'launcher = "slurm"\npartition = "h200"\n')
    listed, shown, valid = typed("launcher list"), typed("launcher show big"), typed(f"validate {path}")
    assert [found.code for found in (listed, shown, valid)] == [0, 0, 0]
    assert "big" in listed.out
    assert "partition h200" in listed.out
    assert "Where jobs wait" in shown.out
    assert "valid, a launcher: Slurm (partition h200" in valid.out
    write(folder, "wrong", "launcher = 3")
    listed = typed("launcher list")
    assert listed.code == 2
    assert "wrong.toml" in listed.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--launcher slrm", "unknown launcher 'slrm'; did you mean 'slurm'?"),
        ("--partition gpu", "--partition is for jobs of a cluster; say which with --launcher NAME"),
        ("--detach", "--detach is for jobs of a cluster"),
        ("--launcher slurm --dry-run", "--dry-run is for runs on this machine"),
        ("--launcher slurm --time soon", "--launcher slurm: time: must be a time"),
        ("--launcher inline --seeds 2 --seeds-per-device 2", "--launcher inline trains one run at a time"),
        ("--launcher ray --partition gpu", "--partition means nothing to the launcher ray"),
        ("--launcher slurm --address auto", "--address means nothing to the launcher slurm"),
        ("--launcher ray", "--launcher ray runs on other hosts"),
        ("--shard 4/3", "--shard: must be a share such as 3/16"),
    ],
)
def test_options_that_do_not_fit_are_refused_at_once(folder: Path, options: str, says: str) -> None:
    found = typed(f"run he-resnet20 {options}")
    assert (found.code, found.out) == (2, "")
    assert says in found.err


@pytest.mark.parametrize(("launcher", "needs"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_extra_says_what_to_type(
    folder: Path, monkeypatch: pytest.MonkeyPatch, launcher: str, needs: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == needs else find(name))
    found = typed(f"run he-resnet20 --launcher {launcher}")
    assert found.code == 2
    assert f"type: pip install 'resnet-bench[{launcher}]'" in found.err
