import LoopLagModel
import Testing

@testable import LoopLagSymbols

@Suite("Managed frames among native ones")
struct ManagedMergeTests {
    private let evaluator = "_PyEval_EvalFrameDefault"

    /// Native frames leaf first, 0x100 bytes of stack each.
    private func native(_ functions: String...) -> [ManagedMerge.Native] {
        functions.enumerated().map { index, name in
            let start = 0x1000 + UInt64(index) * 0x100
            let module = name.isEmpty ? nil : "python3.11"
            return ManagedMerge.Native(
                stackPointer: start, end: index == functions.count - 1 ? .max : start + 0x100,
                frames: [Frame(function: name.isEmpty ? "0x7f00" : name, kind: .native, module: module)])
        }
    }

    private func python(_ name: String, entry: Bool = false, at address: UInt64? = nil) -> ManagedFrame {
        ManagedFrame(frame: Frame(function: name, kind: .python), stackAddress: address, isEntry: entry)
    }

    private func merged(_ native: [ManagedMerge.Native], _ managed: [ManagedFrame]) -> [String] {
        ManagedMerge.merge(native: native, managed: managed).map(\.function)
    }

    @Test("Each run of Python frames replaces the interpreter function that executes it")
    func byName() {
        let stack = native("time_sleep", evaluator, "call", evaluator, "main")
        let frames = [python("helper"), python("handler", entry: true), python("app", entry: true)]
        #expect(merged(stack, frames) == ["time_sleep", "helper", "handler", "call", "app", "main"])
    }

    @Test("Up to 3.10 every Python frame is a run of its own")
    func oneToOne() {
        let stack = native("time_sleep", evaluator, evaluator, "main")
        #expect(
            merged(stack, [python("helper", entry: true), python("app", entry: true)])
                == ["time_sleep", "helper", "app", "main"])
    }

    @Test("An address on the stack places a run where there are no symbols")
    func byAddress() {
        let stack = native("a", "b", "c", "d")
        #expect(merged(stack, [python("f", entry: true, at: 0x1250)]) == ["a", "b", "f", "c", "d"])
    }

    @Test("In a stripped interpreter the function that a run's address lies in is the one that executes it")
    func stripped() {
        let stack = native("time_sleep", "python3.11+0x776f42", "python3.11+0x44a25b", "python3.11+0x7cfceb", "main")
        let frames = [python("helper", at: 0x1250), python("app", entry: true, at: 0x1250)]
        #expect(
            merged(stack, frames)
                == ["time_sleep", "python3.11+0x776f42", "helper", "app", "python3.11+0x7cfceb", "main"])
    }

    @Test("Frames that cannot be placed are kept")
    func nowhere() {
        #expect(merged(native("a", "b"), [python("f", entry: true)]) == ["f", "a", "b"])
        #expect(merged([], [python("f", entry: true)]) == ["f"])
        #expect(merged(native("a"), []) == ["a"])
    }
}
