import Glibc
import Testing

@testable import LoopLagAttach

@Suite("What kind of program a file is")
struct ExecutableFactsTests {
    /// A 64-bit x86_64 ELF file with one program header; `interpreter` makes it a PT_INTERP.
    static func elf(
        interpreter: String?, elfClass: UInt8 = 2, machine: UInt16 = 62, offset: UInt64 = 64, count: UInt16 = 1
    ) -> [UInt8] {
        func little<T: FixedWidthInteger>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value.littleEndian, Array.init) }
        var bytes: [UInt8] = [0x7f, 0x45, 0x4c, 0x46, elfClass, 1, 1, 0] + Array(repeating: 0, count: 8)
        bytes += little(UInt16(3)) + little(machine) + little(UInt32(1)) + little(UInt64(0)) + little(offset)
        bytes += little(UInt64(0)) + little(UInt32(0)) + little(UInt16(64)) + little(UInt16(56)) + little(count)
        bytes += little(UInt16(0)) + little(UInt16(0)) + little(UInt16(0))
        let name = Array((interpreter ?? "").utf8) + [0]
        bytes += little(UInt32(interpreter == nil ? 1 : 3)) + little(UInt32(4)) + little(UInt64(120))
        bytes += little(UInt64(0)) + little(UInt64(0)) + little(UInt64(name.count)) + little(UInt64(name.count))
        bytes += little(UInt64(1))
        return bytes + name
    }

    @Test("A program without an interpreter is static, glibc's is dynamic, musl's is named")
    func kinds() throws {
        let folder = try TemporaryFolder()
        func kind(_ bytes: [UInt8]) throws -> ExecutableFacts.Kind {
            ExecutableFacts.inspect(try folder.file("x", bytes)).kind
        }
        #expect(try kind(Self.elf(interpreter: "/lib64/ld-linux-x86-64.so.2")) == .dynamic)
        #expect(try kind(Self.elf(interpreter: nil)) == .statically)
        #expect(try kind(Self.elf(interpreter: "/lib/ld-musl-x86_64.so.1")) == .musl)
        #expect(try kind(Self.elf(interpreter: "/lib/ld-linux.so.2", elfClass: 1)) == .thirtyTwoBit)
        #expect(try kind(Self.elf(interpreter: "/lib/ld-linux-aarch64.so.1", machine: 183)) == .otherMachine)
        #expect(try kind([]) == .unknown)
        #expect(try kind(Array("plain text".utf8)) == .unknown)
    }

    @Test("Headers that point outside the file are unknown, never a trap")
    func hostileHeaders() throws {
        let folder = try TemporaryFolder()
        let far = Self.elf(interpreter: "/lib64/ld-linux-x86-64.so.2", offset: .max - 8)
        #expect(ExecutableFacts.inspect(try folder.file("far", far)).kind == .unknown)
        let many = Self.elf(interpreter: nil, count: 0xffff)
        #expect(ExecutableFacts.inspect(try folder.file("many", many)).kind == .unknown)
        let whole = Self.elf(interpreter: "/lib64/ld-linux-x86-64.so.2")
        for length in 0..<whole.count {
            let facts = ExecutableFacts.inspect(try folder.file("cut", Array(whole.prefix(length))))
            #expect(facts.kind == .unknown)
        }
        for _ in 0..<500 {
            var bytes = whole
            for _ in 0..<4 { bytes[Int.random(in: 16..<bytes.count)] = UInt8.random(in: 0...255) }
            _ = ExecutableFacts.inspect(try folder.file("noise", bytes))
        }
    }

    @Test("A script is judged by its interpreter, through several levels, and a loop of scripts ends")
    func scripts() throws {
        let folder = try TemporaryFolder()
        let program = try folder.file("program", Self.elf(interpreter: nil))
        let inner = try folder.file("inner", Array("#! \(program) -x\n".utf8))
        let outer = try folder.file("outer", Array("#!\(inner)\n".utf8))
        let facts = ExecutableFacts.inspect(outer)
        #expect(facts.path == program)
        #expect(facts.kind == .statically)
        #expect(facts.obstacle != nil)
        let loop = try folder.file("loop", Array("#!\(folder.path)/loop\n".utf8))
        #expect(ExecutableFacts.inspect(loop).kind == .unknown)
    }

    @Test("A FIFO in the place of a program does not hang us")
    func fifo() throws {
        let folder = try TemporaryFolder()
        let path = "\(folder.path)/fifo"
        #expect(mkfifo(path, 0o600) == 0)
        defer { unlink(path) }
        #expect(ExecutableFacts.inspect(path).kind == .unknown)
    }

    @Test("A setuid program of another user gains privileges, our own does not")
    func setuid() throws {
        let folder = try TemporaryFolder()
        let path = try folder.file("x", Self.elf(interpreter: "/lib64/ld-linux-x86-64.so.2"), mode: 0o755)
        chmod(path, 0o4755)
        #expect(!ExecutableFacts.inspect(path).gainsPrivileges)
        // Only root can give a file away.
        if getuid() == 0 {
            #expect(chown(path, 65534, gid_t.max) == 0)
            chmod(path, 0o4755)
            let facts = ExecutableFacts.inspect(path)
            #expect(facts.gainsPrivileges)
            #expect(facts.obstacle != nil)
        }
    }
}
