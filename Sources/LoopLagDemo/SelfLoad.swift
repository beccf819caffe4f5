/// The demo's own traffic, so that there is something to see without a second terminal: mostly healthy requests, and
/// every second one that blocks its loop in a different way.
///
/// Called by: Demo with --load. Thread: one plain thread with one blocking connection to the raw server on loopback.
/// Refuses: any other address, and more than one request at a time: its rate is bounded by its own pauses.

import Glibc

enum SelfLoad {
    private static let misdeeds = ["sleep 150", "spin 200", "lock 120", "execute-spin 250", "execute-sleep 300"]
    private static let healthyPerMisdeed = 9

    /// Sends requests for `seconds`, then asks this process to end as a person would, with SIGTERM.
    static func start(port: Int, seconds: UInt32) {
        let plan = Plan(port: UInt16(truncatingIfNeeded: port), seconds: seconds)
        let reference = Unmanaged.passRetained(plan)
        var thread = pthread_t()
        let status = pthread_create(
            &thread, nil,
            { context in
                guard let context else { return nil }
                let plan = Unmanaged<Plan>.fromOpaque(context).takeRetainedValue()
                SelfLoad.run(plan)
                return nil
            }, reference.toOpaque())
        guard status == 0 else {
            reference.release()
            return
        }
        pthread_detach(thread)
    }

    private final class Plan: Sendable {
        let port: UInt16
        let seconds: UInt32

        init(port: UInt16, seconds: UInt32) {
            self.port = port
            self.seconds = seconds
        }
    }

    private static func run(_ plan: Plan) {
        let end = time(nil) + Int(plan.seconds)
        if let connection = connect(to: plan.port) {
            var turn = 0
            while time(nil) < end {
                let isMisdeed = turn % (healthyPerMisdeed + 1) == healthyPerMisdeed
                let misdeed = misdeeds[turn / (healthyPerMisdeed + 1) % misdeeds.count]
                guard exchange(isMisdeed ? misdeed : "ok", on: connection) else { break }
                usleep(100_000)
                turn += 1
            }
            close(connection)
        }
        kill(getpid(), SIGTERM)
    }

    private static func connect(to port: UInt16) -> Int32? {
        let connection = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        guard connection >= 0 else { return nil }
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = INADDR_LOOPBACK.bigEndian
        let status = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(connection, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard status == 0 else {
            close(connection)
            return nil
        }
        return connection
    }

    /// One line there, one line back.
    private static func exchange(_ line: String, on connection: Int32) -> Bool {
        let request = Array((line + "\n").utf8)
        guard send(connection, request, request.count, Int32(MSG_NOSIGNAL)) == request.count else {
            return false
        }
        var answer = [UInt8](repeating: 0, count: 256)
        repeat {
            let count = recv(connection, &answer, answer.count, 0)
            guard count > 0 else { return false }
            if answer[..<count].contains(UInt8(ascii: "\n")) { return true }
        } while true
    }
}
