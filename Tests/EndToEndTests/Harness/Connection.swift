/// Plain sockets to a host: one blocking connection, with a time-out on every call.

import Foundation
import Glibc
import LoopLagModel
import Synchronization

struct ConnectionFailed: Error, CustomStringConvertible {
    var description: String
}

enum Address: Sendable {
    case port(Int)
    case socket(String)
}

final class Connection {
    private let descriptor: Int32
    private var received: [UInt8] = []

    init(_ address: Address, timeout: Duration = .seconds(20)) throws {
        switch address {
        case .port(let port):
            descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
            var name = sockaddr_in()
            name.sin_family = sa_family_t(AF_INET)
            name.sin_port = in_port_t(UInt16(clamping: port)).bigEndian
            name.sin_addr.s_addr = in_addr_t(INADDR_LOOPBACK).bigEndian
            try Self.connect(descriptor, name)
        case .socket(let path):
            descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
            var name = sockaddr_un()
            name.sun_family = sa_family_t(AF_UNIX)
            let bytes = Array(path.utf8)
            let room = MemoryLayout.size(ofValue: name.sun_path) - 1
            guard bytes.count <= room else { throw ConnectionFailed(description: "\(path) is too long a name") }
            withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: bytes) }
            try Self.connect(descriptor, name)
        }
        let (seconds, attoseconds) = timeout.components
        var limit = timeval(tv_sec: Int(seconds), tv_usec: Int(attoseconds / 1_000_000_000_000))
        for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
            setsockopt(descriptor, SOL_SOCKET, option, &limit, socklen_t(MemoryLayout<timeval>.size))
        }
    }

    deinit { close(descriptor) }

    private static func connect<Name>(_ descriptor: Int32, _ name: Name) throws {
        let status = withUnsafeBytes(of: name) { bytes in
            guard let address = bytes.baseAddress?.assumingMemoryBound(to: sockaddr.self) else { return Int32(-1) }
            return Glibc.connect(descriptor, address, socklen_t(bytes.count))
        }
        guard status == 0 else {
            let reason = String(cString: strerror(errno))
            close(descriptor)
            throw ConnectionFailed(description: "cannot connect: \(reason)")
        }
    }

    func send(_ text: String) throws {
        var bytes = Array(text.utf8)[...]
        while !bytes.isEmpty {
            let count = bytes.withUnsafeBytes { Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
            guard count > 0 else { throw ConnectionFailed(description: "cannot send: errno \(errno)") }
            bytes = bytes.dropFirst(count)
        }
    }

    /// The next line, without its end.
    func readLine() throws -> String {
        while true {
            if let end = received.firstIndex(of: UInt8(ascii: "\n")) {
                let line = String(decoding: received[..<end], as: UTF8.self)
                received.removeFirst(end + 1)
                return line.hasSuffix("\r\n") || line.hasSuffix("\r") ? String(line.dropLast()) : line
            }
            guard try receive() else { throw ConnectionFailed(description: "the host closed the connection") }
        }
    }

    func readBytes(_ count: Int) throws -> String {
        while received.count < count {
            guard try receive() else { throw ConnectionFailed(description: "the host closed the connection") }
        }
        defer { received.removeFirst(count) }
        return String(decoding: received[..<count], as: UTF8.self)
    }

    /// Until the peer closes.
    func readToEnd() throws -> String {
        while try receive() {}
        defer { received.removeAll() }
        return String(decoding: received, as: UTF8.self)
    }

    /// The body of an HTTP GET on a connection that stays open.
    func getKeptAlive(_ path: String) throws -> String {
        try send("GET \(path) HTTP/1.1\r\nHost: localhost\r\n\r\n")
        var length = 0
        while true {
            let line = try readLine()
            if line.isEmpty { return try readBytes(length) }
            let parts = line.split(separator: ":", maxSplits: 1)
            if parts.count == 2, parts[0].lowercased() == "content-length" {
                length = Int(parts[1].trimmingCharacters(in: .whitespaces)) ?? 0
            }
        }
    }

    private func receive() throws -> Bool {
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = recv(descriptor, &buffer, buffer.count, 0)
        guard count >= 0 else { throw ConnectionFailed(description: "no answer: errno \(errno)") }
        received += buffer[..<count]
        return count > 0
    }
}

/// What a handler says of itself: `done NANOSECONDS`, and `interrupted` when a signal cut its sleep short.
struct HandlerAnswer {
    var duration: Duration
    var wasInterrupted: Bool

    init(_ text: String) throws {
        let words = text.split(whereSeparator: \.isWhitespace)
        guard words.count >= 2, words[0] == "done", let nanoseconds = Int64(words[1]) else {
            throw ConnectionFailed(description: "the host answered '\(text)'")
        }
        duration = .nanoseconds(nanoseconds)
        wasInterrupted = words.last == "interrupted"
    }
}

enum Client {
    /// One command of the line protocol on a connection of its own.
    static func ask(_ command: String, of address: Address, timeout: Duration = .seconds(20)) throws -> HandlerAnswer {
        let connection = try Connection(address, timeout: timeout)
        try connection.send(command + "\n")
        return try HandlerAnswer(connection.readLine())
    }

    /// The body of an HTTP GET.
    static func get(_ path: String, of address: Address, timeout: Duration = .seconds(20)) throws -> String {
        let connection = try Connection(address, timeout: timeout)
        try connection.send("GET \(path) HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        let answer = try connection.readToEnd()
        guard let headEnd = answer.range(of: "\r\n\r\n"), let status = answer.split(separator: " ").dropFirst().first
        else { throw ConnectionFailed(description: "not HTTP: \(answer.prefix(200))") }
        guard status == "200" else { throw ConnectionFailed(description: "\(path): status \(status)") }
        let body = String(answer[headEnd.upperBound...])
        let isChunked = answer[..<headEnd.lowerBound].lowercased().contains("transfer-encoding: chunked")
        return isChunked ? unchunked(body) : body
    }

    /// Sends all requests at once, each on a connection of its own; how long each took, shortest first.
    static func timeTogether(_ paths: [String], of address: Address) throws -> [Duration] {
        let results = Mutex<[Result<Duration, any Error>]>([])
        for path in paths {
            let thread = Thread {
                let start = MonotonicTime.now()
                let result = Result { _ = try get(path, of: address, timeout: .seconds(40)) }
                    .map { MonotonicTime.now().since(start) }
                results.withLock { $0.append(result) }
            }
            thread.stackSize = 256 << 10
            thread.start()
        }
        let all = try eventually("\(paths.count) answers", within: .seconds(60)) {
            results.withLock { $0.count == paths.count ? $0 : nil }
        }
        return try all.map { try $0.get() }.sorted()
    }

    static func getAnswer(_ path: String, of address: Address) throws -> HandlerAnswer {
        try HandlerAnswer(get(path, of: address))
    }

    private static func unchunked(_ body: String) -> String {
        var rest = body[...]
        var text = ""
        while let lineEnd = rest.range(of: "\r\n"), let size = Int(rest[..<lineEnd.lowerBound], radix: 16), size > 0 {
            let chunk = rest[lineEnd.upperBound...].prefix(size)
            text += chunk
            // One Character: CR LF.
            rest = rest[chunk.endIndex...].dropFirst()
        }
        return text
    }
}
