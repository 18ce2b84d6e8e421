"""Trains the tiny language models of this directory on the interpreter's own standard library.

    python examples/train_tiny_lm.py --arch llama --output examples/tiny-python-lm
    python examples/train_tiny_lm.py --arch qwen3 --output examples/tiny-python-lm-qwen3

With ``--init DIR`` the weights are those of an earlier run; the READMEs of the models give the
commands that made them.

Text, tokenizer and weights all come from `prunecomp.calibration.python_stdlib`: the ``train``
split is learned, the whole modules of `HELD_OUT` are only ever evaluated. Nothing is downloaded.

The run resumes from ``OUTPUT/../.OUTPUT.train.pt`` when it is interrupted. On the CPU it runs in
bf16 autocast, which uses the matrix extension where there is one; ``--device cuda`` takes minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from prunecomp.calibration.python_stdlib import documents

VOCAB_SIZE = 4096
CONTEXT = 1024
#: The share of the run that also sees the interpreter's test suite, for variety, where it is
#: installed; the rest sees the library proper, which is what calibration and evaluation see.
BROAD_SHARE = 0.42
END_OF_TEXT = "<|endoftext|>"
#: Splits words, numbers, punctuation and runs of white space, so that an indentation is one token.
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

#: tokens: what one run sees unless --tokens says otherwise.
ARCHITECTURES = {
    "llama": {
        "tokens": 12_000_000,
        "config": LlamaConfig,
        "model": LlamaForCausalLM,
        "fields": {
            "hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 16,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
            "tie_word_embeddings": False,
        },
    },
    "qwen3": {
        "tokens": 1_600_000,
        "config": Qwen3Config,
        "model": Qwen3ForCausalLM,
        "fields": {
            "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
            "tie_word_embeddings": True,
        },
    },
}  # fmt: skip


def train_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Without the test suite: the vocabulary then fits the text that calibration is taken from.
    tokenizer.train_from_iterator((text for _, text in documents("train")), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def token_stream(
    tokenizer: PreTrainedTokenizerFast, split: str, *, with_tests: bool = False
) -> torch.Tensor:
    """All documents of the split as one int16 stream, each preceded by the end-of-text token."""
    texts = [text for _, text in documents(split, with_tests=with_tests)]
    stream: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts):
        stream.append(tokenizer.eos_token_id)
        stream.extend(encoding.ids)
    return torch.tensor(stream, dtype=torch.int16)


def batches(stream: torch.Tensor, batch: int, length: int, generator: torch.Generator):
    """Endless random windows, [batch, length + 1] int64."""
    while True:
        starts = torch.randint(len(stream) - length, (batch,), generator=generator)
        yield torch.stack([stream[s : s + length + 1] for s in starts.tolist()]).long()


def loss_of(model, window: torch.Tensor, device: torch.device) -> torch.Tensor:
    window = window.to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        logits = model(input_ids=window[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model, stream: torch.Tensor, length: int, device, limit: int | None) -> float:
    """Mean cross entropy in nats per token over non-overlapping windows of `length` tokens."""
    windows = stream[: (len(stream) - 1) // length * length + 1]
    inputs = windows.unfold(0, length + 1, length)[:limit].long()
    losses = [loss_of(model, part, device) * len(part) for part in inputs.split(32_768 // length)]
    return float(torch.stack(losses).sum() / len(inputs))


def optimizers_for(model, peak: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, head and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in n)]
    return [
        torch.optim.Muon(
            matrices, lr=peak, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=peak, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def learning_rate(progress: float, warmup: float = 0.02, decay_from: float = 0.6) -> float:
    """Warm-up, constant, then linear decay to zero; a share of the peak."""
    if progress < warmup:
        return progress / warmup
    return 1.0 if progress < decay_from else max(0.0, (1 - progress) / (1 - decay_from))


class Trainer:
    """One run: model, optimisers and position in the token stream, saved and restored together."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        architecture = ARCHITECTURES[args.arch]
        self.tokens = args.tokens or architecture["tokens"]
        self.tokenizer = train_tokenizer()
        self.streams = {
            "broad": token_stream(self.tokenizer, "train", with_tests=True),
            "train": token_stream(self.tokenizer, "train"),
            "held-out": token_stream(self.tokenizer, "held-out"),
        }
        torch.manual_seed(args.seed)
        end = self.tokenizer.eos_token_id
        config = architecture["config"](
            vocab_size=VOCAB_SIZE, max_position_embeddings=CONTEXT, rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            bos_token_id=end, eos_token_id=end, pad_token_id=None, **architecture["fields"],
        )  # fmt: skip
        if args.init:
            self.model = architecture["model"].from_pretrained(args.init, dtype=torch.float32)
        else:
            self.model = architecture["model"](config)
        self.model.to(self.device)
        self.optimizers = optimizers_for(self.model, args.learning_rate)
        self.generator = torch.Generator().manual_seed(args.seed)
        self.state = args.output.parent / f".{args.output.name}.train.pt"
        self.seen, self.log, self.seconds_before = 0, [], 0.0
        if self.state.exists():
            self.restore()
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def restore(self) -> None:
        saved = torch.load(self.state, map_location=self.device)
        self.model.load_state_dict(saved["model"])
        for optimizer, values in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.generator.set_state(saved["generator"].cpu())
        self.seen, self.log, self.seconds_before = saved["seen"], saved["log"], saved["seconds"]

    def save(self) -> None:
        torch.save(
            {
                "model": self.model.state_dict(), "generator": self.generator.get_state(),
                "optimizers": [o.state_dict() for o in self.optimizers],
                "seen": self.seen, "log": self.log, "seconds": self.seconds,
            },
            self.state,
        )  # fmt: skip

    def prepare(self, length: int):
        """The loss function for windows of `length` tokens, compiled as a whole.

        The CPU's fused attention has a slow backward pass; for short windows the plain matrix
        products are faster.
        """
        eager = self.device.type == "cpu" and length < CONTEXT
        self.model.set_attn_implementation("eager" if eager else "sdpa")
        return torch.compile(loss_of, dynamic=False) if self.args.compile else loss_of

    def step(self, loss_function, length: int) -> torch.Tensor:
        stream = self.streams["broad" if self.seen < BROAD_SHARE * self.tokens else "train"]
        source = batches(stream, self.args.batch_tokens // length, length, self.generator)
        rate = self.args.learning_rate * learning_rate(self.seen / self.tokens)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss = loss_function(self.model, next(source), self.device)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.seen += self.args.batch_tokens
        return loss.detach()

    def report(self, loss: torch.Tensor, length: int, *, evaluate: bool) -> None:
        entry = {
            "tokens": self.seen,
            "train_loss": round(loss.item(), 4),
            "seconds": int(self.seconds),
        }
        if evaluate:
            stream, limit = self.streams["held-out"], 65_536 // length
            value = held_out_loss(self.model, stream, length, self.device, limit)
            entry["held_out_loss"] = round(value, 4)
        self.log.append(entry)
        print(json.dumps(entry), file=sys.stderr, flush=True)

    def run(self) -> None:
        # Most tokens in short windows, which are cheaper; the last ones in the full context, so
        # that every position up to CONTEXT is trained.
        step, length = self.seen // self.args.batch_tokens, 0
        while self.seen < self.tokens:
            wanted = 256 if self.seen < self.args.short_share * self.tokens else CONTEXT
            if length != wanted:
                length, loss_function = wanted, self.prepare(wanted)
            loss = self.step(loss_function, length)
            step, done = step + 1, self.seen >= self.tokens
            if step % self.args.log_steps == 0 or done:
                self.report(loss, length, evaluate=done or step % (4 * self.args.log_steps) == 0)
                self.save()

    def finish(self) -> dict:
        """Writes model, tokenizer and training.json; returns what the README states."""
        output = self.args.output
        loss = held_out_loss(self.model, self.streams["held-out"], CONTEXT, self.device, None)
        result = {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "tokens_seen": self.seen,
            "tokens_in": {split: len(stream) for split, stream in self.streams.items()},
            "held_out_loss": loss,
            "held_out_perplexity": math.exp(loss),
            "seconds": int(self.seconds),
            "log": self.log,
        }
        self.model.to(torch.bfloat16).save_pretrained(output)
        self.tokenizer.save_pretrained(output)
        before = self.args.init / "training.json" if self.args.init else None
        runs = json.loads(before.read_text())["runs"] if before else []
        (output / "training.json").write_text(
            json.dumps({"runs": [*runs, result]}, indent=1) + "\n"
        )
        self.state.unlink(missing_ok=True)
        return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--arch", choices=sorted(ARCHITECTURES), required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tokens", type=int, help="tokens to train on (default: by --arch)")
    parser.add_argument("--init", type=Path, help="start from the weights in this directory")
    parser.add_argument("--short-share", type=float, default=0.95,
                        help="share of the tokens in windows of 256; then full ones")  # fmt: skip
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--log-steps", type=int, default=50, help="steps between two saves")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    trainer = Trainer(parser.parse_args())
    trainer.run()
    result = trainer.finish()
    del result["log"]
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
