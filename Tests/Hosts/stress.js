// Everything that moves V8's memory about while the agent looks: collections, code that is compiled, optimised and thrown
// away, regular expressions, large texts; on the main thread, which serves itself over HTTP, and in workers that are
// born and die all the time in each of the ways there are. Every result is held against the right one.
//
//   --seconds=S   how long (4), unless SIGTERM ends it before
//
// It prints one line of JSON: how much was done, how many workers lived, and how many results were wrong.
'use strict';

const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');
const http = require('node:http');

const units = {
  // Small arrays die young, a few live on and are moved.
  collect(n) {
    const kept = [];
    for (let i = 0; i < 60000; i++) {
      const young = [i, `${i}`, { i }];
      if (i % 100 === n % 100) kept.push(young);
    }
    if (globalThis.gc && n % 4 === 0) globalThis.gc(n % 8 === 0);
    return kept.every(([number, text, object]) => text === `${number}` && object.i === number);
  },
  // New code each time, optimised, and thrown out by numbers of another kind.
  compile(n) {
    const sum = new Function('count', 'step', `let x = ${n % 7}; for (let i = 0; i < count; i++) x += step; return x;`);
    let right = true;
    for (let i = 0; i < 300; i++) right &&= sum(2000, 1) === 2000 + (n % 7);
    return right && sum(10, 0.5) === 5 + (n % 7) && sum(2, 'a') === `${n % 7}aa`;
  },
  match(n) {
    const slow = /^(a+)+$/.test('a'.repeat(17) + 'b');
    const text = 'key=value; '.repeat(2000) + n;
    const swapped = text.replace(/(\w+)=(\w+)/g, '$2=$1');
    return !slow && swapped.length === text.length && swapped.startsWith('value=key');
  },
  parse(n) {
    const list = Array.from({ length: 6000 }, (_, i) => ({ id: i, name: `item ${i} ä€`, tags: [n, i] }));
    const copy = JSON.parse(JSON.stringify(list));
    return copy.length === 6000 && copy[5999].name === list[5999].name && copy[17].tags[0] === n;
  },
  // Frames of every kind below one another: inlined, of a getter, of a callback of a builtin, of a generator.
  nest(n) {
    const box = { get value() { return [...(function* () { yield* [3, 1, 2]; })()].sort((a, b) => a - b); } };
    let total = 0;
    for (let i = 0; i < 3000; i++) total += box.value.map((x) => x * 2).reduce((a, b) => a + b, 0);
    return total === 36000 && n === n;
  },
};
const names = Object.keys(units);

let count = 0;
let wrong = 0;
function work() {
  const end = performance.now() + 30;
  do {
    const number = count++;
    if (!units[names[number % names.length]](number)) wrong += 1;
  } while (performance.now() < end);
}

function beWorker() {
  const { life, way } = workerData;
  const end = performance.now() + life;
  const turn = () => {
    work();
    parentPort.postMessage({ count, wrong });
    count = wrong = 0;
    if (performance.now() < end) return setImmediate(turn);
    if (way === 'exit') process.exit(0);
    if (way === 'throw') throw new Error('as it should');
    if (way === 'terminate') setImmediate(turn); // until somebody ends it
  };
  turn();
}

function beMain() {
  const option = process.argv.find((argument) => argument.startsWith('--seconds='));
  let end = performance.now() + Number(option?.split('=')[1] ?? 4) * 1000;
  process.on('SIGTERM', () => { end = 0; });
  const isOver = () => performance.now() >= end;
  const ways = ['exit', 'throw', 'return', 'terminate'];
  let workers = 0;
  let living = 0;
  let requests = 0;
  const raise = () => {
    const way = ways[workers++ % ways.length];
    const worker = new Worker(__filename, { workerData: { life: 200 + (workers % 5) * 150, way } });
    living += 1;
    worker.on('message', (told) => {
      count += told.count;
      wrong += told.wrong;
    });
    worker.on('error', (error) => { if (error.message !== 'as it should') wrong += 1; });
    worker.on('exit', () => {
      living -= 1;
      if (!isOver()) raise();
    });
    if (way === 'terminate') setTimeout(() => worker.terminate(), 500);
  };
  const server = http.createServer((request, response) => {
    work();
    response.end(`${request.url} ${'x'.repeat(20000)}`);
  });
  server.listen(0, '127.0.0.1', () => {
    for (let i = 0; i < 3; i++) raise();
    const ask = () => {
      if (isOver()) return server.close();
      const path = `/request/${requests++}`;
      http.get({ host: '127.0.0.1', port: server.address().port, path, agent: false }, (response) => {
        let body = '';
        response.setEncoding('utf8');
        response.on('data', (text) => { body += text; });
        response.on('end', () => {
          if (body !== `${path} ${'x'.repeat(20000)}`) wrong += 1;
          ask();
        });
      }).on('error', () => { wrong += 1; });
    };
    ask();
  });
  process.on('exit', () => console.log(JSON.stringify({ units: count, requests, workers, wrong, living })));
}

if (isMainThread) beMain();
else beWorker();
