"""Many workers in one process, each doing one job, as plain nats-py users.

Every update of a job has a mark, 1, 2, 3, ... Each acknowledged update is written to standard output as
one line of JSON, so that what was published is known to the letter. Nothing is given up: an update is
offered until JetStream has it. Settings come as one JSON document in argv[1].
"""

import asyncio
import json
import random
import sys
import time
import uuid

import nats

settings = json.loads(sys.argv[1])
run = uuid.uuid4().hex[:8]


class Worker:
    def __init__(self, jetstream, owner, job):
        self.jetstream = jetstream
        self.owner = owner
        self.job = job
        self.mark = 0

    async def state(self, status, **more):
        self.mark += 1
        body = {"status": status, "meta": {"mark": self.mark}, **more}
        headers = {}
        if status in ("completed", "failed", "cancelled"):
            headers = {"Nats-Rollup": "sub", "Nats-TTL": "24h"}
        await self.publish("state", body, headers)

    async def milestone(self, name):
        self.mark += 1
        await self.publish(name, {"mark": self.mark, "at": f"{self.job}/{name}"}, {})

    async def publish(self, what, body, headers):
        headers["Nats-Msg-Id"] = f"{run}-{self.job}-{self.mark}"
        payload = json.dumps({**body, "ts": now()} if what == "state" else body).encode()
        while True:
            try:
                subject = f"progress.{self.owner}.{self.job}.{what}"
                await self.jetstream.publish(subject, payload, timeout=1, headers=headers)
                break
            except Exception:
                await asyncio.sleep(random.uniform(0.05, 0.2))
        line = {
            "job": self.job,
            "mark": self.mark,
            "milestone": None if what == "state" else what,
            "body": body,
        }
        print(json.dumps(line), flush=True)


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + "Z"


async def live(worker, rng):
    """One job's life: queued, running with milestones now and then, one of the three endings."""
    await asyncio.sleep(rng.uniform(0, settings["spread"]))
    await worker.state("queued")
    steps = settings["steps"]
    for step in range(1, steps + 1):
        # now and then a burst faster than any client is told, so that states are superseded
        await asyncio.sleep(0 if rng.random() < 0.2 else rng.uniform(0, 2 * settings["pause"]))
        if rng.random() < 0.15:
            await worker.milestone(rng.choice(["clip_completed", "page_ready"]))
        else:
            await worker.state("running", current=step, total=steps, message=f"step {step}")
    status = rng.choice(["completed", "completed", "failed", "cancelled"])
    await worker.state(status, **({"error": {"message": "no"}} if status == "failed" else {}))


async def quiet(_error):
    pass


async def main():
    connection = await nats.connect(
        settings["urls"],
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.1,
        connect_timeout=1,
        error_cb=quiet,
    )
    jetstream = connection.jetstream()
    lives = []
    for index in range(settings["jobs"]):
        owner = f"o{index % settings['owners']}"
        worker = Worker(jetstream, owner, f"{owner}-j{index}")
        lives.append(live(worker, random.Random(settings["seed"] * 1000 + index)))
    await asyncio.gather(*lives)
    await connection.close()


asyncio.run(main())
