/// What /proc and /dev/shm say about the hosts: the tests' own, independent view.

import Foundation
import Glibc
import LoopLagModel

enum ProcessTable {
    private static func numbers(in folder: String) -> [Int32] {
        ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []).compactMap { Int32($0) }.sorted()
    }

    /// The fields of /proc/PID/stat after the command's name: state, ppid, pgrp, ...
    static func statFields(of pid: Int32) -> [Substring]? {
        guard let text = try? String(contentsOfFile: "/proc/\(pid)/stat", encoding: .utf8),
            let end = text.lastIndex(of: ")")
        else { return nil }
        return text[text.index(after: end)...].split(separator: " ")
    }

    static func members(ofGroup group: Int32) -> [Int32] {
        numbers(in: "/proc").filter { pid in
            guard let fields = statFields(of: pid), fields.count > 2 else { return false }
            return Int32(fields[2]) == group && fields[0] != "Z"
        }
    }

    static func children(of parent: Int32) -> [Int32] {
        numbers(in: "/proc").filter { pid in
            guard let fields = statFields(of: pid), fields.count > 1 else { return false }
            return Int32(fields[1]) == parent && fields[0] != "Z"
        }
    }

    static func startTicks(of pid: Int32) -> UInt64? {
        guard let fields = statFields(of: pid), fields.count > 19 else { return nil }
        return UInt64(fields[19])
    }

    static func threadNames(of pid: Int32) -> [Int32: String] {
        let pairs = numbers(in: "/proc/\(pid)/task").compactMap { tid -> (Int32, String)? in
            guard let name = try? String(contentsOfFile: "/proc/\(pid)/task/\(tid)/comm", encoding: .utf8)
            else { return nil }
            return (tid, name.trimmingCharacters(in: .newlines))
        }
        return Dictionary(uniqueKeysWithValues: pairs)
    }

    /// Time on a processor, by the scheduler's account of one thread.
    static func processorTime(ofThread tid: Int32, in pid: Int32) -> Duration? {
        guard let text = try? String(contentsOfFile: "/proc/\(pid)/task/\(tid)/schedstat", encoding: .utf8),
            let field = text.split(separator: " ").first, let nanoseconds = UInt64(field)
        else { return nil }
        return Duration(nanosecondCount: nanoseconds)
    }
}

enum Segments {
    static let folder = "/dev/shm"

    static func path(ofProcess pid: Int32) -> String? {
        names(ofProcess: pid).first.map { "\(folder)/\($0)" }
    }

    static func remove(ofProcess pid: Int32) {
        for name in names(ofProcess: pid) { unlink("\(folder)/\(name)") }
    }

    private static func names(ofProcess pid: Int32) -> [String] {
        ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? [])
            .filter { $0.hasPrefix("looplag-\(pid)-") }
    }
}
