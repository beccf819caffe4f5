/// Clients: one connection that asks and waits, and a load of a fixed number of requests over several of them.
///
/// Plain sockets kept alive, driven from the bench's one thread: while the server has one core the load needs at most
/// the other. Every read and write has a deadline. One request is under way on a connection at a time.

import Glibc

final class Connection {
    let descriptor: Int32
    private let speech: Speech
    private var received: [UInt8] = []

    init(_ server: Server) throws(BenchError) {
        speech = server.speech
        descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw .system("a socket", errno) }
        var one: Int32 = 1
        setsockopt(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, &one, socklen_t(MemoryLayout<Int32>.size))
        var limit = timeval(tv_sec: 5, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = server.port.bigEndian
        address.sin_addr.s_addr = INADDR_LOOPBACK.bigEndian
        let status = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        // The descriptor is closed by deinit, also when this throws.
        guard status == 0 else { throw .system("connecting to port \(server.port)", errno) }
    }

    deinit { if descriptor >= 0 { close(descriptor) } }

    func send(_ request: [UInt8]) throws(BenchError) {
        received.removeAll(keepingCapacity: true)
        guard Glibc.send(descriptor, request, request.count, Int32(MSG_NOSIGNAL)) == request.count else {
            throw .system("a request", errno)
        }
    }

    /// Takes what has arrived, which poll said there is; true when the answer is complete.
    func receive(_ buffer: inout [UInt8]) throws(BenchError) -> Bool {
        let count = recv(descriptor, &buffer, buffer.count, Int32(MSG_DONTWAIT))
        if count < 0, errno == EAGAIN || errno == EINTR { return false }
        guard count > 0 else { throw BenchError("the server closed the connection") }
        received.append(contentsOf: buffer[..<count])
        switch speech {
        case .lines: return received.last == UInt8(ascii: "\n")
        case .http: return received.count >= httpLength ?? .max
        }
    }

    func ask(_ wish: Wish, within seconds: Double) throws(BenchError) -> Answer {
        try send(speech.request(wish))
        return try answer(within: seconds) {}
    }

    /// Waits for the answer, doing something else every few milliseconds.
    func answer(within seconds: Double, meanwhile: () throws(BenchError) -> Void) throws(BenchError) -> Answer {
        let deadline = Deadline(seconds: seconds)
        var buffer = [UInt8](repeating: 0, count: 4096)
        while !deadline.hasPassed {
            var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            if poll(&entry, 1, 20) > 0, try receive(&buffer) { return Answer(received) }
            try meanwhile()
        }
        throw BenchError("no answer within \(rounded(seconds, digits: 0)) s")
    }

    /// Head and body together, once the head is complete.
    private var httpLength: Int? {
        let text = String(decoding: received, as: UTF8.self)
        guard let end = text.utf8.firstIndex(ofPair: "\r\n\r\n") else { return nil }
        for line in text[..<end].split(separator: "\r\n") where line.lowercased().hasPrefix("content-length:") {
            guard let length = Int(line.dropFirst(15).filter { $0 != " " }) else { return nil }
            return text.utf8.distance(from: text.startIndex, to: end) + 4 + length
        }
        return nil
    }
}

extension String.UTF8View {
    /// Where a short ASCII sequence begins.
    fileprivate func firstIndex(ofPair sequence: String) -> String.Index? {
        let wanted = Array(sequence.utf8)
        var index = startIndex
        while index < endIndex {
            if self[index...].starts(with: wanted) { return index }
            formIndex(after: &index)
        }
        return nil
    }
}

/// What a handler said of itself: `done NANOSECONDS`, or `done` and words.
struct Answer {
    var blocked: Double?
    var told: String?

    init(_ bytes: [UInt8]) {
        let words = String(decoding: bytes, as: UTF8.self).split(whereSeparator: \.isWhitespace)
        guard let i = words.lastIndex(of: "done"), i + 1 < words.count else { return }
        blocked = Double(words[i + 1])
        told = words[(i + 1)...].joined(separator: " ")
    }
}

struct Load {
    private let connections: [Connection]
    private let request: [UInt8]

    init(_ server: Server, connections count: Int) throws(BenchError) {
        var connections: [Connection] = []
        for _ in 0..<count { connections.append(try Connection(server)) }
        self.connections = connections
        request = server.speech.request(.ok)
    }

    /// Sends a fixed number of requests and returns when all are answered.
    func run(requests: Int, within seconds: Double) throws(BenchError) {
        let deadline = Deadline(seconds: seconds)
        var buffer = [UInt8](repeating: 0, count: 4096)
        var left = requests
        var open = 0
        for connection in connections where left > 0 {
            try connection.send(request)
            left -= 1
            open += 1
        }
        var entries = connections.map { pollfd(fd: $0.descriptor, events: Int16(POLLIN), revents: 0) }
        while open > 0 {
            guard !deadline.hasPassed else {
                throw BenchError("\(requests) requests took more than \(rounded(seconds, digits: 0)) s")
            }
            guard poll(&entries, UInt(entries.count), 100) > 0 else { continue }
            for i in entries.indices where entries[i].revents != 0 {
                guard try connections[i].receive(&buffer) else { continue }
                if left > 0 {
                    try connections[i].send(request)
                    left -= 1
                } else {
                    entries[i].fd = -1
                    open -= 1
                }
            }
        }
    }
}
