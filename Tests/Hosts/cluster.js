// A node primary with workers, each on a port of its own: WORKERS processes (cluster) or threads (worker_threads).
//
//   node cluster.js processes|threads COUNT
//
// Each says `worker NUMBER listening on http=PORT`. /cpu?ms=N answers `done NANOSECONDS`, by its own clock; /exit ends
// the worker, and the primary starts another in its place.
'use strict';

const http = require('node:http');
const cluster = require('node:cluster');
const threads = require('node:worker_threads');

function serve(number) {
  const server = http.createServer((request, response) => {
    const url = new URL(request.url, 'http://127.0.0.1');
    if (url.pathname === '/exit') {
      response.end('done 0\n', () => process.exit(0));
      return;
    }
    const milliseconds = Math.min(Number(url.searchParams.get('ms') ?? 0) || 0, 60000);
    const start = process.hrtime.bigint();
    const end = start + BigInt(milliseconds) * 1000000n;
    while (process.hrtime.bigint() < end);
    response.end(`done ${process.hrtime.bigint() - start}\n`);
  });
  // Not shared between the workers of a cluster: a test asks one of them.
  server.listen({ port: 0, host: '127.0.0.1', exclusive: true }, () => {
    const who = cluster.isWorker ? process.pid : threads.threadId;
    console.log(`worker ${number} is ${who} listening on http=${server.address().port}.`);
  });
}

const [kind, count] = [process.argv[2], Number(process.argv[3] ?? 2)];
if (cluster.isWorker) {
  serve(process.env.NUMBER);
} else if (!threads.isMainThread) {
  serve(threads.workerData);
} else {
  let started = 0;
  const start = () => {
    const number = ++started;
    const worker = kind === 'threads' ? new threads.Worker(__filename, { workerData: number })
      : cluster.fork({ NUMBER: number });
    worker.on('exit', start);
  };
  for (let i = 0; i < count; i++) start();
  process.on('SIGTERM', () => process.exit(0));
}
