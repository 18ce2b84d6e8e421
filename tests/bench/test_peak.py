"""The peak that is told is the command's own, not that of the process which asks."""

import signal
import subprocess
import sys

from bench import peak

MIB = 1 << 20


def measured(code: str) -> tuple[int, str, int]:
    process, told = peak.start([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate()
    return process.returncode, out, peak.read_peak(told)


def test_what_we_held_ourselves_does_not_count():
    held = bytearray(400 * MIB)
    code, out, small = measured("print('done')")
    _, _, big = measured("x = bytearray(200 << 20)")
    assert len(held) == 400 * MIB
    assert (code, out) == (0, "done\n")
    assert 5 * MIB < small < 50 * MIB
    assert 200 * MIB < big < 250 * MIB


def test_how_the_command_ended_is_told():
    assert measured("raise SystemExit(3)")[0] == 3
    assert measured("import os; os.kill(os.getpid(), 9)")[0] == 128 + signal.SIGKILL
