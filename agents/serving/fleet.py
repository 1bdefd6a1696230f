"""Fleet: the servers of a run, and the weights that they hold.

All processes of a run share the servers: each plays its own episodes there, and the main one pushes
the weights. A server that comes back after a fault gets the present weights from whoever notices.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from filelock import FileLock

from agents.model.sampling import Sampling
from agents.parallel import Processes
from agents.ppo import PPOLearner
from agents.serving import probe, push
from agents.serving.client import Server
from agents.serving.errors import Mismatch, ServerError
from agents.serving.launch import Launched, command, environment, free_ports
from agents.serving.replicas import Replicas
from agents.serving.session import ServedSession, Target
from agents.serving.settings import ServingSettings
from agents.serving.wire import ROUTE, Prompt, read, request, sampling_params

logger = logging.getLogger(__name__)


class Fleet:
    """Servers that play with the weights of a learner.

    Args:
        servers: Their addresses.
        learner: Whose policy is played with.
        directory: Where weights are handed over; servers must see it under the same name.
        processes: All processes of the run.
        timeout_s: Seconds for the answer of a server.
        patience_s: Seconds without any server until the run gives up.
        gap_limit: The most that log-probabilities may differ, on average, at the start.
        frame_size: Height and width of frames in pixels, if known.
        launched: The servers, where they are to end with the fleet.

    Attributes:
        replicas: The servers.

    Raises:
        ValueError: If an address is none.
        ServerError: In every process, if a server does not answer, or does not run our model as we
            do.
    """

    def __init__(
        self,
        servers: list[str],
        learner: PPOLearner,
        directory: Path,
        processes: Processes,
        *,
        timeout_s: float = 300.0,
        patience_s: float = 600.0,
        gap_limit: float = 0.1,
        frame_size: tuple[int, int] | None = None,
        launched: Launched | None = None,
    ) -> None:
        self._learner, self._processes = learner, processes
        self._directory = directory.resolve()
        self._launched = launched
        self._push: push.Push | None = None
        self._model, self._pushed_step, self._count = "", -1, 0
        self._run = processes.by_main(lambda: secrets.token_hex(4))
        self.replicas = Replicas(
            [Server(url, timeout_s=timeout_s) for url in servers],
            admit=self._admit,
            patience_s=patience_s,
        )
        try:
            self._model = processes.by_main(self._check_all)
            self.sync()
            self._compare(gap_limit, frame_size)
        except BaseException:
            self.close()
            raise

    def session(self, sampling: Sampling) -> ServedSession:
        """Return what gives the replies of a call of ``collect``."""
        return ServedSession(self._learner.policy.codec, sampling, self.replicas, self._target)

    def sync(self, abandonable: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Push the weights, unless the servers have them; all processes must call this together.

        Args:
            abandonable: Entered by the main process while it waits for servers.

        Raises:
            OSError: If they cannot be written.
            ServerError: In every process, if no server takes them.
        """
        step = self._learner.step
        if step == self._pushed_step:
            return
        self._count += 1
        version = f"longvideo-{self._run}-{self._count}"
        old = self._push
        directory = self._directory / version
        self._push = push.write(self._learner, directory, version, self._processes)

        def give() -> None:
            with abandonable():
                self._give_all()

        self._processes.by_main(give)
        self._pushed_step = step
        if old is not None and self._processes.main:
            push.forget(old)

    def close(self) -> None:
        """Ask no server any more, and remove what was handed over. Idempotent."""
        self.replicas.close()
        if self._launched is not None:
            self._launched.close()
        if self._push is not None and self._processes.main:
            push.forget(self._push)

    def _target(self) -> Target:
        assert self._push is not None
        if self._push.is_adapter:
            return Target(self._push.version)
        return Target(self._model, self._push.version)

    def _check_all(self) -> str:
        """Look at every server before anything is pushed; return the name of the served model."""
        found = {}
        for server in self.replicas.servers:
            what = probe.served(server)
            probe.check_server(server, self._learner.policy, what.model)
            found[server.url] = what.model
        if len(set(found.values())) > 1:
            raise Mismatch(f"the servers name their models differently: {found}; use one "
                           "--served-model-name")  # fmt: skip
        return next(iter(found.values()))

    def _admit(self, server: Server) -> None:
        """Make a server that failed ready again."""
        model = probe.served(server).model
        if self._model and model != self._model:
            raise Mismatch(f"{server.url} serves {model!r} now, and {self._model!r} before")
        self._give(server)

    def _give(self, server: Server) -> None:
        """Give a server the present weights, and have it say a word with them."""
        given = self._push
        assert given is not None
        self._directory.mkdir(parents=True, exist_ok=True)
        with FileLock(str(self._directory / ".lock")):  # processes may notice together
            push.give(server, given)
        codec, target = self._learner.policy.codec, self._target()
        prompt = Prompt.of([codec.system("Look."), codec.user([{"type": "text", "text": "So?"}])])
        params = sampling_params(codec, Sampling(greedy=True, max_new_tokens=1))
        answer = server.post(ROUTE, request(target.model, prompt, params, codec.image_token_id),
                             timeout_s=min(60.0, server.timeout_s))  # fmt: skip
        read(answer, prompt, codec, 1, model=target.model, version=target.version)

    def _give_all(self) -> None:
        self.replicas.ready()
        failed: ServerError | None = None
        for server in self.replicas.up():
            try:
                self._give(server)
            except ServerError as error:
                if isinstance(error, Mismatch) or self._count == 1:  # at the start all must be well
                    raise
                failed = error
                self.replicas.put_down(server, error)
        if failed is not None:
            self.replicas.ask(lambda server: None)  # waits for one

    def _compare(self, limit: float, frame_size: tuple[int, int] | None) -> None:
        """Compare every server's log-probabilities of a small dialogue with our own."""
        policy = self._learner.policy
        temperature = self._learner.config.temperature
        dialogue = probe.small_dialogue(policy.codec, frame_size)
        sampling = Sampling(temperature=temperature, max_new_tokens=probe.TOKENS)
        target = self._target()

        def ask(server: Server) -> probe.Reply:
            prompt = Prompt.of(dialogue)
            params = sampling_params(policy.codec, sampling)
            body = request(target.model, prompt, params, policy.codec.image_token_id)
            return read(server.post(ROUTE, body), prompt, policy.codec, probe.TOKENS,
                        model=target.model, version=target.version)  # fmt: skip

        replies = self._processes.by_main(lambda: [ask(each) for each in self.replicas.servers])
        with self._learner.sharding.seeing():
            gaps = [probe.gap(policy, dialogue, reply, temperature) for reply in replies]
        for server, found in zip(self.replicas.servers, gaps, strict=True):
            if not found <= limit:
                raise Mismatch(
                    f"{server.url} says a small dialogue with images with log-probabilities that "
                    f"differ by {found:.3g} from ours, more than rollout_gap_limit={limit:g}: it "
                    "serves another model, or in another number format"
                )
        logger.info("rollouts by %s; log-probabilities agree within %.1e",
                    ", ".join(each.url for each in self.replicas.servers), max(gaps))  # fmt: skip


