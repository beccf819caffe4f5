/// Placeholder to be replaced in this commit series.
import CLoopLag

struct CPythonPools {
    init(_ segment: Segment, _ frames: CPythonFrames) {}
    mutating func tick(
        now: UInt64, interpreter: UInt64, modules: UInt64, copy: UnsafeMutablePointer<lag_python_frames>
    ) {}
}
