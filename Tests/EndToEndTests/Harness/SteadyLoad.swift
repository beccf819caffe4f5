/// One request after another with the same pause between them, from a thread of its own, until told to end.

import Foundation
import LoopLagModel
import Synchronization

final class SteadyLoad: Sendable {
    private let isEnding = Atomic(false)
    private let hasEnded = Atomic(false)

    /// Returns after the first answer.
    init(_ address: Address, path: String, pause: Duration) throws {
        let connection = try Connection(address)
        _ = try connection.getKeptAlive(path)
        // Handed over: only the thread touches the connection from here on.
        nonisolated(unsafe) let handedOver = connection
        let thread = Thread { [self] in
            while !isEnding.load(ordering: .acquiring), (try? handedOver.getKeptAlive(path)) != nil { letPass(pause) }
            hasEnded.store(true, ordering: .releasing)
        }
        thread.start()
    }

    func end() {
        isEnding.store(true, ordering: .releasing)
        _ = try? eventually("the load to end") { hasEnded.load(ordering: .acquiring) ? true : nil }
    }
}
