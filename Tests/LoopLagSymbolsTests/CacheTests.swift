import Foundation
import LoopLagModel
import Testing

@testable import LoopLagSymbols

@Suite struct CacheTests {
    private static let frames = [
        SymbolFrame(function: "inner(x:)", isSwift: true, file: "/a/b.swift", line: 3, column: 4, isInlined: true),
        SymbolFrame(function: "outer", isSwift: false, file: nil, line: nil, column: nil, isInlined: false),
    ]

    @Test("What one run learnt the next one reads, unless the debug file is another one")
    func roundTrip() throws {
        let workshop = try Workshop()
        let cache = SymbolCache(directory: workshop.folder.path)
        let entries: [UInt64: [SymbolFrame]] = [0x1000: Self.frames, .max: [Self.frames[1]]]
        cache.save("key", source: "self", entries: entries)
        #expect(cache.load("key", source: "self") == entries)
        #expect(cache.load("key", source: "debug 1 2 3 4").isEmpty)
        #expect(cache.load("other", source: "self").isEmpty)
        let names = try FileManager.default.contentsOfDirectory(atPath: workshop.folder.path + "/symbols")
        #expect(names == ["key"])
    }

    @Test("A damaged cache file is no cache file, and no folder is no cache")
    func damage() throws {
        let text = SymbolCache.text(source: "self", entries: [0x1000: Self.frames, 0x2000: Self.frames])
        #expect(SymbolCache.parse(text, source: "self").count == 2)
        for count in 0..<text.count {
            _ = SymbolCache.parse(String(text.prefix(count)), source: "self")
        }
        #expect(
            SymbolCache.parse(
                text.replacingOccurrences(of: "looplag-symbols 1", with: "looplag-symbols 0"), source: "self"
            ).isEmpty)
        #expect(SymbolCache.parse("", source: "self").isEmpty)
        let none = SymbolCache(directory: "/proc/nonexistent")
        none.save("key", source: "self", entries: [1: Self.frames])
        #expect(none.load("key", source: "self").isEmpty)
        #expect(SymbolCache(directory: "relative").load("key", source: "self").isEmpty)
    }

    @Test("A cache folder that others may write to, or a link in its place, is not used")
    func foreignFolder() throws {
        let workshop = try Workshop()
        let folder = workshop.folder.appendingPathComponent("symbols").path
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: false)
        chmod(folder, 0o777)
        SymbolCache(directory: workshop.folder.path).save("key", source: "self", entries: [1: Self.frames])
        #expect(try FileManager.default.contentsOfDirectory(atPath: folder).isEmpty)
        rmdir(folder)
        let elsewhere = workshop.folder.appendingPathComponent("elsewhere").path
        try FileManager.default.createDirectory(atPath: elsewhere, withIntermediateDirectories: false)
        symlink(elsewhere, folder)
        SymbolCache(directory: workshop.folder.path).save("key", source: "self", entries: [1: Self.frames])
        #expect(try FileManager.default.contentsOfDirectory(atPath: elsewhere).isEmpty)
    }

    @Test("The cache stays within its bounds: the files written longest ago go first")
    func eviction() throws {
        let workshop = try Workshop()
        let cache = SymbolCache(directory: workshop.folder.path)
        let long = String(repeating: "n", count: 3000)
        let frame = SymbolFrame(function: long, isSwift: false, file: nil, line: nil, column: nil, isInlined: false)
        let entries = Dictionary(uniqueKeysWithValues: (0..<1000).map { (UInt64($0), [frame]) })
        for i in 0..<14 {
            cache.save("key\(i)", source: "self", entries: entries)
            var times = [timeval(tv_sec: 1000 + i, tv_usec: 0), timeval(tv_sec: 1000 + i, tv_usec: 0)]
            utimes(workshop.folder.path + "/symbols/key\(i)", &times)
        }
        #expect(cache.load("key0", source: "self").isEmpty)
        #expect(cache.load("key13", source: "self").count == 1000)
        let names = try FileManager.default.contentsOfDirectory(atPath: workshop.folder.path + "/symbols")
        #expect(names.count == 10 || names.count == 11)
    }

    @Test("A decoder answers from the cache of the run before, and writes it while it runs")
    func acrossRuns() throws {
        let workshop = try Workshop()
        let program = try workshop.compile("moments.c", ["cc", "-O1", "-g", "-w"])
        let image = try ElfImage(path: program)
        let table = SymbolTable(image: image)
        let entry = try #require(image.section(named: ".text")).address + 16
        let record = ModuleRecord(
            path: program, buildID: image.buildID, loadBias: 0, start: 0, end: 1 << 30, isDeleted: false,
            isVDSO: false, isMapped: true, device: image.device, inode: image.inode)
        let directory = workshop.folder.appendingPathComponent("cache").path
        do {
            let decoder = StackDecoder(identity: nil, modules: [record], cacheDirectory: directory)
            #expect(decoder.frames(at: entry, isReturnAddress: false).last?.function == table.symbol(at: entry)?.name)
        }
        let files = try FileManager.default.contentsOfDirectory(atPath: directory + "/symbols")
        let file = try #require(files.first)
        #expect(file.hasPrefix(hexadecimal(image.buildID)))
        let path = directory + "/symbols/" + file
        let text = try String(contentsOfFile: path, encoding: .utf8)
        let name = try #require(table.symbol(at: entry)?.name)
        try text.replacingOccurrences(of: "\t" + name + "\n", with: "\tfrom_the_cache\n")
            .write(toFile: path, atomically: true, encoding: .utf8)
        let next = StackDecoder(identity: nil, modules: [record], cacheDirectory: directory)
        #expect(next.frames(at: entry, isReturnAddress: false).last?.function == "from_the_cache")
    }

    @Test("Control characters of a hostile symbol do not reach the terminal")
    func controlCharacters() {
        #expect(printable("a\u{1b}[2Jb\n\t\u{202e}\u{9b}") == "a?[2Jb????")
        #expect(printable("größe λ") == "größe λ")
    }
}
