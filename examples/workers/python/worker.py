"""Publishes the life of one job to JetStream: progress, a milestone, an ending.

Usage: NATS_URL=nats://127.0.0.1:4222 python worker.py JOB [OWNER]
"""

import asyncio
import json
import os
import random
import sys
import time
import uuid
from datetime import datetime, timezone

import nats


class Job:
    """One job's line to whoever watches it."""

    def __init__(self, jetstream, job, owner="-"):
        self.jetstream = jetstream
        self.subject = f"progress.{owner}.{job}"
        self.run = uuid.uuid4().hex  # another run of the same job must not look like a repeat
        self.count = 0
        self.last = 0.0

    async def state(self, **state):
        """The complete current state; at most ten a second, the others are left out."""
        now = time.monotonic()
        if now - self.last >= 0.1:
            self.last = now
            await self._publish("state", {"status": "running", **state})

    async def milestone(self, name, **data):
        """An event that no later message replaces."""
        await self._publish(name, data)

    async def end(self, status, **state):
        """The last state. Alone on its subject, kept for a day, and offered until it is stored."""
        headers = {"Nats-Rollup": "sub", "Nats-TTL": "24h"}
        await self._publish("state", {"status": status, **state}, headers, patience=float("inf"))

    async def _publish(self, what, body, headers=None, patience=15.0):
        self.count += 1
        # the same id at each try: what was stored but not acknowledged is not stored twice
        headers = {"Nats-Msg-Id": f"{self.run}-{self.count}", **(headers or {})}
        if what == "state":
            body["ts"] = datetime.now(timezone.utc).isoformat()
        payload = json.dumps(body).encode()
        give_up = time.monotonic() + patience
        pause = 0.2
        while True:
            try:
                subject = f"{self.subject}.{what}"
                return await self.jetstream.publish(subject, payload, timeout=2, headers=headers)
            except Exception as error:
                if time.monotonic() + pause > give_up:
                    print(f"gave up on {what}: {error!r}", file=sys.stderr)
                    return None
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, 3.0)


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


async def complain(error):
    print(f"nats: {error}", file=sys.stderr)


async def main(job_id, owner="-"):
    url = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
    connection = await nats.connect(url, max_reconnect_attempts=-1, error_cb=complain)
    job = Job(connection.jetstream(), job_id, owner)
    try:
        result = await work(job)
    except Exception as error:
        await job.end("failed", error={"code": type(error).__name__, "message": str(error)})
        raise
    else:
        await job.end("completed", progress=100, result=result)
    finally:
        await connection.close()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:3]))
