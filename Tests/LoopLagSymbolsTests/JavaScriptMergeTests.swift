import LoopLagModel
import Testing

@testable import LoopLagSymbols

@Suite("JavaScript frames among native ones")
struct JavaScriptMergeTests {
    /// Native frames leaf first; the frame pointer of the n-th one is 0x1000 + n * 0x100. An empty name is code that V8
    /// made.
    private func native(_ functions: String...) -> [ManagedMerge.Native] {
        functions.enumerated().map { index, name in
            // Where libunwind follows frame pointers its stack pointers say nothing.
            ManagedMerge.Native(
                stackPointer: UInt64(index) * 16, framePointer: 0x1000 + UInt64(index) * 0x100,
                end: UInt64(index + 1) * 16,
                frames: [
                    Frame(
                        function: name.isEmpty ? "0x7f00" : name, kind: .native, module: name.isEmpty ? nil : "node")
                ])
        }
    }

    private func script(_ name: String, at address: UInt64?) -> ManagedFrame {
        ManagedFrame(frame: Frame(function: name, kind: .javascript), stackAddress: address, isEntry: false)
    }

    private func merged(
        _ native: [ManagedMerge.Native], _ managed: [ManagedFrame], isInterrupt: Bool = false
    ) -> [String] {
        JavaScriptMerge.merge(native: native, managed: managed, isInterrupt: isInterrupt).map(\.function)
    }

    private let trampoline = "Builtins_InterpreterEntryTrampoline"

    @Test("A frame replaces the native one with its frame pointer, and V8's passages are left out")
    func byFramePointer() {
        let stack = native(
            "read", "Builtins_CEntry_Return1", trampoline, "", "Builtins_JSEntryTrampoline", "Builtins_JSEntry",
            "v8::Function::Call", "uv_run")
        let frames = [script("inner", at: 0x1200), script("outer", at: 0x1300)]
        #expect(merged(stack, frames) == ["read", "inner", "outer", "v8::Function::Call", "uv_run"])
    }

    @Test("Inlined functions stand in the frame that they were inlined into")
    func inlined() {
        let stack = native("", "uv_run")
        let frames = [script("small", at: 0x1000), script("large", at: 0x1000)]
        #expect(merged(stack, frames) == ["small", "large", "uv_run"])
    }

    @Test("Native code between two runs of JavaScript stays between them")
    func twoRuns() {
        let stack = native("poll", trampoline, "node::Spawn", trampoline, "uv_run")
        let frames = [script("inner", at: 0x1100), script("outer", at: 0x1300)]
        #expect(merged(stack, frames) == ["poll", "inner", "node::Spawn", "outer", "uv_run"])
    }

    @Test("At an interrupt nothing stands above the JavaScript that was running")
    func interrupt() {
        let stack = native("v8::internal::StackGuard::HandleInterrupts", "Builtins_CEntry_Return1", "", "uv_run")
        #expect(merged(stack, [script("busy", at: 0x1200)], isInterrupt: true) == ["busy", "uv_run"])
    }

    @Test("Where the native stack ended early JavaScript follows it")
    func truncated() {
        #expect(merged(native("sha512_block"), [script("hash", at: 0x9000)]) == ["sha512_block", "hash"])
    }

    @Test("A phase is told by what node and libuv have on the stack")
    func phases() {
        func phase(_ functions: (String, FrameKind, String?)...) -> String? {
            JavaScriptPhase.phase(of: functions.map { Frame(function: $0.0, kind: $0.1, file: $0.2) })
        }
        let user = ("work", FrameKind.javascript, "/srv/app.js" as String?)
        #expect(phase(user, ("processTimers", .javascript, "node:internal/timers")) == "timers")
        #expect(phase(user, ("node::Environment::RunTimers", .native, nil), ("uv_run", .native, nil)) == "timers")
        #expect(phase(user, ("processImmediate", .javascript, "node:internal/timers")) == "check")
        #expect(phase(user, ("node::Environment::CheckImmediate", .native, nil)) == "check")
        #expect(
            phase(
                user, ("processTicksAndRejections", .javascript, "node:internal/process/task_queues"),
                ("node::InternalCallbackScope::Close", .native, nil), ("node::Environment::RunTimers", .native, nil))
                == "nextTick")
        #expect(
            phase(
                user, ("v8::internal::MicrotaskQueue::RunMicrotasks", .native, nil),
                ("node::InternalCallbackScope::Close", .native, nil), ("uv__io_poll", .native, nil)) == "microtask")
        #expect(
            phase(user, ("parserOnIncoming", .javascript, "node:_http_server"), ("uv__io_poll", .native, nil))
                == "poll")
        #expect(
            phase(
                user, ("uv__work_done", .native, nil), ("uv__async_io", .native, nil), ("uv__io_poll", .native, nil))
                == "pool completion")
        #expect(phase(user) == nil)
        #expect(phase(("uv__io_poll", .native, nil)) == nil)
    }
}
