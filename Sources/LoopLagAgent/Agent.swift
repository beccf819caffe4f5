/// The agent's life in one process: armed, started at the first wait (or at once when linked), parked, removed.
///
/// Called by LoopLag (linked build) and by the start-up functions of the preload object. `begin` runs on a thread of the
/// host, in ordinary context, once a process (once more in each forked child); everything later runs on the watchdog's
/// own thread. It refuses to trap: whatever fails leaves the host as it was, without an agent.

import CLoopLag

public enum Agent {
    public enum StartResult: UInt8, Sendable {
        case running
        /// LOOPLAG_DISABLE, or a privileged (AT_SECURE) process.
        case disabled
        /// A preloaded agent already measures this process.
        case alreadyMeasured
        /// No slot of any loaded object names a wait: a fully static executable.
        case noWaitFound
        /// Not enough memory, descriptors or threads.
        case failed
    }

    // Safety: written before the hooks are armed, read by the one thread that wins the start.
    nonisolated(unsafe) private static var requestedThreshold: UInt64 = 0

    /// Starts the agent in a process that links it. Cost: 1-2 ms, once. Any thread.
    /// - Parameter threshold: nanoseconds; 0 = LOOPLAG_THRESHOLD or 100 ms.
    public static func startLinked(threshold: UInt64) -> StartResult {
        if lag_life_state() == UInt32(LAG_LIFE_RUNNING), lag_life_is_ours() { return .running }
        if lag_life_other_agent() { return .alreadyMeasured }
        requestedThreshold = threshold
        guard lag_life_arm(UInt32(LAG_MODE_LINKED), begin) else { return .disabled }
        lag_life_exit_with_process()
        lag_hooks_set_families(Settings.fromEnvironment(threshold: nil).families)
        // Before the watchdog exists: it patches what is loaded later, and would take this scan's slots.
        if lag_got_patch() == 0, !patchedBefore {
            stop()
            return .noWaitFound
        }
        patchedBefore = true
        guard lag_life_start_now() else {
            stop()
            return .failed
        }
        return .running
    }

    // Safety: only startLinked touches it, and a second start after stop() is the caller's to serialise.
    nonisolated(unsafe) private static var patchedBefore = false

    /// Arms a preloaded agent: nothing happens until the host first waits.
    static func armPreloaded() {
        requestedThreshold = 0
        guard lag_life_arm(UInt32(LAG_MODE_PRELOAD), begin) else { return }
        // Now, and not at the start: a host that only polls never comes to any other wait.
        lag_hooks_set_families(Settings.fromEnvironment(threshold: nil).families)
    }

    /// Starts, or starts again, in a running process that a command line called this into. Runs on a thread that was
    /// borrowed from the host: what takes time is done by a thread of our own.
    /// - Parameter variables: what the environment would say, see lag_env_take.
    static func attach(_ variables: UnsafePointer<CChar>?, _ bytes: Int) -> UInt32 {
        let state = lag_life_state()
        if (state == UInt32(LAG_LIFE_RUNNING) && lag_life_is_ours()) || state == UInt32(LAG_LIFE_STARTING) {
            return UInt32(LAG_ATTACH_RUNNING)
        }
        guard lag_env_take(variables, bytes) else { return UInt32(LAG_ATTACH_OTHER_VERSION) }
        requestedThreshold = 0
        // A preloaded object's hooks are exported symbols: there is nothing to patch.
        let mode = lag_life_mode() == UInt32(LAG_MODE_PRELOAD) ? UInt32(LAG_MODE_PRELOAD) : UInt32(LAG_MODE_ATTACHED)
        guard lag_life_arm(mode, begin) else { return UInt32(LAG_ATTACH_DISABLED) }
        lag_hooks_set_families(Settings.fromEnvironment(threshold: nil).families)
        // The watchdog's first look patches the slots.
        return lag_life_start_soon() ? UInt32(LAG_ATTACH_STARTED) : UInt32(LAG_ATTACH_NO_THREAD)
    }

    /// Ends measuring and removes the segment. The hooks stay and pass through; the watchdog ends at its next tick.
    public static func stop() {
        patchedBefore = false
        lag_life_exit()
        lag_life_park()
        // Behind the parking: until then the watchdog may patch anew.
        if lag_life_mode() != UInt32(LAG_MODE_PRELOAD) { _ = lag_got_restore() }
    }

    /// The starter that the hooks call: segment, watchdog, nothing else.
    private static let begin: @convention(c) () -> Bool = {
        let settings = Settings.fromEnvironment(threshold: requestedThreshold == 0 ? nil : requestedThreshold)
        guard let segment = Segment.create(threshold: settings.threshold) else { return false }
        guard
            lag_loops_open(
                segment.header, segment.loops, UInt32(truncatingIfNeeded: segment.loopCount), settings.threshold),
            let watchdog = Watchdog.make(segment: segment, settings: settings),
            lag_thread_start({ Watchdog.run($0) }, watchdog)
        else {
            lag_life_discard()
            lag_memory_free(segment.base, segment.bytes)
            return false
        }
        return true
    }
}

#if LOOPLAG_EMBEDDED
    /// The preload object's start-up (`-init`): resolves the real calls, reads its variables, returns.
    @_cdecl("lag_preload_init")
    public func preloadInit() {
        // An injected object waits for the call of lag_agent_attach.
        if !lag_life_was_injected() { Agent.armPreloaded() }
    }

    /// The preload object's end (`-fini`): a clean exit removes the segment.
    @_cdecl("lag_preload_exit")
    public func preloadExit() { lag_life_exit() }

    /// Says that an agent is in this process, and which layout it writes.
    @_cdecl("lag_agent_abi")
    public func agentABI() -> UInt32 { UInt32(LAG_ABI_VERSION) }

    /// What `looplag attach` calls on a borrowed thread: LAG_ATTACH_*.
    @_cdecl("lag_agent_attach")
    public func agentAttach(_ variables: UnsafePointer<CChar>?, _ bytes: Int) -> UInt32 {
        Agent.attach(variables, bytes)
    }

    /// What node's `process.dlopen` calls: the way in for `looplag attach` where it may not trace the process.
    @_cdecl("napi_register_module_v1")
    public func registerNodeModule(_ environment: UnsafeMutableRawPointer?, _ exports: UnsafeMutableRawPointer?)
        -> UnsafeMutableRawPointer?
    { lag_node_register(environment, exports) { Agent.attach($0, $1) } }
#endif
