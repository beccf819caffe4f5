/// The demo's own traffic, so that there is something to see without a second terminal: a steady trickle of healthy
/// requests, and beside it one misdeed after the other.
///
/// Called by: Demo with --load or --load-endless. Thread: plain threads with blocking connections to the HTTP server on
/// loopback; they end with the process.
/// Refuses: any other address, and to be fast: at most 20 healthy requests and one round of misdeeds a second, and never
/// a second one of either before the first was answered.

import Glibc

enum SelfLoad {
    private static let healthyPause: UInt32 = 50_000
    private static let misdeedPause: UInt32 = 900_000
    /// Blocked pool threads only hurt when they are as many as the pool has.
    private static let crowd = ["report": 4]

    /// Sends requests until the process ends; after `seconds` asks it to, as a person would, with SIGTERM.
    static func start(port: Int, seconds: UInt32?) {
        let port = UInt16(truncatingIfNeeded: port)
        let healthy = ShopRoute.all.filter { $0.misdeed == nil }.map(\.path)
        let misdeeds = ShopRoute.all.filter { $0.misdeed != nil }.map(\.path)
        _ = PlainThread.start { repeatForever(healthy, port: port, pause: healthyPause) }
        _ = PlainThread.start { repeatForever(misdeeds, port: port, pause: misdeedPause) }
        guard let seconds else { return }
        _ = PlainThread.start {
            let end = time(nil) + Int(seconds)
            while time(nil) < end { usleep(100_000) }
            kill(getpid(), SIGTERM)
        }
    }

    private static func repeatForever(_ paths: [String], port: UInt16, pause: UInt32) {
        var turn = 0
        while true {
            let path = paths[turn % paths.count]
            // A connection each, so that the loops take turns.
            let connections = (0..<(crowd[path] ?? 1)).compactMap { _ in connect(to: port) }
            for connection in connections { ask(for: path, on: connection) }
            for connection in connections {
                awaitEnd(of: connection)
                close(connection)
            }
            usleep(pause)
            turn += 1
        }
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

    private static func ask(for path: String, on connection: Int32) {
        let request = Array("GET /\(path) HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".utf8)
        _ = send(connection, request, request.count, Int32(MSG_NOSIGNAL))
    }

    private static func awaitEnd(of connection: Int32) {
        var answer = [UInt8](repeating: 0, count: 1024)
        while recv(connection, &answer, answer.count, 0) > 0 {}
    }
}
