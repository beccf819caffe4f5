/// The real thing against real servers: the acceptance list of each slice, one test a line, with its figures printed.
///
/// All of it is one serialized suite: two hosts that share this machine's few cores would measure each other. Files
/// extend it, one for each family of hosts.

import LoopLagModel
import Testing

@Suite("End to end", .serialized)
enum EndToEnd {}

func figure(_ text: String) { print("figure: \(text)") }

extension Duration {
    var milliseconds: Double { secondsAsDouble * 1000 }

    /// For figures.
    var inMilliseconds: String {
        let tenths = (milliseconds * 10).rounded() / 10
        return "\(tenths) ms"
    }
}

/// DESIGN section 8: a duration is right within 3 % or 5 ms of an independent clock, whichever is more.
func agree(_ measured: Duration, _ truth: Duration) -> Bool {
    let difference = measured > truth ? measured - truth : truth - measured
    return difference <= max(truth * 0.03, .milliseconds(5))
}
