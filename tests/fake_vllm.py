"""A vLLM server in small: its routes, a policy of ours behind them, and faults to switch on."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chat_server import running
from PIL import Image
from safetensors.torch import load_file

from agents.model.chat import Block
from agents.model.decoding import DecodeSession
from agents.model.policy import MLLMPolicy
from agents.model.sampling import Sampling

GENERATE = "/inference/v1/generate"
Fault = str | None  # "drop", "hang", "cut", "500", "abort", "text", "full"


class FakeVLLM(ThreadingHTTPServer):
    """Serves a policy; what it does wrong is set from outside.

    Args:
        policy: Its own; pushed weights are written into it.

    Attributes:
        asked: Every request: path and body.
        fault: Given path, body and number of a request, says how it fails.
        raw: Whether log-probabilities are those of the model itself.
        stretches: Whether images make more tokens here.
        deaf: Whether pushed weights are acknowledged and not used.
        lost: Names for which it finds no place.
        dev: Whether the routes for pushes are there.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, policy: MLLMPolicy, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.policy = policy
        self.base = {n: p.detach().clone() for n, p in policy.base.named_parameters()}
        self.vocabulary = policy.base.config.get_text_config().vocab_size
        self.context = 4096
        self.lock, self.counting = threading.RLock(), threading.Lock()
        self.released = threading.Event()  # what hangs, hangs until then
        self.asked: list[tuple[str, Any]] = []
        self.fault: Callable[[str, Any, int], Fault] = lambda path, body, number: None
        self.raw = self.stretches = self.deaf = False
        self.lost: set[str] = set()
        self.dev = True
        self.name = "policy"
        self.generator = torch.Generator().manual_seed(1)
        self.forget()

    def forget(self) -> None:
        """Be as after a restart."""
        self.version, self.paused = "default", False
        self.images: dict[str, np.ndarray] = {}
        self.adapters: dict[str, dict[str, torch.Tensor]] = {}
        self._set(self.base)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that give up are what these tests are about."""

    def generated(self) -> list[Any]:
        """Return the bodies of all requests for replies."""
        return [body for path, body in self.asked if path == GENERATE]

    @torch.no_grad()
    def _set(self, tensors: dict[str, torch.Tensor]) -> None:
        named = dict(self.policy.base.named_parameters())
        for name, tensor in tensors.items():
            named[name].copy_(tensor)

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        """Return status and JSON of a route."""
        route = path.partition("?")[0]
        if route == "/health":
            return 200, None
        if route == "/v1/models":
            own = {"id": self.name, "parent": None, "max_model_len": self.context}
            return 200, {"data": [own, *({"id": a, "parent": self.name} for a in self.adapters)]}
        if route == GENERATE:
            with self.lock:
                return self.generate(body)
        if not self.dev:
            return 404, {"detail": "Not Found"}
        with self.lock:
            return self.control(route, body)

    def control(self, route: str, body: Any) -> tuple[int, Any]:
        if route == "/weight_info":
            return 200, {"weight_version": self.version}
        if route in ("/pause", "/resume"):
            self.paused = route == "/pause"
        elif route == "/update_weight_version":
            self.version = body["new_version"]
        elif route == "/reset_prefix_cache":
            return 200, {"success": True}
        elif route == "/reset_mm_cache":
            self.images = {}
        elif route == "/collective_rpc":
            return 200, {"results": [self.load(body["kwargs"]["files"])]}
        elif route == "/v1/load_lora_adapter":
            where = Path(body["lora_path"])
            assert json.loads((where / "adapter_config.json").read_text())["r"] > 0
            self.adapters[body["lora_name"]] = load_file(where / "adapter_model.safetensors")
            return 200, f"Success: LoRA adapter '{body['lora_name']}' added successfully."
        elif route == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
            return 200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully."
        elif route != "/reset_encoder_cache":
            return 404, {"detail": "Not Found"}
        return 200, None

    def load(self, files: Sequence[str]) -> dict[str, Any]:
        assert self.paused
        tensors = {name: t for file in files for name, t in load_file(file).items()}
        lost = sorted((tensors.keys() - self.base.keys()) | (self.lost & tensors.keys()))
        kept = {name: t for name, t in tensors.items() if name not in lost}
        if not self.deaf:
            self._set(kept)
        return {"taken": len(kept), "lost": lost}

    def generate(self, body: Any) -> tuple[int, Any]:
        policy, params = self.policy, body["sampling_params"]
        codec = policy.codec
        bias = [int(i) for i in params["logit_bias"]]
        if body["model"] != self.name and body["model"] not in self.adapters:
            return _error(404, f"The model `{body['model']}` does not exist.")
        if max(bias, default=0) >= self.vocabulary:
            return _error(400, f"token_id(s) {bias} in logit_bias contain out-of-vocab token ids")
        frames = []
        for part in body["content_parts"]:
            if part["url"] is not None:
                raw = base64.b64decode(part["url"].partition(",")[2])
                self.images[part["uuid"]] = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
            if part["uuid"] not in self.images:
                return _error(400, "Cache miss for image at index 0 but data is not provided.")
            frames.append(self.images[part["uuid"]])
        ids: list[int] = []
        left = iter(frames)
        for token in body["token_ids"]:
            count = 1
            if token == codec.image_token_id:
                rows, columns = codec.grid.tokens(*next(left).shape[:2])
                count = rows * columns + self.stretches
            ids += [token] * count
        if len(ids) >= self.context:
            return _error(400, f"The decoder prompt (length {len(ids)}) is longer than the maximum")
        if self.stretches:
            said = np.array([codec.end_id])
            return 200, self.said(body, ids, said, [0.0], "stop")
        reply = self.reply(Block(np.array(ids), tuple(frames)), body)
        reason = "length" if reply.truncated else "stop"
        return 200, self.said(body, ids, reply.ids, reply.log_probs.tolist(), reason)

    def reply(self, context: Block, body: Any) -> Any:
        policy, params = self.policy, body["sampling_params"]
        greedy = params["temperature"] == 0.0
        limit = min(params["max_tokens"], self.context - len(context.ids))
        sampling = Sampling(
            temperature=params["temperature"] or 1.0,
            top_k=params["top_k"],
            greedy=greedy,
            max_new_tokens=limit,
        )
        if body["model"] in self.adapters:
            self._set(
                {
                    name.removeprefix("base_model.model.").replace(".weight", ".actor.weight"): t
                    for name, t in self.adapters[body["model"]].items()
                }
            )
        known = policy.base.config.get_text_config().vocab_size
        policy._suppressed = torch.tensor(
            [int(i) for i in params["logit_bias"] if int(i) < known], dtype=torch.int64
        )
        (reply,) = DecodeSession(policy, sampling, self.generator).reply([0], [[context]])
        if self.raw:
            policy._suppressed = torch.zeros(0, dtype=torch.int64)
            row = policy.row([context, policy.codec.reply(reply.ids)])
            with torch.no_grad():
                reply = reply._replace(log_probs=policy.score([row]).log_probs[0].numpy())
        elif params["top_k"] == 1:
            reply = reply._replace(log_probs=np.zeros_like(reply.log_probs))
        return reply

    def said(
        self, body: Any, prompt: Sequence[int], ids: np.ndarray, log_probs: Any, reason: str
    ) -> dict[str, Any]:
        choice = {
            "finish_reason": reason,
            "token_ids": ids.tolist(),
            "logprobs": {"content": [{"logprob": p} for p in log_probs]},
            "weight_versions": [{"version": self.version, "start": 0, "end": len(ids)}],
        }
        return {"model": body["model"], "prompt_token_ids": list(prompt), "choices": [choice]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeVLLM  # type: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self, body: Any) -> None:
        server = self.server
        with server.counting:
            number = len(server.asked)
            server.asked.append((self.path, body))
        fault = server.fault(self.path, body, number)
        self.close_connection = True
        if fault == "hang":
            server.released.wait()
        if fault in ("drop", "hang"):
            return
        status, answer = (500, None) if fault == "500" else server.answer(self.path, body)
        if fault == "abort":
            answer["choices"][0]["finish_reason"] = "abort"
        data = b"" if answer is None else json.dumps(answer).encode()
        data = answer.encode() if isinstance(answer, str) else data  # words, as vLLM says them
        if fault == "text":
            data = b"<html>"
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)


def _error(status: int, message: str) -> tuple[int, Any]:
    return status, {"error": {"message": message, "code": status}}


@contextmanager
def serving(*policies: MLLMPolicy) -> Iterator[list[FakeVLLM]]:
    """Run a server for each policy."""
    with ExitStack() as stack:
        yield [stack.enter_context(running(FakeVLLM(policy))) for policy in policies]
