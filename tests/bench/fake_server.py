"""Stands in for vLLM's server: ``python fake_server.py MODE --model ... --port ...``.

Says the id of a helper process, which is in a session of its own and ends only if it is ended.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REFUSAL = """(EngineCore pid=1) ValueError: Model architectures ['Odd'] are not supported
RuntimeError: Engine core initialization failed. See root cause above."""
OUT_OF_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB"
METRICS = 'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="64"} 1.0\n'


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        models = json.dumps({"data": [{"id": option("--served-model-name")}]})
        answers = {"/v1/models": models, "/metrics": METRICS}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answers.get(self.path, "").encode())

    def log_message(self, *arguments: object) -> None:
        pass


def die() -> None:
    sys.stdout.write(OUT_OF_MEMORY + "\n")
    sys.stdout.flush()
    os._exit(1)


def main() -> None:
    mode = sys.argv[1]
    helper = subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True
    )
    sys.stdout.write(f"helper {helper.pid}\n")
    sys.stdout.flush()
    if mode == "refuses":
        sys.exit(REFUSAL)
    if mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "hangs":
        time.sleep(600)
    if mode == "slow":
        time.sleep(1)
    server = ThreadingHTTPServer(("127.0.0.1", int(option("--port"))), Handler)
    if mode == "dies":
        threading.Timer(0.6, die).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
