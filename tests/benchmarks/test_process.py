"""CPU and memory of process trees."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.process import Child, Sampler, look, peak_rss

BURN = "import time\nwhile time.process_time() < 0.5: pass"
PARENT = f"""
import subprocess, sys, time
subprocess.run([sys.executable, "-c", {BURN!r}], check=True)
print("done", flush=True)
time.sleep(60)
"""


@pytest.fixture
def parent() -> subprocess.Popen[bytes]:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_child_that_has_ended_still_counts(parent: subprocess.Popen[bytes]) -> None:
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"done\n"
    sample = look(parent.pid, pss=True)
    assert sample is not None
    assert sample.processes == 1
    assert sample.cpu_seconds >= 0.4  # the kernel counts in hundredths, rounded down
    assert 0 < sample.pss_bytes <= sample.rss_bytes <= peak_rss(parent.pid)


def test_a_process_that_is_gone_has_no_sample() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert look(process.pid) is None
    assert peak_rss(process.pid) == 0


def test_cpu_between_two_moments_is_what_was_used_in_between(parent: subprocess.Popen[bytes]) -> None:
    before = time.monotonic()
    with Sampler({"device": parent.pid}, seconds=0.01) as sampler:
        assert parent.stdout is not None
        parent.stdout.readline()
        time.sleep(0.1)
        after = time.monotonic()
    total = sampler.cpu_between("device", before, after)
    assert 0.4 <= total <= sampler.samples["device"][-1].cpu_seconds
    assert sampler.cpu_between("device", before, before) == 0
    assert sampler.peak_between("device", before, after).rss_bytes > 1_000_000
    assert max(sampler.peak_rss["device"].values()) > 1_000_000
    with pytest.raises(ValueError, match="expected samples"):
        sampler.peak_between("device", after + 1, after + 2)


def test_a_program_that_ends_by_itself_is_reported_with_its_last_words(tmp_path: Path) -> None:
    child = Child([sys.executable, "-c", "print('out of luck'); exit(3)"], tmp_path / "log", cwd=tmp_path)
    child.process.wait()
    with pytest.raises(RuntimeError, match=r"ended with 3:\nout of luck"):
        child.check()


def test_stopping_a_program_ends_its_children(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
    )
    code += "print(p.pid, flush=True); p.wait()"
    child = Child([sys.executable, "-c", code], tmp_path / "log", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "log").read_text().endswith("\n") and time.monotonic() < deadline:
        time.sleep(0.01)
    grandchild = int((tmp_path / "log").read_text())
    child.stop()
    assert child.process.poll() is not None
    # Whoever adopts it may be slow to wait for it: a zombie holds no memory.
    sample = look(grandchild)
    assert sample is None or sample.rss_bytes == 0
