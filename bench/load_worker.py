"""vLLM's own load generator, ``vllm bench serve``, imported once and run on request.

A request is ``{"arguments": [...]}``: the arguments of ``vllm bench serve``. The measurements are
in the file that the arguments name.
"""

from __future__ import annotations

from typing import Any

from bench.worker import answer_requests


def parser():
    """The parser of ``vllm bench serve``."""
    import argparse

    from vllm.benchmarks.serve import add_cli_args

    found = argparse.ArgumentParser(prog="vllm bench serve", exit_on_error=False)
    add_cli_args(found)
    return found


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Runs one load."""
    from vllm.benchmarks import serve

    known = parser()
    options = known._option_string_actions
    # Options that older or newer versions do not have, and call otherwise.
    names = {"--skip-chat-template": "--custom-skip-chat-template"}
    arguments = [
        names[a] if a in names and a not in options else a for a in request["arguments"]
    ]  # fmt: skip
    serve.main(known.parse_args(arguments))
    return {"done": True}


if __name__ == "__main__":
    answer_requests(run)
