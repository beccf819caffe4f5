// A node server that a command line may only knock at by the first user signal: what it does with that signal, and whether it is free to
// answer. The signal's name is put together, so that the source does not give it away.
//
//   handler   has a handler of its own for it and says so when it is called
//   removed   had one and took it away: the signal would end it
//   native    /native?ms=N blocks in one native call for about N ms
'use strict';

const crypto = require('node:crypto');
const http = require('node:http');

const signal = ['SIG', 'USR1'].join('');
const mode = process.argv[2];

if (mode === 'handler' || mode === 'removed') process.on(signal, () => console.log('signalled'));
if (mode === 'removed') process.removeAllListeners(signal);

function rounds(milliseconds) {
  const start = process.hrtime.bigint();
  crypto.pbkdf2Sync('a', 'b', 20000, 64, 'sha512');
  return Math.ceil(20000 * milliseconds / (Number(process.hrtime.bigint() - start) / 1e6));
}

async function handle(request, response) {
  const url = new URL(request.url, 'http://127.0.0.1');
  const milliseconds = Number(url.searchParams.get('ms') ?? 0);
  const start = process.hrtime.bigint();
  if (url.pathname === '/native') crypto.pbkdf2Sync('a', 'b', rounds(milliseconds), 64, 'sha512');
  if (url.pathname === '/awaited') {
    await null;
    await new Promise((resolve) => setTimeout(resolve, 5));
    const end = process.hrtime.bigint() + BigInt(milliseconds) * 1000000n;
    while (process.hrtime.bigint() < end);
  }
  response.end(`done ${process.hrtime.bigint() - start}\n`);
}

const server = http.createServer(handle);
server.listen(0, '127.0.0.1', () => console.log(`listening on http=${server.address().port}`));
process.on('SIGTERM', () => process.exit(0));
