// An Express server that blocks its event loop in every way that node has, in a route and in a worker thread, and asks
// itself for each, one after the other. A line that blocks carries `BLOCKS name`, so that a test can find it.
//
//   --only=A,B   only these ways
//   --both       the routes of /sync and /late are asked for by a child process, several at a time
//   --cluster    two workers of a cluster block once each
'use strict';

const { Worker, isMainThread, parentPort, threadId } = require('node:worker_threads');
const child_process = require('node:child_process');
const cluster = require('node:cluster');
const crypto = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');
const os = require('node:os');
const path = require('node:path');

const length = 300;
const option = (name) => process.argv.find((argument) => argument.startsWith(`--${name}`));
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'looplag-blocks-'));
const fifo = path.join(folder, `pipe-${threadId}`);
child_process.execFileSync('mkfifo', [fifo]);

// How much of something takes about `length` milliseconds here.
function calibrated(start, body) {
  let amount = start;
  for (;;) {
    const began = performance.now();
    body(amount);
    const took = performance.now() - began;
    if (took > 20) return Math.ceil((amount * length) / took);
    amount *= 2;
  }
}

const hash = (count) => crypto.pbkdf2Sync('password', 'salt', count, 64, 'sha512');
const iterations = calibrated(1000, hash);
const textOf = (count) => JSON.stringify(Array.from({ length: count }, (_, i) => ({ id: i, name: `item ${i}` })));
let text = textOf(20000);
{
  const began = performance.now();
  JSON.parse(text);
  text = textOf(Math.ceil((20000 * length) / Math.max(1, performance.now() - began)));
}
const pattern = /^(a+)+$/;
// Each letter more doubles it; a few milliseconds a time.
let letters = 14;
for (let took = 0; took < 4; letters++) {
  const began = performance.now();
  pattern.test('a'.repeat(letters) + 'b');
  took = performance.now() - began;
}

const cases = {
  busyLoop(done) {
    let x = 0;
    const end = Date.now() + length;
    while (Date.now() < end) for (let i = 0; i < 1e5; i++) x = (x + i) | 0; // BLOCKS busyLoop
    done();
  },
  parseText(done) {
    JSON.parse(text); // BLOCKS parseText
    done();
  },
  hashPassword(done) {
    crypto.pbkdf2Sync('password', 'salt', iterations, 64, 'sha512'); // BLOCKS hashPassword
    done();
  },
  matchPattern(done) {
    const end = performance.now() + length;
    while (performance.now() < end) pattern.test('a'.repeat(letters) + 'b'); // BLOCKS matchPattern
    done();
  },
  readPipe(done) {
    child_process.spawn('sh', ['-c', `sleep ${length / 1000}; echo x > ${fifo}`], { stdio: 'ignore' });
    fs.readFileSync(fifo); // BLOCKS readPipe
    done();
  },
  runCommand(done) {
    child_process.execSync(`sleep ${length / 1000}`); // BLOCKS runCommand
    done();
  },
  waitAtomics(done) {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, length); // BLOCKS waitAtomics
    done();
  },
  collectGarbage(done) {
    const end = performance.now() + length;
    while (performance.now() < end) {
      globalThis.gc(); // BLOCKS collectGarbage
    }
    done();
  },
  tickAgain(done) {
    const end = performance.now() + length;
    (function tick() {
      if (performance.now() < end) process.nextTick(tick); // BLOCKS tick
      else done();
    })();
  },
};

function serveWorker() {
  parentPort.on('message', (name) => cases[name](() => parentPort.postMessage(name)));
}

function ask(port, path) {
  return new Promise((resolve, reject) => {
    http.get({ host: '127.0.0.1', port, path, agent: false }, (response) => {
      response.resume();
      response.on('end', resolve);
    }).on('error', reject);
  });
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

function spin() {
  const end = Date.now() + 130;
  while (Date.now() < end);
}

// Functions with the request's number in their names, so that a stack says which request it belongs to.
const blockers = {
  sync0: function sync0() { spin(); },
  late1: function late1() { spin(); },
  sync2: function sync2() { spin(); },
  late3: function late3() { spin(); },
  sync4: function sync4() { spin(); },
  late5: function late5() { spin(); },
  sync6: function sync6() { spin(); },
  late7: function late7() { spin(); },
  sync8: function sync8() { spin(); },
  late9: function late9() { spin(); },
  sync10: function sync10() { spin(); },
  late11: function late11() { spin(); },
  sync12: function sync12() { spin(); },
  late13: function late13() { spin(); },
  sync14: function sync14() { spin(); },
  late15: function late15() { spin(); },
  sync16: function sync16() { spin(); },
  late17: function late17() { spin(); },
  sync18: function sync18() { spin(); },
  late19: function late19() { spin(); },
  sync20: function sync20() { spin(); },
  late21: function late21() { spin(); },
  sync22: function sync22() { spin(); },
  late23: function late23() { spin(); },
};

async function serve() {
  const express = require('express');
  const app = express();
  app.get('/block/:name', function route(request, response) {
    cases[request.params.name](() => response.end('done\n'));
  });
  app.get('/sync/:number', function syncRoute(request, response) {
    blockers[`sync${request.params.number}`]();
    response.end('done\n');
  });
  app.get('/late/:number', async function lateRoute(request, response) {
    await pause(Number(request.params.number) % 7);
    blockers[`late${request.params.number}`]();
    response.end('done\n');
  });
  const server = http.createServer(app).listen(0, '127.0.0.1');
  await new Promise((resolve) => server.on('listening', resolve));
  const { port } = server.address();
  if (option('both')) {
    const environment = { ...process.env, LD_PRELOAD: '' };
    const client = child_process.spawn(process.execPath, [__filename, `--client=${port}`], { env: environment });
    await new Promise((resolve) => client.on('exit', resolve));
  } else {
    const worker = new Worker(__filename, { name: 'cruncher' });
    await new Promise((resolve) => worker.on('online', resolve));
    const only = option('only')?.split('=')[1].split(',');
    for (const name of only ?? Object.keys(cases)) {
      await pause(60);
      await ask(port, `/block/${name}?token=secret`);
      await pause(60);
      const answered = new Promise((resolve) => worker.once('message', resolve));
      worker.postMessage(name);
      await answered;
    }
    await worker.terminate();
    const jobs = [];
    for (let i = 0; i < 16; i++) {
      jobs.push(new Promise((resolve) => crypto.pbkdf2('password', 'salt', iterations, 64, 'sha512', resolve)));
    }
    await Promise.all(jobs);
  }
  await pause(150);
  process.exit(0);
}

// Several requests are always under way: one that blocks at once, one after an await, and so on.
async function request(port) {
  let next = 0;
  const lane = async () => {
    while (next < 24) {
      const number = next++;
      await ask(port, `/${number % 2 === 0 ? 'sync' : 'late'}/${number}?token=secret`);
    }
  };
  await Promise.all([lane(), lane(), lane()]);
}

async function beCluster() {
  if (cluster.isPrimary) {
    for (let i = 0; i < 2; i++) cluster.fork();
    let left = 2;
    cluster.on('exit', () => {
      left -= 1;
      if (left === 0) process.exit(0);
    });
  } else {
    await pause(100);
    cases.waitAtomics(() => {});
    await pause(300);
    process.exit(0);
  }
  await pause(0);
}

if (!isMainThread) serveWorker();
else if (option('client')) request(Number(option('client').split('=')[1])).then(() => process.exit(0));
else if (option('cluster')) beCluster();
else serve();
process.on('exit', () => isMainThread && fs.rmSync(folder, { recursive: true, force: true }));
