// Requests that overlap in every way node has to go on later, each of which ends in a block of its own: the function that
// blocks for request N of a kind is called block_KIND_N and its path ends in /KIND/N, so that a stack and a request tell
// whether they belong together. Servers in the main thread (plain, Express, over TLS with --tls) and in a worker thread; with --cluster in two
// cluster workers. A child process is the client, so that nobody waits for himself. Ends by itself, or with --serve never.
'use strict';

const cluster = require('node:cluster');
const crypto = require('node:crypto');
const { fork } = require('node:child_process');
const { EventEmitter, once } = require('node:events');
const fs = require('node:fs');
const http = require('node:http');
const https = require('node:https');
const net = require('node:net');
const { setTimeout: later } = require('node:timers/promises');
const { isMainThread, Worker, parentPort } = require('node:worker_threads');
const zlib = require('node:zlib');

const milliseconds = 45;

function spin() {
  const end = process.hrtime.bigint() + BigInt(milliseconds) * 1000000n;
  while (process.hrtime.bigint() < end);
}

function blockFor(kind, id) {
  new Function('spin', `return function block_${kind}_${id}() { spin(); }`)(spin)();
}

let shared;
let pool;
const waiting = [];

/// One connection for all, opened by whoever comes first, and a queue of whom its answers are for.
function pooled(answer) {
  if (!pool) {
    const echo = net.createServer((socket) => socket.pipe(socket)).unref();
    pool = new Promise((resolve) => echo.listen(0, '127.0.0.1', () => {
      const socket = net.connect(echo.address().port, '127.0.0.1', () => resolve(socket));
      socket.unref();
      socket.on('data', (bytes) => { for (const _ of bytes) waiting.shift()(); });
    }));
  }
  pool.then((socket) => { waiting.push(answer); socket.write('x'); });
}

const kinds = {
  sync: (id, done) => done(),
  await: async (id, done) => { await null; await later(3); done(); },
  timer: (id, done) => setTimeout(done, 4),
  immediate: (id, done) => setImmediate(done),
  tick: async (id, done) => { await later(2); process.nextTick(done); },
  microtask: async (id, done) => { await later(1); queueMicrotask(done); },
  chain: (id, done) => Promise.resolve(1).then(() => later(2)).then((x) => x).then(done),
  stat: (id, done) => fs.stat(__filename, done),
  read: async (id, done) => { await fs.promises.readFile(__filename); done(); },
  stream: (id, done) => fs.createReadStream(__filename).once('data', done).resume(),
  hash: (id, done) => crypto.pbkdf2('a', 'b', 200, 32, 'sha256', done),
  zip: (id, done) => zlib.gzip('text', done),
  event: async (id, done) => {
    const emitter = new EventEmitter();
    setTimeout(() => emitter.emit('go'), 3);
    await once(emitter, 'go');
    done();
  },
  shared: async (id, done) => {
    shared ??= later(5).finally(() => { shared = undefined; });
    await shared;
    done();
  },
  nested: (id, done, request) => {
    http.get({ host: '127.0.0.1', port: request.socket.server.echo ?? request.socket.localPort, path: '/none/0',
      agent: false }, (answer) => answer.resume().on('end', done)).on('error', done);
  },
  body: (id, done, request) => { request.once('data', done); },
  end: (id, done, request) => { request.resume().once('end', done); },
  pooled: (id, done) => pooled(done),
};

function handle(request, response) {
  const [, kind, id] = request.url.split('?')[0].split('/').slice(-3);
  if (!kinds[kind]) { request.resume(); response.end('nothing\n'); return; }
  kinds[kind](id, () => {
    blockFor(kind, id);
    response.end('done\n');
  }, request);
}

function serve() {
  const servers = { plain: http.createServer(handle) };
  if (isMainThread && !cluster.isWorker) {
    try {
      const router = require('express').Router();
      router.all('/:kind/:id', (request, response) => handle({ __proto__: request, url: request.originalUrl }, response));
      servers.express = http.createServer(require('express')().use('/mounted', router));
    } catch (error) { if (error.code !== 'MODULE_NOT_FOUND') throw error; }
    const [key, cert] = process.argv.filter((argument) => argument.endsWith('.pem'));
    if (key) servers.tls = https.createServer({ key: fs.readFileSync(key), cert: fs.readFileSync(cert) }, handle);
  }
  return Promise.all(Object.entries(servers).map(([name, server]) => new Promise((resolve) => {
    server.listen(0, '127.0.0.1', () => resolve({ name, port: server.address().port }));
  })));
}

async function ask({ name, port }, kind, id) {
  const library = name === 'tls' ? https : http;
  const hasBody = kind === 'body' || kind === 'end';
  await new Promise((resolve, reject) => {
    const request = library.request({ host: '127.0.0.1', port, path: `${name === 'express' ? '/mounted' : '/at'}/${kind}/${id}?key=secret`,
      method: hasBody ? 'POST' : 'GET', agent: agents[name === 'tls' ? 1 : 0], rejectUnauthorized: false },
    (response) => response.resume().on('end', resolve));
    request.on('error', reject);
    if (!hasBody) return request.end();
    // The body comes when the head has long been served.
    request.flushHeaders();
    setTimeout(() => request.end('x'.repeat(100)), 15);
  });
}

const agents = [http, https].map((library) => new library.Agent({ keepAlive: true, maxSockets: 12 }));

async function client(servers, rounds) {
  let id = 0;
  const all = [];
  for (let round = 0; round < rounds; round++) {
    for (const kind of Object.keys(kinds)) for (const server of servers) all.push([server, kind, ++id]);
  }
  const next = async () => { for (let job; (job = all.shift());) await ask(...job); };
  await Promise.all(Array.from({ length: 12 }, next));
}

async function main() {
  let servers;
  if (process.argv.includes('--cluster')) {
    const workers = [cluster.fork(), cluster.fork()];
    servers = (await Promise.all(workers.map((worker) => once(worker, 'message')))).map(([found]) => found[0]);
  } else {
    const worker = new Worker(__filename);
    servers = [...await serve(), ...(await once(worker, 'message'))[0]];
  }
  if (process.argv.includes('--serve')) { console.log(`serving ${servers.length}`); return; }
  const rounds = Number((process.argv.find((argument) => argument.startsWith('--rounds=')) ?? '=1').split('=')[1]);
  const child = fork(__filename, ['client', JSON.stringify(servers), String(rounds)]);
  const [status] = await once(child, 'exit');
  console.log(`served ${servers.map(({ name }) => name)}: ${status}`);
  process.exit(status);
}

if (process.argv[2] === 'client') {
  client(JSON.parse(process.argv[3]), Number(process.argv[4])).then(() => process.exit(0));
} else if (!isMainThread) {
  serve().then((servers) => parentPort.postMessage(servers));
} else if (cluster.isWorker) {
  serve().then((servers) => process.send(servers));
} else {
  main();
}
