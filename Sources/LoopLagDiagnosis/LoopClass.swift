/// What a loop is, in a person's words: which library drives it, whether it serves anything, what it is called.
///
/// Called by every view, on any thread. Pure. It refuses to overrule the agent, which saw the loop being registered.

import LoopLagModel

public struct LoopClass: Hashable, Sendable {
    /// libuv, asyncio, uvloop, nio, dispatch, libev, libevent, glib, epoll, poll, select.
    public var kind: String
    public var role: LoopRole
    /// Short and printable: "main", "NIO-SGLTN-1-#0", "thread 4711".
    public var name: String

    public init(kind: String, role: LoopRole, name: String) {
        self.kind = kind
        self.role = role
        self.name = name
    }
}

/// Classifies one loop of a process.
/// - Parameter caller: the symbolicated return address of the wait that registered the loop; nil when unknown.
public func classify(_ loop: LoopSnapshot, process: ProcessSnapshot, caller: Frame?) -> LoopClass {
    let kind = loopKind(loop, process: process, caller: caller)
    let main = mainThread(of: process)
    let role = loop.agentRole ?? inferredRole(loop, kind: kind, process: process, main: main, caller: caller)
    return LoopClass(kind: kind, role: role, name: loopName(tid: loop.tid, main: main, threadName: loop.threadName))
}

/// The name of a loop by its thread: a thread that calls itself something is called that, except the main one.
public func loopName(tid: Int32, main: Int32?, threadName: String) -> String {
    if threadName.hasPrefix("NIO-") { return PlainText.printable(threadName) }
    if tid == main { return "main" }
    // Threads inherit their parent's name (node, redis-server ...): only one that differs from that names anything,
    // which a single loop cannot tell. The usual inherited ones are known.
    let inherited = ["node", "python", "python3", "MainThread", ""].contains(threadName)
    return inherited || threadName.hasPrefix("python") ? "thread \(tid)" : PlainText.printable(threadName)
}

private func loopKind(_ loop: LoopSnapshot, process: ProcessSnapshot, caller: Frame?) -> String {
    let function = caller?.function ?? ""
    let module = caller?.module ?? ""
    if isDispatch(loop, function: function, module: module) { return "dispatch" }
    if loop.threadName.hasPrefix("NIO-") || function.contains("NIOPosix") || function.contains("8NIOPosix") {
        return "nio"
    }
    switch process.runtime {
    case .node: return "libuv"
    case .cpython:
        // uvloop is one extension module, `loop.cpython-311-x86_64-linux-gnu.so`, with libuv linked into it.
        if module.hasPrefix("loop.") || module.contains("uvloop") || function.hasPrefix("uv__") { return "uvloop" }
        if module.hasPrefix("corecext.") { return "libev" }
        // `select` is an extension module of its own, or linked into the executable or libpython.
        if module.hasPrefix("select.") || module.hasPrefix("python") || module.hasPrefix("libpython")
            || function.hasPrefix("select_")
        {
            return "asyncio"
        }
    case .swift, .native, nil: break
    }
    if function.hasPrefix("uv__") || module.hasPrefix("libuv.") { return "libuv" }
    if module.hasPrefix("libevent") { return "libevent" }
    if module.hasPrefix("libev.") { return "libev" }
    if module.hasPrefix("libglib-") { return "glib" }
    switch loop.wait {
    case .epollWait, .epollPwait, .epollPwait2:
        // Without a caller the runtime still says what is likely: a Python server's epoll loop is asyncio's unless
        // uvloop's module is mapped.
        if process.runtime == .cpython, caller == nil {
            return process.modules.contains { $0.isMapped && $0.path.contains("/uvloop/loop.") } ? "uvloop" : "asyncio"
        }
        return "epoll"
    case .poll, .ppoll: return "poll"
    case .select, .pselect: return "select"
    }
}

private func isDispatch(_ loop: LoopSnapshot, function: String, module: String) -> Bool {
    // The manager's queue is com.apple.libdispatch-manager; a thread's name keeps the last 15 characters of it.
    module.hasPrefix("libdispatch.so") || function.hasPrefix("_dispatch_")
        || loop.threadName.hasSuffix("dispatch-manager")
        || loop.threadName == "ispatch-manager"
}

private func inferredRole(
    _ loop: LoopSnapshot, kind: String, process: ProcessSnapshot, main: Int32?, caller: Frame?
) -> LoopRole {
    if kind == "dispatch" { return .helper }
    guard process.runtime == .node, let main, loop.tid != main else { return .server }
    // node 22 and later name their threads (cut at 15 characters).
    if ["SignalInspector", "InspectorIo", "DelayedTaskSche"].contains(where: { loop.threadName.hasPrefix($0) }) {
        return .helper
    }
    // Earlier ones do not, but start their threads in one order: main, delayed tasks, the four of the platform's pool,
    // the signal watcher, the inspector if it is on, and only then a script's workers. Preloaded, the agent has seen the
    // delayed-task thread register; attached, only if it has woken since, and then it is close behind the main thread.
    let others = process.loops.map(\.tid).filter { $0 > main }.sorted()
    var helpers = 0
    if let first = others.first, process.agent.mode == "preload" || first &- main < 6 { helpers += 1 }
    if process.command.contains(where: { $0.hasPrefix("--inspect") }) { helpers += 1 }
    return others.prefix(helpers).contains(loop.tid) ? .helper : .server
}

/// The main thread's tid as the host sees it. The process's pid is the reader's view, which differs from that in
/// another pid namespace (numbers there start anew, so they are smaller than the pid here); then the oldest loop thread
/// stands in, which in an interpreter or a C server is the main one.
private func mainThread(of process: ProcessSnapshot) -> Int32? {
    let pid = process.identity.pid
    if process.loops.contains(where: { $0.tid == pid }) { return pid }
    guard process.runtime != .swift, process.loops.allSatisfy({ $0.tid < pid }) else { return pid }
    return process.loops.map(\.tid).min()
}
