/// One sample of a Python thread at a time, without segment and watchdog: what the bench tortures, and nothing else uses.
///
/// Not in the object that is loaded into hosts. Called from one thread, not the sampled one.

#if !LOOPLAG_EMBEDDED
    import CLoopLag

    public struct CPythonProbe {
        public struct Outcome: Sendable {
            /// LAG_DROP_*; LAG_DROP_NONE = a sample was taken.
            public var drop: UInt32
            public var pause: UInt64
            /// Frames that made no sense; they stand in the section without a name.
            public var bad: UInt64
        }

        private let frames: CPythonFrames
        private let runtime: UInt64
        private var section: ManagedSection

        /// After `lag_python_detect`; nil where the version is not known or there is no signal to use.
        public init?() {
            let found = lag_python_found().pointee
            guard let layout = CPythonLayout.of(version: found.version, runtime: found.runtime),
                let scratch = lag_memory_zeroed(CPythonFrames.scratchBytes), let section = ManagedSection()
            else { return nil }
            var copying = layout.forCopying
            lag_python_set_layout(&copying)
            frames = CPythonFrames(layout, scratch)
            runtime = found.runtime
            self.section = section
            lag_capture_prepare()
            guard lag_capture_install(lag_signal_default()) != 0 else { return nil }
        }

        /// - Parameters:
        ///   - tid: the thread to sample, by the kernel's number, and `pthread` by the C library's.
        ///   - visit: gets the managed section (`struct lag_managed` with what follows), for the length of the call.
        public mutating func sample(
            tid: Int32, pthread: UInt64, visit: (UnsafeRawPointer, Int) -> Void
        ) -> Outcome {
            lag_capture_wants_python(CPythonThreads.state(ofThread: pthread, runtime: runtime, frames))
            var capture: UnsafePointer<lag_capture>?
            let drop = lag_capture_signal(tid, 0, UInt32(LAG_STACK_COPY_BYTES), 20_000_000, &capture)
            guard drop == UInt32(LAG_DROP_NONE), let capture else { return Outcome(drop: drop, pause: 0, bad: 0) }
            section.clear()
            let bad = frames.decode(lag_capture_python(capture), stack: capture, asBlocker: false, into: &section)
            let bytes = section.assemble()
            visit(bytes.bytes, bytes.count)
            return Outcome(drop: drop, pause: capture.pointee.pause_ns, bad: bad)
        }
    }
#endif
