// Fills libuv's thread pool and tells how long work waits in it, by its own clock: a look at a file takes no time of its
// own, so that all of its latency is the wait behind what was there before.
//
//   --jobs=N           how many are under way at once (16)
//   --length=MS        how long one takes alone (100)
//   --seconds=S        keep so many under way for S seconds; else each once
//   --threads=N        sets UV_THREADPOOL_SIZE itself, before the pool's first work
//   --leave=exit       end by process.exit in the middle of it; --leave=worker: end a worker that filled the pool
//
// It prints one line of JSON: the waits in milliseconds, in order of their beginnings.
'use strict';

const { Worker, isMainThread } = require('node:worker_threads');
const crypto = require('node:crypto');
const fs = require('node:fs');

const option = (name, otherwise) =>
  process.argv.find((argument) => argument.startsWith(`--${name}=`))?.split('=')[1] ?? otherwise;
const jobs = Number(option('jobs', 16));
const length = Number(option('length', 100));
const seconds = Number(option('seconds', 0));
const leave = option('leave');
if (option('threads')) process.env.UV_THREADPOOL_SIZE = option('threads');

// Before the loop's first turn: not measured.
let iterations = 1000;
for (;;) {
  const began = performance.now();
  crypto.pbkdf2Sync('password', 'salt', iterations, 64, 'sha512');
  const took = performance.now() - began;
  if (took > 20) {
    iterations = Math.ceil((iterations * length) / took);
    break;
  }
  iterations *= 2;
}

const waits = [];
let isOver = false;

function job() {
  return new Promise((resolve) => {
    const again = () => {
      if (seconds > 0 && !isOver) start();
      else resolve();
    };
    const start = () => crypto.pbkdf2('password', 'salt', iterations, 64, 'sha512', again);
    start();
  });
}

function look() {
  const index = waits.push(0) - 1;
  const began = performance.now();
  return new Promise((resolve) =>
    fs.stat('/', () => {
      waits[index] = performance.now() - began;
      resolve();
    }));
}

async function fill() {
  const all = [];
  for (let i = 0; i < jobs; i++) all.push(job());
  all.push(look());
  if (seconds > 0) {
    const looks = setInterval(() => all.push(look()), 250);
    setTimeout(() => {
      isOver = true;
      clearInterval(looks);
    }, seconds * 1000);
  }
  await Promise.all(all);
  await Promise.all(all);
}

if (!isMainThread) {
  fill();
} else if (leave === 'worker') {
  // The main loop turns, so that whatever wants to happen on it can.
  const turning = setInterval(() => {}, 20);
  const worker = new Worker(__filename, { argv: process.argv.slice(2) });
  worker.on('online', () => setTimeout(() => worker.terminate(), 1000));
  worker.on('exit', () => {
    clearInterval(turning);
    console.log(JSON.stringify({ waits }));
  });
} else {
  // Nothing else happens on this loop but a timer.
  const turning = setInterval(() => {}, 20);
  if (leave === 'exit') setTimeout(() => process.exit(0), 1000);
  fill().then(() => {
    clearInterval(turning);
    console.log(JSON.stringify({ waits }));
  });
}
