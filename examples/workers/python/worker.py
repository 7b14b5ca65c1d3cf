"""Publishes the life of one job to JetStream: progress, a milestone, an ending.

Usage: NATS_URL=nats://127.0.0.1:4222 python worker.py JOB [OWNER [ATTEMPT]]

Credentials: NATS_USER and NATS_PASSWORD, or NATS_TOKEN, NATS_CREDS (a file) or NATS_NKEY (a file). The last two
need pip install "nats-py[nkeys]".
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
import traceback
import uuid
from datetime import datetime, timezone

import nats
import nats.errors
import nats.js.errors

# How a stream for one owner answers an ending: it has no roll-ups and no lifetimes, and needs none.
NO_ROLLUP = (10111, 10166)


class Job:
    """One job's line to whoever watches it."""

    def __init__(self, connection, job, owner="-", attempt=1):
        self.connection = connection
        self.jetstream = connection.jetstream()
        self.subject = f"progress.{owner}.{job}"
        self.attempt = attempt  # a job that has ended begins anew with a higher one
        # nobody else's, nor another run's: whoever uses an id first makes the next with that id a repeat
        self.ids = f"{owner}.{job}.{uuid.uuid4().hex}"
        self.count = 0
        self.latest = None  # the state that waits to be published
        self.sender = None
        self.ended = False

    async def state(self, **state):
        """The complete current state. At most ten a second are published, and always the last one."""
        if not self.ended:
            self.latest = self._encode({"status": "running", **state})
            if self.sender is None or self.sender.done():
                self.sender = asyncio.create_task(self._send())

    async def milestone(self, name, **data):
        """An event that no later message replaces. States from before it are published first."""
        if self.sender is not None:
            await asyncio.wait([self.sender])
        try:
            await self._publish(name, json.dumps(data, allow_nan=False).encode())
        except Exception as error:
            print(f"the milestone {name} is not told: {error!r}", file=sys.stderr)

    async def end(self, status, **state):
        """The last state. Alone on its subject, kept for a day, and offered until it is stored, for ten
        minutes. Raises what is wrong if it cannot be stored."""
        payload = self._encode({"status": status, **state})
        self.ended, self.latest = True, None
        if self.sender is not None:
            await asyncio.wait([self.sender])
        try:
            headers = {"Nats-Rollup": "sub", "Nats-TTL": "24h"}
            await self._publish("state", payload, headers, patience=600.0)
        except nats.js.errors.APIError as error:
            if error.err_code not in NO_ROLLUP:
                raise
            await self._publish("state", payload, patience=600.0)

    def _encode(self, state):
        # here and not later, so that what JSON cannot express is an error where it was made
        now = datetime.now(timezone.utc).isoformat()
        return json.dumps({**state, "attempt": self.attempt, "ts": now}, allow_nan=False).encode()

    async def _send(self):
        while self.latest is not None:
            latest, self.latest = self.latest, None
            try:
                await self._publish("state", latest)
            except Exception as error:
                print(f"a state is not told: {error!r}", file=sys.stderr)
            await asyncio.sleep(0.1)

    async def _publish(self, what, payload, headers=None, patience=15.0):
        subject = f"{self.subject}.{what}"
        self.count += 1
        # the same id at each try: what was stored but not acknowledged is not stored twice
        headers = {"Nats-Msg-Id": f"{self.ids}.{self.count}", **(headers or {})}
        give_up = time.monotonic() + patience
        pause = 0.2
        while True:
            try:
                return await self.jetstream.publish(subject, payload, timeout=2, headers=headers)
            except Exception as error:
                if time.monotonic() + pause > give_up:
                    raise
                if self._is_final(error, subject):
                    raise
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, 3.0)

    def _is_final(self, error, subject):
        """Whether the same message will be rejected again, however often it is sent."""
        if isinstance(error, nats.js.errors.APIError):
            return 400 <= (error.code or 0) < 500 or error.err_code in NO_ROLLUP
        # NATS does not answer what a user may not publish; it says so on the side
        denied = str(self.connection.last_error).lower()
        if f'permissions violation for publish to "{subject.lower()}"' in denied:
            print(denied, file=sys.stderr)
            return True
        return isinstance(error, (nats.errors.MaxPayloadError, nats.errors.ConnectionClosedError))


async def work(job):
    """Stands for the real work."""
    steps = int(os.environ.get("STEPS", "20"))
    for step in range(1, steps + 1):
        await asyncio.sleep(0.05)
        if step == int(os.environ.get("FAIL_AT", "0")):
            raise RuntimeError(f"step {step} went wrong")
        await job.state(current=step, total=steps, unit="steps", message=f"step {step}")
        if step == steps // 2:
            await job.milestone("half_way", step=step)
    return {"steps": steps}


def credentials():
    """How to log in to NATS, from the variables that the nats command reads too."""
    names = {
        "user": "NATS_USER",
        "password": "NATS_PASSWORD",
        "token": "NATS_TOKEN",
        "user_credentials": "NATS_CREDS",
        "nkeys_seed": "NATS_NKEY",
    }
    return {option: os.environ[name] for option, name in names.items() if os.environ.get(name)}


async def main(job_id, owner="-", attempt="1"):
    url = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
    connected = False

    async def complain(error):
        print(f"nats: {error}", file=sys.stderr)
        if not connected and "authorization" in str(error).lower():
            sys.exit("NATS does not let this worker in: check NATS_USER and NATS_PASSWORD, or the others")

    connection = await nats.connect(url, max_reconnect_attempts=-1, error_cb=complain, **credentials())
    connected = True
    job = Job(connection, job_id, owner, int(attempt))
    # Ctrl-C, and what a supervisor sends before it kills: the work ends, and the job with it
    task = asyncio.current_task()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        result = await work(job)
        status, last = "completed", {"progress": 100, "result": result}
    except asyncio.CancelledError:
        status, last = "cancelled", {"message": "the worker was stopped"}
    except Exception as error:
        traceback.print_exc()
        status, last = "failed", {"error": {"code": type(error).__name__, "message": str(error)}}
    # from here on a signal ends the process at once
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().remove_signal_handler(number)
    try:
        await job.end(status, **last)
    except (TypeError, ValueError, nats.errors.MaxPayloadError, nats.js.errors.APIError) as error:
        # what JSON cannot express, or NATS does not take, ends the job too
        traceback.print_exc()
        status = "failed"
        await job.end(status, error={"code": type(error).__name__, "message": str(error)[:1000]})
    finally:
        await connection.close()
    return {"completed": 0, "failed": 1, "cancelled": 130}[status]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(asyncio.run(main(*sys.argv[1:4])))
