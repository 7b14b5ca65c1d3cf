"""Reads one way out as a Python program does. Prints a line for each job and milestone: its name, and its canonical text."""
import json
import os
import struct
import sys
import urllib.request

url, way, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])
found = {}


def canonical(value):
    if value is None:
        return "z"
    if value is True or value is False:
        return "t" if value else "f"
    if isinstance(value, (int, float)):
        number = float(value)
        return "n" + struct.pack(">d", 0.0 if number == 0 else number).hex()
    if isinstance(value, str):
        # Half of a surrogate pair is no text, and ends the program here.
        return "s" + value.encode("utf-8").hex()
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    members = sorted((name.encode("utf-8").hex(), canonical(inner)) for name, inner in value.items())
    return "{" + ",".join(name + ":" + inner for name, inner in members) + "}"


def read(text):
    return json.loads(text, parse_constant=lambda word: sys.exit("not JSON: " + word))


def take(told):
    """Takes a native frame, or what the dialect of these tests makes of it."""
    if "job" in told:
        found[told["job"]["job_id"]] = canonical(told["job"])
    elif told.get("type") == "milestone":
        found[told["job_id"] + "/" + told["name"]] = canonical(told["data"])


def get(path):
    with urllib.request.urlopen(url + path, timeout=20) as answer:
        return read(answer.read().decode("utf-8"))


def stream(path):
    with urllib.request.urlopen(url + path, timeout=20) as lines:
        for line in lines:
            if line.startswith(b"data: "):
                take(read(line[6:].decode("utf-8")))
            if len(found) >= wanted:
                return


jobs = os.environ["JOBS"].split(",")
if way == "sse":
    stream("/v1/sse?topic=user:alice")
elif way == "dialect-sse":
    stream("/whole/stream")
elif way == "poll":
    cursor = ""
    while len(found) < wanted:
        answer = get("/v1/poll?topic=user:alice&wait=5" + cursor)
        cursor = "&cursor=" + answer["cursor"]
        for frame in answer["frames"]:
            take(frame)
elif way == "state":
    for job in jobs:
        take({"job": get("/v1/jobs/" + job)})
elif way == "dialect-poll":
    for job in jobs:
        take(get("/whole/jobs/" + job))
elif way == "dialect-list":
    for job in get("/whole/jobs"):
        take(job)
for name in sorted(found):
    print(name, found[name])
