"""A real ComfyUI on the CPU with the pack and tiny models, and a client for it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
from comfyui_places import python_of

PACK = Path(__file__).parents[2]
OUR_LIBRARIES = ("accelerate", "diffusers", "toml", "requests")  # with what they need; the rest ComfyUI has
START_SECONDS, PROMPT_SECONDS = 120.0, 180.0
Prompt: TypeAlias = Mapping[str, Any]
OnEvent: TypeAlias = Callable[["Client", Mapping[str, Any]], Awaitable[None]]


def lend_libraries(python: Path, place: Path) -> Path:
    """A folder with those of our requirements that an installation lacks, taken from the tests' environment.

    So nothing has to be installed into a ComfyUI that is used for other things too.
    """
    place.mkdir(exist_ok=True)
    wanted = _with_dependencies(OUR_LIBRARIES)
    code = (
        "import sys, json, importlib.metadata as m\nfound=[]\nfor n in sys.argv[1:]:\n try: m.version(n)\n"
        " except m.PackageNotFoundError: found.append(n)\nprint(json.dumps(found))"
    )
    asked = subprocess.run([str(python), "-c", code, *wanted], capture_output=True, text=True, check=True)
    for name in json.loads(asked.stdout):
        for entry in _top_level(name):
            target = place / entry.name
            if not target.exists():
                target.symlink_to(entry, target_is_directory=entry.is_dir())
    return place


def _with_dependencies(names: tuple[str, ...]) -> list[str]:
    """Packages and whatever they need, as far as the tests' environment has it."""
    from packaging.requirements import Requirement

    waiting, found = list(names), dict.fromkeys(names)
    while waiting:
        try:
            requirements = importlib.metadata.requires(waiting.pop()) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for text in requirements:
            one = Requirement(text)
            if one.name not in found and (one.marker is None or one.marker.evaluate({"extra": ""})):
                found[one.name] = None
                waiting.append(one.name)
    return list(found)


def _top_level(name: str) -> set[Path]:
    """The folders and files of a package beside each other in site-packages."""
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return set()
    tops = {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}
    return {Path(str(package.locate_file(top))) for top in tops}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A prompt that is over."""

    id: str
    state: str  # "success" or "error"
    outputs: Mapping[str, Any]  # what nodes show, by node
    events: list[Mapping[str, Any]]

    def texts(self, node: str) -> str:
        return "\n".join(self.outputs[node]["text"])

    def error(self) -> str:
        """The message of the node that failed."""
        return next(
            one["data"]["exception_message"] for one in self.events if one["type"] == "execution_error"
        )

    def kinds(self) -> list[str]:
        return [str(one["type"]) for one in self.events]

    def executed(self) -> list[str]:
        """Nodes that ran, in order; those whose result was remembered are not among them."""
        return [
            one["data"]["node"] for one in self.events if one["type"] == "executing" and one["data"]["node"]
        ]


class Refused(Exception):
    """The server turned a prompt down before running it."""


@dataclass(slots=True)
class Client:
    """Talks to one server. Its methods may be called from tests without an event loop."""

    url: str
    base: Path  # the server's own folder
    log: Path
    process: subprocess.Popen[bytes]
    libraries: Path
    python: Path
    files: dict[str, Any] = field(default_factory=dict)  # what the fixture put into the model folders

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.loads(answer.read())

    def post(self, path: str, data: Any) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def run(self, prompt: Prompt, on_event: OnEvent | None = None) -> Outcome:
        """Queue a prompt and wait for its end. Raises Refused with the messages of the validation."""
        return asyncio.run(self._run(prompt, on_event))

    def refusal(self, prompt: Prompt) -> str:
        """The messages with which the server refuses a prompt."""
        try:
            self.post("/prompt", {"prompt": prompt})
        except urllib.error.HTTPError as error:
            body = json.loads(error.read())
            problems = [one for node in body["node_errors"].values() for one in node["errors"]]
            return "\n".join(f"{one['message']}: {one['details']}" for one in problems) or str(body["error"])
        raise AssertionError("the prompt was accepted")

    def logged(self) -> str:
        """Everything that the server has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    async def _run(self, prompt: Prompt, on_event: OnEvent | None) -> Outcome:
        own = uuid.uuid4().hex
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"{self.url}/ws?clientId={own}") as socket_,
        ):
            async with http.post(f"{self.url}/prompt", json={"prompt": prompt, "client_id": own}) as answer:
                body = await answer.json()
                if answer.status != 200:
                    raise Refused(json.dumps(body, indent=1))
            number = body["prompt_id"]
            events = await self._events(socket_, number, on_event)
            history = await _history(http, f"{self.url}/history/{number}", number)
        return Outcome(number, history["status"]["status_str"], history["outputs"], events)

    async def _events(
        self, socket_: aiohttp.ClientWebSocketResponse, number: str, on_event: OnEvent | None
    ) -> list[Mapping[str, Any]]:
        events: list[Mapping[str, Any]] = []
        end = time.monotonic() + PROMPT_SECONDS
        while True:
            message = await socket_.receive(timeout=end - time.monotonic())
            if message.type is aiohttp.WSMsgType.BINARY:
                events.append({"type": "preview", "data": {"bytes": len(message.data)}})
            if message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                raise AssertionError(f"the server is gone:\n{self.logged()[-3000:]}")
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            events.append(event)
            if on_event is not None:
                await on_event(self, event)
            done = event["type"] == "executing" and event["data"]["node"] is None
            if done and event["data"]["prompt_id"] == number:
                return events


async def _history(http: aiohttp.ClientSession, url: str, number: str) -> Any:
    """The entry of a prompt, which appears a moment after its last event."""
    for _ in range(200):
        async with http.get(url) as answer:
            found = await answer.json()
        if number in found:
            return found[number]
        await asyncio.sleep(0.02)
    raise AssertionError(f"prompt {number} has no history")


@contextlib.contextmanager
def running_server(
    folder: Path, place: Path, *flags: str, prepare: Callable[[Path], None], on_cpu: bool = True
) -> Iterator[Client]:
    """ComfyUI of `folder` with a private base folder below `place`; ended with the block.

    flags: of its command line. prepare: fills the base folder before the start.
    """
    base = place / "base"
    for name in ("custom_nodes", "input", "output", "user", "temp", "models/loras"):
        (base / name).mkdir(parents=True, exist_ok=True)
    (base / "custom_nodes" / "ComfyUI-Musubi").symlink_to(PACK, target_is_directory=True)
    own = Path(__file__).parent / "test_nodes"
    (base / "custom_nodes" / "musubi_test_nodes").symlink_to(own, target_is_directory=True)
    prepare(base)
    python, log = python_of(folder), place / "server.log"
    libraries = lend_libraries(python, place / "libraries")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(python), str(folder / "main.py"), "--port", str(port), *(["--cpu"] if on_cpu else [])]
    words += ["--base-directory", str(base)]
    words += ["--disable-api-nodes", "--disable-auto-launch", "--database-url", "sqlite:///:memory:"]
    words += ["--preview-method", "none", *flags]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(libraries)}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(words, cwd=base, env=environment, stdout=output, stderr=subprocess.STDOUT)
    client = Client(f"http://127.0.0.1:{port}", base, log, process, libraries, python)
    try:
        _wait(client)
        yield client
    finally:
        process.kill()
        process.wait()


def _wait(client: Client) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if client.process.poll() is not None:
            break
        try:
            client.get("/prompt")
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"ComfyUI did not start:\n{client.logged()[-4000:]}")
