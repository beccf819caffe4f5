/// Attaches by the dozen to every kind of host under load, each answer checked. LOOPLAG_STRESS_ROUNDS sets how often each
/// is attached (10 in a usual run); every tenth time the host is a fresh process, so that the object is loaded anew.

import Foundation
import Glibc
import LoopLagModel
import Synchronization
import Testing

/// Clients that ask as fast as they are answered, and hold every answer against the right one.
private final class CheckedLoad: Sendable {
    enum Speech: Sendable { case lines, redis, http }

    private let isEnding = Atomic(false)
    private let running: Mutex<Int>
    private let served = Atomic(0)
    private let failure = Mutex<String?>(nil)

    init(_ address: Address, _ speech: Speech, clients: Int = 2) {
        running = Mutex(clients)
        let address = address
        for _ in 0..<clients {
            Thread { [self] in
                do {
                    while !isEnding.load(ordering: .acquiring) { try Self.talk(address, speech, self) }
                } catch {
                    failure.withLock { $0 = $0 ?? "\(error)" }
                }
                running.withLock { $0 -= 1 }
            }.start()
        }
    }

    /// Some hundred requests on one connection: nginx closes it after a thousand.
    private static func talk(_ address: Address, _ speech: Speech, _ load: CheckedLoad) throws {
        let connection = try Connection(address)
        for _ in 0..<400 where !load.isEnding.load(ordering: .acquiring) {
            let answer: String
            let right: String
            switch speech {
            case .lines:
                try connection.send("ok\n")
                (answer, right) = (try connection.readLine(), "done")
            case .redis:
                try connection.send("PING\r\n")
                (answer, right) = (try connection.readLine(), "+PONG")
            case .http: (answer, right) = (try connection.getKeptAlive("/ok"), "done")
            }
            guard answer.hasPrefix(right) else { throw ConnectionFailed(description: "answered '\(answer)'") }
            load.served.wrappingAdd(1, ordering: .relaxed)
            poll(nil, 0, 1)
        }
    }

    var count: Int { served.load(ordering: .relaxed) }
    var trouble: String? { failure.withLock { $0 } }

    func end() {
        isEnding.store(true, ordering: .releasing)
        _ = try? eventually("the load to end", within: .seconds(30)) { running.withLock { $0 } == 0 ? true : nil }
    }
}

extension EndToEnd {
    @Suite("Attach under load, many times")
    struct AttachStressTests {
        enum Kind: String, CaseIterable, Sendable {
            case redis, nginx, node, asyncio, uvloop, swift
        }

        static let rounds =
            ProcessInfo.processInfo.environment["LOOPLAG_STRESS_ROUNDS"].flatMap { Int($0) } ?? 10

        private func start(_ kind: Kind) throws -> (host: Host, target: Int32, speech: CheckedLoad.Speech) {
            switch kind {
            case .redis:
                let host = try Host.redis(environment: [:])
                return (host, host.pid, .redis)
            case .nginx:
                let host = try Host.nginx(environment: [:])
                return (host, try host.worker(), .http)
            case .node:
                let host = try Host.node(environment: [:])
                return (host, host.pid, .http)
            case .asyncio, .uvloop:
                let host = try Host.uvicorn(loop: kind.rawValue, environment: [:])
                return (host, host.pid, .http)
            case .swift:
                let host = try Host.demo(["--raw-only", "--no-agent"])
                return (host, host.pid, .lines)
            }
        }

        @Test("Under load every attach succeeds, no request is lost, and the stop is short", arguments: Kind.allCases)
        func underLoad(kind: Kind) throws {
            var stops: [Duration] = []
            var requests = 0
            var left = Self.rounds
            while left > 0 {
                let (host, target, speech) = try start(kind)
                defer { host.end() }
                let load = CheckedLoad(host.address, speech)
                for _ in 0..<min(10, left) {
                    let before = load.count
                    let attached = try Attach.run(target, ["--verbose", "--no-children"])
                    #expect(attached.status == .exited(0), "\(kind): \(attached.errors)")
                    stops.append(try Attach.stopped(attached.errors))
                    _ = try eventually("answers") { load.count > before + 10 || load.trouble != nil ? true : nil }
                    #expect(load.trouble == nil, "\(kind)")
                    let detached = try Attach.detach(target)
                    #expect(detached.status == .exited(0), "\(kind): \(detached.errors)")
                    #expect(host.child.isRunning, "\(kind): \(host.child.errors.text)")
                    left -= 1
                }
                load.end()
                #expect(load.trouble == nil, "\(kind)")
                requests += load.count
            }
            stops.sort()
            let median = stops[stops.count / 2]
            let high = stops[min(stops.count - 1, stops.count * 99 / 100)]
            figure(
                "\(kind.rawValue): \(stops.count) attaches under load, \(requests) answers, stopped \(median) in the"
                    + " median, p99 \(high)")
        }
    }
}