def open_fleet(
    settings: ServingSettings,
    learner: PPOLearner,
    processes: Processes,
    *,
    out: Path,
    images: int,
    frame_size: tuple[int, int] | None = None,
) -> Fleet:
    """Return the servers of a run, started here if that is asked for.

    All processes must call this together.

    Args:
        settings: Of the run.
        learner: Whose policy is played with.
        processes: All processes of the run.
        out: Directory of the run.
        images: The most images of a dialogue.
        frame_size: Height and width of frames in pixels, if known.

    Raises:
        ServerError: In every process, as ``Fleet`` and ``Launched`` do.
    """
    launched: list[Launched] = []

    def start() -> list[str]:
        policy = learner.policy
        device = policy.device.type
        dtype = learner.sharding.compute or policy.head.weight.dtype
        ports = free_ports(settings.serve_replicas)
        commands = [
            command(
                str(policy.base.name_or_path),
                port,
                settings,
                dtype=str(dtype).removeprefix("torch."),
                images=images,
                lora_rank=policy.lora.rank if policy.lora is not None else 0,
            )
            for port in ports
        ]
        pairs = list(zip(commands, ports, strict=True))
        launched.append(Launched(pairs, environment(device), out / "vllm"))
        return launched[0].urls

    try:
        return Fleet(
            processes.by_main(start) if settings.serve else settings.urls,
            learner,
            Path(settings.push_dir) if settings.push_dir else out / "push",
            processes,
            timeout_s=settings.server_timeout,
            patience_s=settings.server_patience,
            gap_limit=settings.rollout_gap_limit,
            frame_size=frame_size,
            launched=launched[0] if launched else None,
        )
    except BaseException:
        for each in launched:
            each.close()
        raise
