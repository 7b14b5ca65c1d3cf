// Reads one way out as a page does. Prints a line for each job and milestone: its name, and its canonical text.
const [url, way, count] = process.argv.slice(2);
const found = new Map();

const hex = (text) => {
  if (!text.isWellFormed()) throw new Error('half of a surrogate pair');
  return Buffer.from(text, 'utf8').toString('hex');
};

function canonical(value) {
  if (value === null) return 'z';
  switch (typeof value) {
    case 'boolean':
      return value ? 't' : 'f';
    case 'number': {
      if (!Number.isFinite(value)) throw new Error('no number');
      const bytes = Buffer.alloc(8);
      bytes.writeDoubleBE(value === 0 ? 0 : value);
      return 'n' + bytes.toString('hex');
    }
    case 'string':
      return 's' + hex(value);
  }
  if (Array.isArray(value)) return '[' + value.map(canonical).join(',') + ']';
  const members = Object.entries(value).map(([name, inner]) => [hex(name), canonical(inner)]);
  members.sort(([one], [other]) => (one < other ? -1 : Number(one > other)));
  return '{' + members.map((member) => member.join(':')).join(',') + '}';
}

function take(told) {
  if (told.job !== undefined) found.set(told.job.job_id, canonical(told.job));
  else if (told.type === 'milestone') found.set(`${told.job_id}/${told.name}`, canonical(told.data));
}

async function stream(path) {
  const answer = await fetch(url + path);
  const decoder = new TextDecoder('utf-8', { fatal: true });
  let rest = '';
  for await (const bytes of answer.body) {
    rest += decoder.decode(bytes, { stream: true });
    const lines = rest.split('\n');
    rest = lines.pop();
    for (const line of lines) if (line.startsWith('data: ')) take(JSON.parse(line.slice(6)));
    if (found.size >= Number(count)) return;
  }
}

// Engine.IO's polling, as its client does it.
async function socketIo() {
  const path = `${url}/socket.io/?EIO=4&transport=polling`;
  const text = async (answer) => new TextDecoder('utf-8', { fatal: true }).decode(await (await answer).arrayBuffer());
  const session = `${path}&sid=${JSON.parse((await text(fetch(path))).slice(1)).sid}`;
  await text(fetch(session, { method: 'POST', body: '40' }));
  while (found.size < Number(count)) {
    for (const packet of (await text(fetch(session))).split('\x1e')) {
      if (packet === '2') await text(fetch(session, { method: 'POST', body: '3' }));
      if (packet.startsWith('42')) take(JSON.parse(packet.slice(2))[1]);
    }
  }
}

if (way === 'socketio') await socketIo();
else await stream(way === 'sse' ? '/v1/sse?topic=user:alice' : '/whole/stream');
for (const name of [...found.keys()].sort()) console.log(name, found.get(name));
process.exit(0);
