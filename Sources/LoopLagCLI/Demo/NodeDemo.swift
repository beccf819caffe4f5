/// `looplag demo --host node`: a plain http server that blocks its event loop in every usual way, with its own traffic.
///
/// Called by DemoServer. The server is one program that node is handed on its command line, so that nothing has to lie
/// anywhere; the agent comes by LD_PRELOAD, as `looplag run` gives it. It ends with its standard input. LOOPLAG_NODE names
/// the program, else `node` of the search path.

enum NodeDemo {
    static func program() throws(Failure) -> String {
        try DemoServer.find("node", variable: "LOOPLAG_NODE", remedy: "install Node.js")
    }

    static func arguments(_ program: String, _ more: [String]) -> [String] { [program, "-e", script, "--"] + more }

    static let script = #"""
        'use strict';
        const crypto = require('node:crypto'), fs = require('node:fs'), http = require('node:http');
        const { execSync } = require('node:child_process');

        function renderReport() { const end = Date.now() + 300; while (Date.now() < end); }
        function checkPassword() { crypto.pbkdf2Sync('secret', 'salt', 300000, 64, 'sha512'); }
        function findProducts() {
          const end = Date.now() + 150;
          while (Date.now() < end) /^(a+)+$/.test('a'.repeat(18) + 'b');
        }
        function convertImage() { execSync('sleep 0.2'); }
        function loadCatalogue() { return JSON.parse(catalogue).length; }
        function hashUploads(response) {
          let left = 16;
          for (let i = 0; i < 16; i++)
            crypto.pbkdf2('a', 'b', 60000, 64, 'sha512', () => { if (--left === 0) response.end('hashed\n'); });
        }

        const routes = {
          '/hello': ['nothing slow', 'no stall', (response) => response.end('hello\n')],
          '/report': ['computes 300 ms of JavaScript', 'on_cpu in renderReport', renderReport],
          '/login': ['pbkdf2Sync on the loop', 'on_cpu in checkPassword', checkPassword],
          '/search': ['a regular expression that backtracks', 'on_cpu in findProducts', findProducts],
          '/image': ['execSync: waits for a child process', 'syscall in convertImage', convertImage],
          '/catalogue': ['JSON.parse of a large text', 'on_cpu in loadCatalogue', loadCatalogue],
          '/uploads': ['16 asynchronous hashes on the pool of 4', 'no stall; the pool is full', hashUploads],
        };
        const shared = new Set(['/hello', '/uploads']);
        if (process.argv.includes('--list')) {
          for (const [path, [what, shows]] of Object.entries(routes))
            console.log(`${path.padEnd(11)}${what}\n${''.padEnd(11)}  shows: ${shows}`);
          process.exit(0);
        }
        const catalogue = JSON.stringify(Array.from({ length: 120000 }, (_, i) => ({ id: i, name: `thing ${i}` })));

        const server = http.createServer(function route(request, response) {
          const known = routes[request.url];
          if (!known) { response.statusCode = 404; return response.end(); }
          known[2](response);
          if (!shared.has(request.url)) response.end('done\n');
        });

        function load(port) {
          const paths = Object.keys(routes);
          const next = () => {
            const path = paths[Math.floor(Math.random() * paths.length)];
            http.get({ host: '127.0.0.1', port, path }, (response) => {
              response.resume();
              response.on('end', () => setTimeout(next, 300));
            }).on('error', () => process.exit(0));
          };
          next();
        }

        if (process.argv.includes('--load')) {
          process.stdin.on('end', () => process.exit(0)).resume();
          load(Number(process.argv[process.argv.length - 1]));
        } else {
          server.listen(0, '127.0.0.1', () => {
            const port = server.address().port;
            if (process.argv.includes('--serve-only')) {
              const command = process.env.LOOPLAG_COMMAND || 'looplag';
              console.log(`A node server that misbehaves listens on http://127.0.0.1:${port}/\n\nIn another terminal:\n`
                + `  ${command} stalls ${process.pid} --follow\n  curl http://127.0.0.1:${port}/login`);
              return;
            }
            // The load is a process of its own, or it would wait for the loop that it stalls. It has no agent.
            const environment = { ...process.env, LOOPLAG_DISABLE: '1' };
            const child = require('node:child_process').spawn(
              process.execPath, [...process.execArgv, '--', '--load', String(port)],
              { stdio: ['pipe', 'ignore', 'inherit'], env: environment });
            child.on('exit', () => process.exit(1));
            process.stdin.on('end', () => { child.removeAllListeners('exit'); process.exit(0); }).resume();
            console.log(`listening on http=${port}`);
          });
        }
        """#
}
