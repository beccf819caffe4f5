import Foundation
import LoopLagModel
import Testing

@testable import LoopLagSymbols

/// Names, lines and files: which of them are shown, and when none may be.
@Suite(.serialized) struct SymbolTests {
    private func module(_ path: String, buildID: [UInt8]? = nil, inode: UInt64 = 0) throws -> ModuleRecord {
        let image = try ElfImage(path: path)
        return ModuleRecord(
            path: path, buildID: buildID ?? image.buildID, loadBias: 0x10_0000, start: 0x10_0000,
            end: 0x10_0000 + image.size * 4, isDeleted: false, isVDSO: false, isMapped: true, device: image.device,
            inode: inode)
    }

    private func address(of symbol: String, in path: String) throws -> UInt64 {
        let output = try run("nm", [path])
        let line = output.split(separator: "\n").first { $0.hasSuffix(" " + symbol) }
        let field = try #require(line?.split(separator: " ").first)
        return try #require(UInt64(field, radix: 16)) + 0x10_0000
    }

    @Test("A Swift release build names function, file, line and the inlined calls of the sleeping thread")
    func swiftCulprit() throws {
        let workshop = try Workshop()
        let program = try workshop.compile("kitchen.swift", ["swiftc", "-O", "-g"])
        let host = try Host([program], until: "ready")
        try host.waitUntilAllSleep()
        let frozen = try FrozenProcess(pid: host.pid)
        let decoder = StackDecoder(identity: frozen.identity, modules: frozen.modules)
        let sample = decoder.decode(frozen.threads[0].sample(passive: true))
        let price = try #require(sample.frames.first { $0.function == "kitchen.Menu.price(of:_:)" })
        #expect(price.kind == .swift)
        #expect(price.file?.hasSuffix("Fixtures/kitchen.swift") == true)
        #expect(price.line == 17)
        #expect(price.module == "kitchen")
        let nap = try #require(sample.frames.first { $0.function == "kitchen.Menu.nap()" })
        #expect(nap.inlined == true && nap.line == 29)
        #expect(sample.frames.contains { $0.function == "kitchen.Menu.total(_:)" && $0.inlined == true })
        #expect(sample.frames.contains { $0.function == "kitchen.Array.serve(_:)" })
        #expect(!sample.isTruncated)
    }

    @Test("300 addresses of a release build have llvm-symbolizer's functions, files, lines and inline chains")
    func inlineChains() throws {
        let tool = try #require(SymbolizerOracle.tool)
        let workshop = try Workshop()
        let program = try workshop.compile("kitchen.swift", ["swiftc", "-O", "-g"])
        let result = try SymbolizerOracle(binary: program, tool: tool, count: 300)
        #expect(result.compared == 300)
        #expect(result.inlined > 60)
        #expect(result.differences.isEmpty, "\(result.differences)")
    }

    @Test("A replaced file gives addresses, never the names of the new one")
    func wrongBuildID() throws {
        let workshop = try Workshop()
        let program = try workshop.compile("moments.c", ["cc", "-O1", "-g", "-w"])
        let pc = try address(of: "leaf", in: program) + 1
        let right = StackDecoder(identity: nil, modules: [try module(program)])
        #expect(right.frames(at: pc, isReturnAddress: false).map(\.function) == ["leaf"])
        let wrong = StackDecoder(identity: nil, modules: [try module(program, buildID: Array(repeating: 7, count: 20))])
        let frames = wrong.frames(at: pc, isReturnAddress: false)
        #expect(frames.map(\.function) == ["moments+0x" + String(pc - 0x10_0000, radix: 16)])
        #expect(frames.first?.file == nil && frames.first?.module == "moments")
        // Without a build ID the inode decides.
        let moved = StackDecoder(identity: nil, modules: [try module(program, buildID: [], inode: 1)])
        #expect(moved.frames(at: pc, isReturnAddress: false).first?.function.hasPrefix("moments+0x") == true)
        let gone = StackDecoder(
            identity: nil,
            modules: [
                ModuleRecord(
                    path: "/nonexistent/moments", buildID: [1], loadBias: 0, start: 0, end: 1 << 40, isDeleted: false,
                    isVDSO: false, isMapped: true, device: 0, inode: 0)
            ])
        #expect(gone.frames(at: 0x55, isReturnAddress: true).map(\.function) == ["moments+0x55"])
    }

    @Test("A stripped binary takes names and lines from a debug file of its own build ID, and from no other")
    func separateDebugFile() throws {
        let workshop = try Workshop()
        let program = try workshop.compile("moments.c", ["cc", "-O1", "-g", "-w"])
        let pc = try address(of: "stacked", in: program) + 4
        let folder = workshop.folder.appendingPathComponent(".debug")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        let debug = folder.appendingPathComponent("moments.debug").path
        try run("objcopy", ["--only-keep-debug", program, debug])
        let stripped = workshop.folder.appendingPathComponent("stripped").path
        try run("objcopy", ["--strip-all", "--add-gnu-debuglink=" + debug, program, stripped])
        let found = StackDecoder(identity: nil, modules: [try module(stripped)]).frames(at: pc, isReturnAddress: false)
        #expect(found.last?.function == "stacked")
        #expect(found.last?.file == Workshop.fixture("moments.c"))
        #expect(found.last?.line ?? 0 > 38)
        // The same name, another build.
        let other = try workshop.compile("moments.c", ["cc", "-O2", "-g", "-w", "-DOTHER"], name: "other")
        try run("objcopy", ["--only-keep-debug", other, debug])
        let refused = StackDecoder(identity: nil, modules: [try module(stripped)])
        #expect(refused.frames(at: pc, isReturnAddress: false).first?.function.hasPrefix("stripped+0x") == true)
    }

