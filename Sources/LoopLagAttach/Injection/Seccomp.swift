/// Whether a process's seccomp filters would let an attach's calls through: a filter that kills on one of them would
/// take the server down, and one that refuses them would leave the agent half started.
///
/// Called before anything is stopped. The filters are read by ptrace, which only CAP_SYS_ADMIN may; they are run here on
/// every call that is made in the target, with arguments that say nothing. What cannot be read counts as forbidden,
/// unless it is what this process itself lives under.

import CLoopLagTrace
import Glibc

enum Seccomp {
    /// What the loader, the start and the watchdog ask of the kernel: read, write, close, fstat, mmap, mprotect, munmap,
    /// rt_sigprocmask, pread64, madvise, rt_sigpending, rt_sigreturn, getpid, clone, fcntl, ftruncate, readlink, fchmod,
    /// prctl, gettid, futex, set_robust_list, clock_gettime, clock_nanosleep, openat, newfstatat, unlink, fallocate,
    /// memfd_create, rseq, clone3.
    static let needed: [(number: UInt32, name: String)] = [
        (319, "memfd_create"), (9, "mmap"), (10, "mprotect"), (11, "munmap"), (15, "rt_sigreturn"),
        (127, "rt_sigpending"), (0, "read"), (3, "close"), (5, "fstat"), (262, "newfstatat"), (17, "pread64"),
        (257, "openat"), (14, "rt_sigprocmask"), (228, "clock_gettime"), (28, "madvise"), (39, "getpid"),
        (186, "gettid"), (157, "prctl"), (202, "futex"), (56, "clone"), (435, "clone3"), (273, "set_robust_list"),
        (334, "rseq"), (230, "clock_nanosleep"), (72, "fcntl"), (77, "ftruncate"), (89, "readlink"), (91, "fchmod"),
        (87, "unlink"), (285, "fallocate"),
    ]
    /// Refused with an error they only cost something: the C library or the agent does without.
    private static let dispensable: Set<UInt32> = [435, 334, 273, 91, 285, 28, 89, 77, 72]

    private static let remedy = "start it with 'looplag run -- ...'"

    static func check(pid: Int32) throws(InjectError) {
        let fields = Obstacle.status(pid)
        guard fields["Seccomp"] == "2" else { return }
        // Filters are inherited and only ever added: as many as we have, and of the same ancestors, are our own.
        let own = Obstacle.status(getpid())
        if own["Seccomp"] == "2", let count = fields["Seccomp_filters"], count == own["Seccomp_filters"] { return }
        guard let filters = read(pid: pid) else {
            throw .unfit(
                "it runs under a seccomp filter of its own, which cannot be read without CAP_SYS_ADMIN and might kill it"
                    + " for the calls of an attach; \(remedy)")
        }
        for call in needed {
            switch filters.map({ Filter($0).verdict(call.number) }).min() {
            case .kill?: throw .unfit("its seccomp filter would kill it for \(call.name); \(remedy)")
            case .refuse? where !dispensable.contains(call.number):
                throw .unfit("its seccomp filter forbids \(call.name), which an attach needs; \(remedy)")
            default: break
            }
        }
    }

    /// The programs, the newest first; nil when they may not be read.
    private static func read(pid: Int32) -> [[UInt64]]? {
        var programs: [[UInt64]] = []
        for index in 0..<64 {
            var buffer = [UInt64](repeating: 0, count: 4096)
            let count = lag_inject_read_filter(pid, UInt32(index), &buffer, UInt32(buffer.count))
            if count == -ENOENT { return programs.isEmpty ? nil : programs }
            guard count > 0 else { return nil }
            programs.append(Array(buffer.prefix(Int(count))))
        }
        return programs
    }

    enum Verdict: Comparable {
        case kill, refuse, allow
    }

    /// One classic BPF program over struct seccomp_data, each instruction as its eight bytes.
    struct Filter {
        let code: [UInt64]

        init(_ code: [UInt64]) { self.code = code }

        /// Anything that is not understood counts as a kill.
        func verdict(_ number: UInt32) -> Verdict {
            // nr, arch (AUDIT_ARCH_X86_64), instruction pointer, six arguments: all zero, since none is told apart.
            var data = [UInt32](repeating: 0, count: 16)
            data[0] = number
            data[1] = 0xc000_003e
            var a: UInt32 = 0
            var x: UInt32 = 0
            var scratch = [UInt32](repeating: 0, count: 16)
            var at = 0
            // A program's jumps only lead forward.
            while at < code.count {
                let word = code[at]
                let operation = UInt16(truncatingIfNeeded: word)
                let (yes, no) = (Int(word >> 16 & 0xff), Int(word >> 24 & 0xff))
                let k = UInt32(truncatingIfNeeded: word >> 32)
                at += 1
                switch operation & 7 {
                case 0:  // LD
                    switch operation & 0xe0 {
                    case 0x20:
                        guard k % 4 == 0, k < 64 else { return .kill }
                        a = data[Int(k / 4)]
                    case 0x00: a = k
                    case 0x60: a = scratch[Int(k & 15)]
                    case 0x80: a = 64
                    default: return .kill
                    }
                case 1: x = operation & 0xe0 == 0x60 ? scratch[Int(k & 15)] : operation & 0xe0 == 0x80 ? 64 : k
                case 2: scratch[Int(k & 15)] = a
                case 3: scratch[Int(k & 15)] = x
                case 4:
                    let value = operation & 8 != 0 ? x : k
                    switch operation & 0xf0 {
                    case 0x00: a = a &+ value
                    case 0x10: a = a &- value
                    case 0x20: a = a &* value
                    case 0x30: a = value == 0 ? 0 : a / value
                    case 0x40: a |= value
                    case 0x50: a &= value
                    case 0x60: a = value < 32 ? a << value : 0
                    case 0x70: a = value < 32 ? a >> value : 0
                    case 0x80: a = 0 &- a
                    case 0xa0: a ^= value
                    default: return .kill
                    }
                case 5:
                    let value = operation & 8 != 0 ? x : k
                    switch operation & 0xf0 {
                    case 0x00: at += Int(k)
                    case 0x10: at += a == value ? yes : no
                    case 0x20: at += a > value ? yes : no
                    case 0x30: at += a >= value ? yes : no
                    case 0x40: at += a & value != 0 ? yes : no
                    default: return .kill
                    }
                case 6: return Self.verdict(ofAction: operation & 0x18 == 0x10 ? a : k)
                case 7: if operation & 0xf8 == 0 { x = a } else { a = x }
                default: return .kill
                }
            }
            return .kill
        }

        private static func verdict(ofAction value: UInt32) -> Verdict {
            switch value & 0xffff_0000 {
            case 0x7fff_0000, 0x7ffc_0000: .allow  // ALLOW, LOG
            case 0x0005_0000: .refuse  // ERRNO
            default: .kill  // KILL, TRAP; and TRACE and USER_NOTIF, where somebody else decides
            }
        }
    }
}
