"""Stands in for the load generator: says the id of a process that it starts, and never answers."""

import subprocess
import sys
import time

from bench.worker import answer_requests


def hang(request: dict) -> dict:
    helper = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    sys.stderr.write(f"helper {helper.pid}\n")
    sys.stderr.flush()
    time.sleep(600)
    return request


if __name__ == "__main__":
    answer_requests(hang)