    @Test("A debug file without build IDs must have the checksum that the link names")
    func debugFileByChecksum() throws {
        let workshop = try Workshop()
        let program = try workshop.compile("moments.c", ["cc", "-O1", "-g", "-w", "-Wl,--build-id=none"])
        let pc = try address(of: "stacked", in: program) + 4
        let debug = workshop.folder.appendingPathComponent("moments.debug").path
        try run("objcopy", ["--only-keep-debug", program, debug])
        let stripped = workshop.folder.appendingPathComponent("stripped").path
        try run("objcopy", ["--strip-all", "--add-gnu-debuglink=" + debug, program, stripped])
        let inode = try ElfImage(path: stripped).inode
        func frames() throws -> [Frame] {
            StackDecoder(identity: nil, modules: [try module(stripped, inode: inode)])
                .frames(at: pc, isReturnAddress: false)
        }
        #expect(try frames().last?.function == "stacked")
        var bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: debug)))
        bytes[bytes.count - 1] ^= 1
        try Data(bytes).write(to: URL(fileURLWithPath: debug))
        #expect(try frames().last?.function.hasPrefix("stripped+0x") == true)
    }

    @Test("A deleted executable is read through the process")
    func deletedFile() throws {
        let workshop = try Workshop()
        let program = try workshop.compile("blocked.c", ["cc", "-O1", "-g", "-w", "-pthread"])
        let host = try Host([program], until: "ready")
        try host.waitUntilAllSleep()
        unlink(program)
        let frozen = try FrozenProcess(pid: host.pid)
        let record = try #require(frozen.modules.first { $0.path.hasPrefix(program) })
        #expect(record.isDeleted)
        let decoder = StackDecoder(identity: frozen.identity, modules: frozen.modules)
        #expect(decoder.decode(frozen.threads[0].sample()).frames.contains { $0.function == "main" })
        #expect(decoder.decode(frozen.threads[0].sample()).frames.contains { $0.module == "blocked" })
    }

    @Test(
        "A binary that only the process's own mount namespace shows is read through it",
        .enabled(if: geteuid() == 0, "a private mount namespace needs privileges"))
    func mountNamespace() throws {
        let workshop = try Workshop()
        let program = try workshop.compile("blocked.c", ["cc", "-O1", "-g", "-w", "-pthread"])
        let folder = workshop.folder.appendingPathComponent("private").path
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: false)
        let host = try Host(
            [
                "unshare", "--mount", "sh", "-c",
                "mount -t tmpfs none '\(folder)' && cp '\(program)' '\(folder)/inside' && exec '\(folder)/inside'",
            ], until: "ready")
        let frozen = try FrozenProcess(pid: host.pid)
        let record = try #require(frozen.modules.first { $0.path == folder + "/inside" })
        #expect(!FileManager.default.fileExists(atPath: record.path))
        let decoder = StackDecoder(identity: frozen.identity, modules: frozen.modules)
        let sample = decoder.decode(frozen.threads[0].sample())
        #expect(sample.frames.contains { $0.function == "main" && $0.module == "inside" && $0.line != nil })
    }

    @Test("A pipe, a folder or a text in the place of a module is refused without waiting")
    func notAnExecutable() throws {
        let workshop = try Workshop()
        let pipe = workshop.folder.appendingPathComponent("pipe").path
        #expect(mkfifo(pipe, 0o600) == 0)
        #expect(throws: ElfError.notRegular) { try ElfImage(path: pipe) }
        #expect(throws: ElfError.notRegular) { try ElfImage(path: workshop.folder.path) }
        #expect(throws: ElfError.notElf) { try ElfImage(path: Workshop.fixture("blocked.c")) }
        #expect(throws: ElfError.notReadable(errno: ENOENT)) { try ElfImage(path: pipe + "-absent") }
    }

    @Test("Of several names of one function the plain one is shown")
    func aliases() throws {
        let maps = try #require(readSmallFile("/proc/self/maps", atMost: 16 << 20)).split(separator: "\n")
        let modules = FrozenProcess.modules(pid: getpid(), maps: maps)
        let libc = try #require(modules.first { $0.path.contains("/libc.so") })
        let table = SymbolTable(image: try ElfImage(path: libc.path))
        for name in ["poll", "read", "nanosleep", "epoll_wait", "recv"] {
            let function = UInt64(UInt(bitPattern: try #require(dlsym(nil, name))))
            #expect(table.symbol(at: function - libc.loadBias)?.name == name)
        }
    }
}
