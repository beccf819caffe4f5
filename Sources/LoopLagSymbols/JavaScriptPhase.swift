/// Which phase of node's event loop a stack belongs to: timers, poll, check, close, nextTick, microtask, or the completion
/// of work that a pool thread did.
///
/// Called by StackDecoder for samples with JavaScript frames and for native ones of node; pure. It goes by the functions
/// of node and libuv on the stack, JavaScript first, since a stripped node names no others. nil = not recognised.

import Glibc
import LoopLagModel

enum JavaScriptPhase {
    static func phase(of frames: [Frame]) -> String? {
        guard frames.contains(where: { $0.kind == .javascript }) else { return nil }
        // The outermost JavaScript that the loop entered decides: what lies above it was called by it.
        for frame in frames.reversed() {
            if frame.kind == .javascript, let found = ofJavaScript(frame, in: frames) { return found }
            if frame.kind == .native, let found = ofNative(frame.function, in: frames) { return found }
        }
        return nil
    }

    private static func ofJavaScript(_ frame: Frame, in frames: [Frame]) -> String? {
        guard let file = frame.file, file.hasPrefix("node:") else { return nil }
        switch (file, frame.function) {
        case ("node:internal/timers", "processTimers"), ("node:internal/timers", "listOnTimeout"):
            return afterCallback(frames) ?? "timers"
        case ("node:internal/timers", "processImmediate"): return "check"
        case (_, "processTicksAndRejections"): return ticks(frames)
        case ("node:_http_server", "parserOnIncoming"), (_, "onStreamRead"), (_, "onconnection"),
            ("node:internal/child_process", "onexit"):
            return "poll"
        default: return nil
        }
    }

    private static func ofNative(_ function: String, in frames: [Frame]) -> String? {
        if function.hasPrefix("node::InternalCallbackScope::Close") {
            return has("processTicksAndRejections", frames) ? ticks(frames) : "microtask"
        }
        if function.hasPrefix("node::Environment::RunTimers") { return afterCallback(frames) ?? "timers" }
        if function.hasPrefix("node::Environment::CheckImmediate") { return afterCallback(frames) ?? "check" }
        if function.holds("MakeLibuvRequestCallback") || function.hasPrefix("uv__work_done") {
            return afterCallback(frames) ?? "pool completion"
        }
        if function.hasPrefix("uv__io_poll") || function.holds("OnUvRead") || function.hasPrefix("uv__read") {
            return afterCallback(frames) ?? (isPoolCompletion(frames) ? "pool completion" : "poll")
        }
        if function.hasPrefix("uv__run_closing_handles") { return afterCallback(frames) ?? "close" }
        return nil
    }

    /// What node runs when a callback has returned, whatever phase the callback was of.
    private static func afterCallback(_ frames: [Frame]) -> String? {
        if has("processTicksAndRejections", frames) { return ticks(frames) }
        return frames.contains { $0.function.hasPrefix("node::InternalCallbackScope::Close") } ? "microtask" : nil
    }

    /// Tick callbacks run as JavaScript below processTicksAndRejections; promise jobs through V8's own queue.
    private static func ticks(_ frames: [Frame]) -> String {
        for frame in frames {
            if frame.function == "processTicksAndRejections" { return "nextTick" }
            if frame.function.holds("RunMicrotasks") || frame.function.holds("PerformMicrotaskCheckpoint")
                || frame.function == "runMicrotasks"
            {
                return "microtask"
            }
        }
        return "nextTick"
    }

    private static func isPoolCompletion(_ frames: [Frame]) -> Bool {
        frames.contains { $0.function.hasPrefix("uv__work_done") || $0.function.holds("MakeLibuvRequestCallback") }
    }

    private static func has(_ function: String, _ frames: [Frame]) -> Bool {
        frames.contains { $0.kind == .javascript && $0.function == function }
    }
}

extension String {
    /// `contains` of a text takes microseconds for each of a stack's long C++ names; this takes nanoseconds.
    func holds(_ part: StaticString) -> Bool {
        var copy = self
        return copy.withUTF8 { bytes in
            let length = part.utf8CodeUnitCount
            guard let start = bytes.baseAddress, bytes.count >= length else { return false }
            return (0...bytes.count - length).contains { memcmp(start + $0, part.utf8Start, length) == 0 }
        }
    }
}
