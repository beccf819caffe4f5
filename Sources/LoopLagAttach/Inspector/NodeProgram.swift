/// The one program that LoopLag runs inside node: loads the agent's object, lets it attach, and with `--requests` keeps
/// noting which request the running code belongs to.
///
/// Made by the command line as text; runs on a thread of the host, at its start (`node --require`) or when its inspector
/// is asked to evaluate it. It refuses to throw into the host: what fails there is left out. The memory that it notes into
/// is `struct lag_board` of CLoopLag's napi.c.

public enum NodeProgram {
    /// Evaluated by an inspector: gives `{"answer": LAG_ATTACH_*, "follows": bool}`, or throws.
    static func expression(agent: String, variables: [UInt8], closesInspector: Bool, followsRequests: Bool) -> String {
        "(\(body))(require, {agent: \(literal(agent)), variables: \(literal(String(decoding: variables, as: UTF8.self))),"
            + " closes: \(closesInspector), requests: \(followsRequests)})"
    }

    /// For `--require`: the agent is preloaded and starts by itself.
    public static func module(agent: String) -> String {
        "'use strict';\ntry { (\(body))(require, {agent: \(literal(agent)), requests: true}); } catch {}\n"
    }

    /// A JavaScript string literal.
    static func literal(_ text: String) -> String {
        var result = "\""
        for unit in text.utf16 {
            switch unit {
            case 0x20...0x7e where unit != 0x22 && unit != 0x5c:
                result.unicodeScalars.append(Unicode.Scalar(UInt8(unit)))
            default:
                let digits = String(unit, radix: 16)
                result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            }
        }
        return result + "\""
    }

    /// How it knows the request: the server's start channel tells of each one as its handler is about to run. Everything
    /// asynchronous that is begun meanwhile (a promise, a timer, a read) remembers it, and whatever is called back runs for
    /// the request that its beginning remembered. Handles that outlive a request (sockets, pipes, message ports) remember
    /// none: a pooled connection serves others than the one that opened it. Of a request that has been answered nothing is
    /// noted any more, so a timer that the first visitor happened to start is not blamed on that visitor for ever.
    private static let body = #"""
        (require, options) => {
          const module = { exports: {} };
          if (options.closes) {
            const inspector = require('node:inspector');
            require('node:timers').setTimeout(() => inspector.close(), 10).unref();
          }
          process.dlopen(module, options.agent);
          const { attach, board } = module.exports;
          if (typeof attach !== 'function') throw new Error('another version of the agent');
          const answer = options.variables === undefined ? undefined : attach(options.variables);
          const installed = Symbol.for('looplag.requests');
          let follows = globalThis[installed] === true;
          if (options.requests && !follows) {
            const memory = board();
            if (memory !== undefined) {
              follow(memory);
              Object.defineProperty(globalThis, installed, { value: true });
              follows = true;
            }
          }
          return JSON.stringify({ answer, follows });

          function follow(memory) {
            const { createHook, executionAsyncId, executionAsyncResource } = require('node:async_hooks');
            const channels = require('node:diagnostics_channel');
            const CURRENT = 0, TURNS = 1, WANTED = 2, HEAD = 64, SLOTS = 32, SLOT = 512, TEXT = 504, METHOD = 32;
            const words = new Int32Array(memory);
            const bytes = require('node:buffer').Buffer.from(memory);
            const key = Symbol('looplag.request');
            const lasting = new Set(['TCPWRAP', 'TCPSERVERWRAP', 'PIPEWRAP', 'PIPESERVERWRAP', 'TLSWRAP', 'UDPWRAP',
              'TTYWRAP', 'JSSTREAM', 'MESSAGEPORT', 'WORKER', 'FSEVENTWRAP', 'STATWATCHER', 'SIGNALWRAP',
              'HTTP2SESSION']);
            const owners = new Array(SLOTS).fill(undefined);
            let next = 0;
            let current;
            let depth = 0;
            const ids = [];
            const outer = [];

            function write(request) {
              const slot = next;
              next = (next + 1) % SLOTS;
              owners[slot] = request;
              request.slot = slot;
              const at = HEAD + slot * SLOT;
              Atomics.add(words, at >> 2, 1);
              const { url, method } = request.message;
              let end = url.length;
              for (const mark of ['?', '#']) {
                const found = url.indexOf(mark);
                if (found >= 0 && found < end) end = found;
              }
              const first = bytes.write(method, at + 8, METHOD, 'latin1');
              const rest = bytes.write(end < url.length ? url.slice(0, end) : url, at + 8 + first, TEXT - first, 'utf8');
              words[(at >> 2) + 1] = first | rest << 16;
              Atomics.add(words, at >> 2, 1);
            }

            function show(request) {
              current = request;
              words[TURNS] = words[TURNS] + 1 | 0;
              if (request === undefined) {
                words[CURRENT] = 0;
              } else {
                if (owners[request.slot] !== request) write(request);
                words[CURRENT] = request.slot + 1;
              }
            }

            const hook = createHook({
              init(id, type, trigger, resource) {
                if (current === undefined || current.isOver || type !== 'PROMISE' && lasting.has(type)) return;
                resource[key] = current;
              },
              before(id) {
                const resource = executionAsyncResource();
                let request = resource[key];
                // A connection's parser goes on to the next request.
                if (request !== undefined && (request.isOver || request.parser === id && request.message.complete)) {
                  resource[key] = request = undefined;
                }
                ids[depth] = id;
                outer[depth] = current;
                depth += 1;
                if (request !== current) show(request);
              },
              after(id) {
                let at = depth - 1;
                while (at >= 0 && ids[at] !== id) at -= 1;
                if (at < 0) {
                  // Begun before we were there.
                  depth = 0;
                  if (current !== undefined) show(undefined);
                  return;
                }
                const request = outer[at];
                while (depth > at) outer[--depth] = undefined;
                if (request !== current) show(request !== undefined && request.isOver ? undefined : request);
              },
            });

            let isOn = false;
            channels.subscribe('http.server.request.start', ({ request: message, response }) => {
              if (words[WANTED] === 0) {
                if (isOn) {
                  isOn = false;
                  hook.disable();
                  depth = 0;
                  show(undefined);
                }
                return;
              }
              if (!isOn) {
                isOn = true;
                depth = 0;
                hook.enable();
              }
              const request = { message, parser: executionAsyncId(), slot: 0, isOver: false };
              executionAsyncResource()[key] = request;
              response[key] = request;
              show(request);
            });
            channels.subscribe('http.server.response.finish', ({ response }) => {
              const request = response[key];
              if (request !== undefined) request.isOver = true;
            });
          }
        }
        """#
}
