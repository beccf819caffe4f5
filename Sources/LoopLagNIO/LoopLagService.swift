/// LoopLag as one more service of a server that is run by swift-service-lifecycle.
///
/// Called by: the server's author, who puts it first into the ServiceGroup, so that it starts before the loops that it
/// is to measure and is stopped after them. Thread: any; it starts the agent and then only waits.
/// Refuses: to take the server down. Measuring that cannot start is logged, and the server runs on without it.

public import Logging
public import LoopLag
public import ServiceLifecycle

/// Starts the agent, waits for the graceful shutdown, and stops the agent.
///
///     let group = ServiceGroup(services: [LoopLagService(logger: logger), server], logger: logger)
///
/// Cost: one suspended task beside what the agent itself costs.
public struct LoopLagService: Service {
    private let configuration: LoopLag.Configuration
    private let logger: Logger

    public init(configuration: LoopLag.Configuration = .init(), logger: Logger = Logger(label: "looplag")) {
        self.configuration = configuration
        self.logger = logger
    }

    public func run() async {
        let isMeasuring = startAgent()
        // A service that returns early ends its whole group, so a failed start waits here too. Cancellation ends the
        // wait by an error that says nothing more: both ways the server is going down.
        try? await gracefulShutdown()
        guard isMeasuring else { return }
        LoopLag.stop()
        logger.debug("stopped measuring event loops")
    }

    private func startAgent() -> Bool {
        do throws(LoopLagError) {
            try LoopLag.start(configuration)
            let threshold = configuration.threshold.map { "\($0)" } ?? "default"
            logger.info("measuring event loops", metadata: ["looplag.threshold": "\(threshold)"])
            return true
        } catch {
            logger.error("event loops are not measured", metadata: ["looplag.error": "\(error)"])
            return false
        }
    }
}
