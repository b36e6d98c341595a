"""The HTTP routes of the dashboard. A request names a job and a number, never a path.

GET  /musubi/jobs                                what runs and what ran
GET  /musubi/jobs/{job}                          one job with its curves, samples, messages and files
GET  /musubi/jobs/{job}/samples/{number}/{form}  a sample: "still", or "clip" when it moves
POST /musubi/jobs/{job}                          {"command": "save" | "sample" | "stop"}
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

from . import running

routes = web.RouteTableDef()
MOST_DIGITS = 9  # of the number of a sample


@routes.get("/musubi/jobs")
async def list_jobs(request: web.Request) -> web.Response:
    """The summaries of all jobs, the newest first."""
    return web.json_response({"jobs": [one.summary() for one in running.jobs()]})


@routes.get("/musubi/jobs/{job}")
async def show_job(request: web.Request) -> web.Response:
    """All that is known of a job."""
    job = _job(request)
    text = await asyncio.to_thread(lambda: json.dumps(job.whole()))
    response = web.Response(text=text, content_type="application/json")
    response.enable_compression()
    return response


@routes.get("/musubi/jobs/{job}/samples/{number}/{form}")
async def show_sample(request: web.Request) -> web.FileResponse:
    """A picture that this program wrote for this job."""
    number, form = request.match_info["number"], request.match_info["form"]
    known = number.isascii() and number.isdigit() and len(number) <= MOST_DIGITS
    sample = _job(request).sample(int(number)) if known else None
    file = None if sample is None else {"still": sample.still, "clip": sample.clip}.get(form)
    if file is None or not file.is_file():
        raise _refusal(web.HTTPNotFound, "This job has no such sample; old ones make room for new ones.")
    # A sample never changes: the browser may keep it.
    return web.FileResponse(file, headers={"Cache-Control": "private, max-age=86400, immutable"})


@routes.post("/musubi/jobs/{job}")
async def command_job(request: web.Request) -> web.Response:
    """Ask a running job for something that it obeys."""
    # A foreign page can make a browser post a form, but not JSON: that needs a permission nobody gives.
    if request.content_type != "application/json":
        raise _refusal(
            web.HTTPUnsupportedMediaType, "Send JSON, with the header Content-Type: application/json."
        )
    job = _job(request)
    try:
        body = await request.json()
    except ValueError:
        raise _refusal(web.HTTPBadRequest, "The body is not JSON.") from None
    command = body.get("command") if isinstance(body, dict) else None
    if command not in running.COMMANDS:
        raise _refusal(web.HTTPBadRequest, f'Send {{"command": one of {", ".join(running.COMMANDS)}}}.')
    if not job.ask(command):
        why = (
            "it is over" if job.state != "running" else f"it obeys {', '.join(job.commands) or 'no commands'}"
        )
        raise _refusal(web.HTTPConflict, f'The job cannot do "{command}": {why}.')
    return web.json_response({"job": job.summary()})


def add_routes() -> None:
    """Make the routes known to the server; nothing where there is no server, as in tests of single nodes."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    for route in routes:
        server.routes.route(route.method, route.path, **route.kwargs)(route.handler)


def _job(request: web.Request) -> running.Job:
    job = running.find(request.match_info["job"])
    if job is None:
        raise _refusal(web.HTTPNotFound, "No job has this id. A restart of the server forgets them.")
    return job


def _refusal(kind: type[web.HTTPException], text: str) -> Any:
    return kind(text=json.dumps({"error": text}), content_type="application/json")
