/// Compares file, line and inline chain of many addresses of one binary with llvm-symbolizer. Tests only.

import Foundation
import Testing

@testable import LoopLagSymbols

struct SymbolizerOracle {
    struct Difference: CustomStringConvertible {
        var address: UInt64
        var ours: [String]
        var theirs: [String]
        var description: String { "\(String(address, radix: 16)): \(ours) | \(theirs)" }
    }

    var compared = 0
    var inlined = 0
    var differences: [Difference] = []

    /// The toolchain's own, else the system's; nil when there is none.
    static let tool: String? = {
        for tool in ["llvm-symbolizer", "llvm-symbolizer-14"]
        where (try? run("sh", ["-c", "command -v \(tool)"]))?.isEmpty == false { return tool }
        return nil
    }()

    /// - Parameter count: addresses, spread evenly over the functions of `.text`.
    init(binary: String, tool: String, count: Int) throws {
        let image = try ElfImage(path: binary)
        let info = try #require(DebugInfo(image: image))
        let frameTable = FrameTable(image: image)
        let text = try #require(image.section(named: ".text"))
        var addresses: [UInt64] = []
        var state: UInt64 = 88_172_645_463_325_252
        while addresses.count < count {
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            let address = text.address + state % text.size
            // Between functions there is nothing to compare.
            if frameTable.entry(covering: address) != nil, !info.frames(at: address).isEmpty {
                addresses.append(address)
            }
        }
        let input = addresses.map { "0x" + String($0, radix: 16) }.joined(separator: "\n") + "\n"
        let folder = FileManager.default.temporaryDirectory
        let file = folder.appendingPathComponent("looplag-addresses-\(UInt64.random(in: 0...UInt64.max))")
        try input.write(to: file, atomically: true, encoding: .utf8)
        defer { try? FileManager.default.removeItem(at: file) }
        let output = try run(
            "sh", ["-c", "\(tool) --obj='\(binary)' --no-demangle --functions=linkage --inlines < '\(file.path)'"])
        let blocks = output.components(separatedBy: "\n\n")
        for (address, block) in zip(addresses, blocks) {
            let lines = block.split(separator: "\n").map(String.init)
            var theirs: [String] = []
            for pair in stride(from: 0, to: lines.count - 1, by: 2) {
                let place = lines[pair + 1].split(separator: ":", omittingEmptySubsequences: false)
                guard place.count >= 3 else { continue }
                let path = place.dropLast(2).joined(separator: ":")
                let name = path.split(separator: "/").last.map(String.init) ?? path
                theirs.append(Self.text(lines[pair], name, Int(place[place.count - 2])))
            }
            let ours = info.frames(at: address).map {
                Self.text($0.function ?? "??", $0.file?.split(separator: "/").last.map(String.init), $0.line)
            }
            compared += 1
            if ours.count > 1 { inlined += 1 }
            if ours != theirs { differences.append(Difference(address: address, ours: ours, theirs: theirs)) }
        }
    }

    /// Line 0 and `<compiler-generated>` mean unknown on their side, nil on ours.
    private static func text(_ function: String, _ file: String?, _ line: Int?) -> String {
        let isReal = file != nil && file != "<compiler-generated>" && file != "??" && file != "<stdin>"
        return "\(function) \(isReal ? file ?? "?" : "?"):\(isReal ? line ?? 0 : 0)"
    }
}
