/// The smallest file that AgentObject takes for an agent: an ELF object without code that exports its layout.

import CLoopLagLayout

enum SmallAgent {
    static func object(layout: UInt32 = UInt32(LAG_ABI_VERSION)) -> [UInt8] {
        func little(_ value: Int, _ width: Int) -> [UInt8] {
            (0..<width).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
        }
        let names = Array("\0.dynsym\0.dynstr\0.rodata\0.shstrtab\0".utf8)
        let strings = Array("\0lag_agent_layout\0".utf8)
        // One symbol after the null one: its name, global data in section 3, its address and size.
        let symbols =
            [UInt8](repeating: 0, count: 24) + little(1, 4) + [0x11, 0] + little(3, 2) + little(0x1000, 8)
            + little(4, 8)
        let contents = [symbols, strings, little(Int(layout), 4), names]
        var head: [UInt8] = [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1] + [UInt8](repeating: 0, count: 9)
        var body: [UInt8] = []
        var table = [UInt8](repeating: 0, count: 64)
        let headers = [(1, 11, 0, 2), (9, 3, 0, 0), (17, 1, 0x1000, 0), (25, 3, 0, 0)]
        for ((name, type, address, link), content) in zip(headers, contents) {
            let place = 64 + body.count
            body += content
            table += little(name, 4) + little(type, 4) + little(0, 8) + little(address, 8) + little(place, 8)
            table += little(content.count, 8) + little(link, 4) + little(0, 4) + little(1, 8) + little(0, 8)
        }
        // ET_DYN for EM_X86_64, the section headers behind everything else, their names in the last one.
        head += little(3, 2) + little(62, 2) + little(1, 4) + little(0, 16) + little(64 + body.count, 8) + little(0, 4)
        head += little(64, 2) + little(0, 4) + little(64, 2) + little(5, 2) + little(4, 2)
        return head + body + table
    }
}
