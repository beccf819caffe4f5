/// The agent's object as it goes into a target: the bytes that the loader needs, and the offset of its entry.
///
/// Read once per command from the object that AgentObject found. Debug sections stay behind: what is written while the
/// target's thread is stopped is to be small.

import Glibc

public struct AgentImage: Sendable {
    /// The function that the injected thread calls, and the object's word about itself.
    static let entryName = "lag_agent_attach"

    let bytes: [UInt8]
    let entry: UInt64

    public init(_ object: AgentObject) throws(AttachError) {
        func unusable(_ reason: String) -> AttachError { .agentUnusable(path: object.path, reason: reason) }
        let file: [UInt8]
        do throws(FileError) {
            file = try ProcFile.read(object.path, limit: 64 << 20)
        } catch {
            throw unusable(error.reason)
        }
        func little(_ at: Int, _ width: Int) -> UInt64 { RemoteObject.little(file, at, width) }
        func section(_ type: UInt64) -> (offset: Int, size: Int, link: Int)? {
            let table = Int(clamping: little(40, 8))
            let count = Int(little(60, 2))
            for i in 0..<count {
                let at = table &+ i * 64
                guard little(at + 4, 4) == type else { continue }
                return (Int(clamping: little(at + 24, 8)), Int(clamping: little(at + 32, 8)), Int(little(at + 40, 4)))
            }
            return nil
        }
        // SHT_DYNSYM, and its strings.
        guard file.starts(with: [0x7f, 0x45, 0x4c, 0x46, 2, 1]), let symbols = section(11) else {
            throw unusable("it has no symbols")
        }
        let stringsAt = Int(clamping: little(Int(clamping: little(40, 8)) &+ symbols.link * 64 + 24, 8))
        let wanted = Array(Self.entryName.utf8) + [0]
        var entry: UInt64?
        for at in stride(from: symbols.offset, to: symbols.offset &+ min(symbols.size, file.count), by: 24) {
            let name = stringsAt &+ Int(little(at, 4))
            guard name >= 0, name &+ wanted.count <= file.count, little(at + 6, 2) != 0,
                file[name..<(name + wanted.count)].elementsEqual(wanted)
            else { continue }
            entry = little(at + 8, 8)
        }
        guard let entry else { throw unusable("it cannot be attached: it does not export \(Self.entryName)") }
        self.entry = entry
        // Up to the end of the last loaded segment.
        var end: UInt64 = 0
        for i in 0..<Int(little(56, 2)) {
            let at = Int(clamping: little(32, 8)) &+ i * 56
            if little(at, 4) == 1 { end = max(end, little(at + 8, 8) &+ little(at + 32, 8)) }
        }
        guard end > 0, end <= UInt64(file.count) else { throw unusable("it is cut short") }
        bytes = Array(file[..<Int(end)])
    }
}
