// Plain node http. Every handler answers `done NANOSECONDS`, by its own clock; /elu answers node's own account of the
// loop, in milliseconds since the loop began.
'use strict';

const crypto = require('node:crypto');
const http = require('node:http');
const { execSync } = require('node:child_process');
const { performance } = require('node:perf_hooks');

function spin(milliseconds) {
  const end = process.hrtime.bigint() + BigInt(milliseconds) * 1000000n;
  while (process.hrtime.bigint() < end);
}

function waitForChild(milliseconds) {
  execSync(`sleep ${milliseconds / 1000}`);
}

// Sixteen jobs for four threads, and an answer at once.
function fillPool() {
  for (let i = 0; i < 16; i++) crypto.pbkdf2('password', 'salt', 3_000_000, 64, 'sha512', () => {});
}

const work = { '/ok': () => {}, '/cpu': spin, '/execsync': waitForChild, '/pool': fillPool };

const server = http.createServer((request, response) => {
  const url = new URL(request.url, 'http://127.0.0.1');
  if (url.pathname === '/elu') {
    const { idle, active, utilization } = performance.eventLoopUtilization();
    response.end(`${JSON.stringify({ idle, active, utilization })}\n`);
    return;
  }
  const milliseconds = Number(url.searchParams.get('ms') ?? 0);
  if (!work[url.pathname] || !(milliseconds >= 0 && milliseconds <= 60000)) {
    response.statusCode = 404;
    response.end('error: no such path\n');
    return;
  }
  const start = process.hrtime.bigint();
  work[url.pathname](milliseconds);
  response.end(`done ${process.hrtime.bigint() - start}\n`);
});

server.listen(0, '127.0.0.1', () => console.log(`listening on http=${server.address().port}`));
process.on('SIGTERM', () => process.exit(0));
