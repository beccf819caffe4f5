/// A report as plain text: the headline first, then what to do, then the tables.
///
/// Called by `report`, and by `record` and `run` at their end, on any thread. Pure. It refuses to print anything a
/// terminal would act upon, and to trust the numbers: a report may come from anywhere.

import Foundation
import LoopLagDiagnosis
import LoopLagModel

public enum TextReport {
    /// The report in lines of at most `width` columns (60 at least), ending with a newline.
    public static func render(_ report: Report, width: Int = 100) -> String {
        let page = Page(report: report, width: max(60, width))
        return page.lines.map { $0 + "\n" }.joined()
    }

    private struct Page {
        let report: Report
        let width: Int
        let names: [String]

        init(report: Report, width: Int) {
            self.report = report
            self.width = width
            names = report.processes.map {
                serverName(command: $0.command, executable: $0.executable, runtime: $0.runtime?.name)
            }
        }

        var lines: [String] {
            let sections = [headline, findings, loops, pools, stalls, worst].filter { !$0.isEmpty }
            return sections.enumerated().flatMap { $0.offset == 0 ? $0.element : [""] + $0.element }
        }

        // -- headline --------------------------------------------------------------------------------------------

        private var headline: [String] {
            let machine = report.machine
            var cpus = machine.cpus == 1 ? "1 CPU" : "\(machine.cpus) CPUs"
            if let limit = machine.cgroupLimits?.cpus, limit.isFinite {
                cpus += ", limited to \(String(format: "%g", limit))"
            }
            let when =
                "LoopLag: \(duration(report.recorded.durationNS)) from \(moment(report.recorded.start, fraction: false)) on "
                + "\(machine.hostname) (\(cpus)), threshold \(duration(report.settings.thresholdNS))"
            var result = TextTable.wrap(when, width: width, hanging: 2) + [""]
            if report.processes.isEmpty { result.append("No process was measured.") }
            for (process, name) in zip(report.processes, names) {
                result += TextTable.wrap(summary(process, name), width: width, hanging: 2)
            }
            return result
        }

        private func summary(_ process: ReportProcess, _ name: String) -> String {
            var subject = "\(process.pid) \(name)"
            if let runtime = process.runtime, runtime.name != .native {
                subject += " (\(runtime.name.rawValue)\(runtime.version.map { " " + $0 } ?? ""))"
            }
            let serving = process.loops.filter { $0.role == .server }
            guard !serving.isEmpty else { return subject + ": no event loop was seen." }
            var parts = [serving.count == 1 ? "1 loop" : "\(serving.count) loops"]
            if let busiest = serving.compactMap(\.utilization).max() {
                parts.append((serving.count == 1 ? "" : "the busiest ") + "\(PlainText.percent(busiest)) busy")
            }
            let count = serving.reduce(0.0) { $0 + Double($1.stallCount) }
            guard count > 0 else { return "\(subject): \(parts.joined(separator: ", ")), no stall." }
            let lost = serving.reduce(0.0) { $0 + Double($1.stalledNS) }
            parts.append(count == 1 ? "1 stall" : String(format: "%.0f stalls", count))
            let window = Double(report.recorded.durationNS) * Double(serving.count)
            var time = "\(duration(lost)) stalled"
            if window > 0, process.dump == nil { time += " (\(PlainText.percent(lost / window)) of the time)" }
            parts.append(time)
            let ids = Set(serving.map(\.id))
            let own = process.stalls.filter { ids.contains($0.loopID) }
            if let longest = own.map(\.durationNS).max() { parts.append("the worst \(duration(longest))") }
            var text = "\(subject): \(parts.joined(separator: ", "))."
            if let main = groups(of: own.map { (process, $0) }).first {
                let share = lost > 0 ? " (\(PlainText.percent(min(1, main.total / lost))) of it)" : ""
                text += " Most of it: \(main.blame), \(main.causeText)\(share)."
            }
            return text
        }

        // -- findings --------------------------------------------------------------------------------------------

        private var findings: [String] {
            guard !report.findings.isEmpty else { return [] }
            var result = ["FINDINGS"]
            for finding in report.findings {
                let mark =
                    switch finding.severity {
                    case .critical: "!! "
                    case .warning: "!  "
                    case .info: "-  "
                    }
                let title = TextTable.wrap(finding.title, width: width, indent: 5)
                result += title.enumerated().map { $0.offset == 0 ? "  " + mark + $0.element.dropFirst(5) : $0.element }
                result += TextTable.wrap(finding.evidence, width: width, indent: 5)
                result += TextTable.wrap("> " + finding.advice, width: width, indent: 5, hanging: 7)
            }
            return result
        }

        // -- tables ----------------------------------------------------------------------------------------------

        private var loops: [String] {
            var table = TextTable([
                .right("PID"), .left("SERVER", least: 8), .left("LOOP", least: 8), .right("BUSY"), .right("ITERATIONS"),
                .right("DELAY p50"), .right("p99"), .right("max"), .right("STALLS"), .right("STALLED"),
            ])
            for (process, name) in zip(report.processes, names) {
                // A helper is worth a line only when something happened on it.
                for loop in process.loops where loop.role == .server || loop.stallCount > 0 {
                    let role = loop.role == .helper ? " (helper)" : ""
                    table.add([
                        "\(process.pid)", name, "\(loopName(loop, in: process)) · \(loop.kind)\(role)",
                        loop.utilization.map(PlainText.percent) ?? "-", "\(loop.iterations)", known(loop.delay.p50NS),
                        known(loop.delay.p99NS), known(loop.delay.maxNS), "\(loop.stallCount)",
                        loop.stallCount > 0 ? duration(loop.stalledNS) : "-",
                    ])
                }
            }
            return table.isEmpty ? [] : ["LOOPS"] + table.lines(width: width)
        }

        private var pools: [String] {
            var table = TextTable([
                .right("PID"), .left("SERVER", least: 8), .left("POOL", least: 8), .right("BUSY"), .right("MAX"),
                .right("THREADS"), .right("QUEUED max"), .right("WAIT p99"), .right("max"), .left("METHOD"),
            ])
            for (process, name) in zip(report.processes, names) {
                for pool in process.pools {
                    table.add([
                        "\(process.pid)", name, pool.name == pool.kind ? pool.kind : "\(pool.name) · \(pool.kind)",
                        pool.busy.map { String(format: "%.1f", $0.mean) } ?? "-", pool.busy.map { "\($0.max)" } ?? "-",
                        pool.threads.map(String.init) ?? "-", pool.queueDepth.map { "\($0.max)" } ?? "-",
                        known(pool.queueWait?.p99NS), known(pool.queueWait?.maxNS),
                        pool.method.rawValue + (pool.queueWait?.method.map { ", wait by \($0.rawValue)" } ?? ""),
                    ])
                }
            }
            return table.isEmpty ? [] : ["POOLS"] + table.lines(width: width)
        }

        private var stalls: [String] {
            let all = report.processes.flatMap { process in process.stalls.map { (process, $0) } }
            guard !all.isEmpty else { return [] }
            var table = TextTable([
                .right("COUNT"), .right("TOTAL"), .right("WORST"), .left("CAUSE", least: 12),
                .left("CULPRIT", least: 12),
                .left("WHERE", least: 10), .left("SERVER", least: 8),
            ])
            let groups = groups(of: all)
            for group in groups.prefix(30) {
                table.add([
                    "\(group.count)", duration(group.total), duration(group.worst.1.durationNS), group.causeText,
                    group.culprit.map(\.function) ?? "-", group.culprit.map(FrameText.place) ?? "-", group.server,
                ])
            }
            var result = ["STALLS by culprit"] + table.lines(width: width)
            if groups.count > 30 { result.append("  ... and \(groups.count - 30) more culprits") }
            return result
        }

        // -- the worst stall -------------------------------------------------------------------------------------

        private var worst: [String] {
            var found: (ReportProcess, ReportStall, String)?
            for (process, name) in zip(report.processes, names) {
                for stall in process.stalls where stall.durationNS > (found?.1.durationNS ?? 0) {
                    found = (process, stall, name)
                }
            }
            guard let (process, stall, name) = found else { return [] }
            let loop = process.loops.first { $0.id == stall.loopID }.map { loopName($0, in: process) } ?? stall.loopID
            let state = stall.open ? "still open after" : "lasted"
            let cause = [stall.cause.rawValue, stall.syscall].compactMap { $0 }.joined(separator: " ")
            let title =
                "WORST STALL \(process.pid) \(name) \(loop), \(moment(stall.start)), \(state) "
                + "\(duration(stall.durationNS)), \(cause)"
            var result = TextTable.wrap(title, width: width, hanging: 2)
            // The fullest stack says most; of equals the first.
            guard
                let sample = stall.samples.enumerated().max(by: { a, b in
                    (a.element.stack.count, -a.offset) < (b.element.stack.count, -b.offset)
                })?.element, !sample.stack.isEmpty
            else {
                result.append(PlainText.clip("  No stack: \(stall.noStackReason ?? "none was taken").", to: width))
                return result
            }
            let count = stall.samples.count
            let samples = count == 1 ? "1 sample" : "one of \(count) samples"
            result.append("  \(samples), \(duration(sample.offsetNS)) after its start (\(sample.method.rawValue))")
            for index in sample.stack.prefix(60) where report.frames.indices.contains(index) {
                let frame = report.frames[index]
                let mark = frame == stall.culprit ? "  <- your code" : ""
                let room = width - 7 - mark.count
                let place = PlainText.clip(FrameText.place(frame), to: room / 3)
                let function = PlainText.left(frame.function, max(20, min(56, room - PlainText.columns(of: place) - 2)))
                result.append(
                    PlainText.clip(
                        "  \(PlainText.left(FrameText.tag(frame.kind), 3))\(function)  \(place)\(mark)", to: width))
            }
            if sample.stack.count > 60 { result.append("  ... \(sample.stack.count - 60) more frames") }
            if sample.truncated { result.append("  (the stack goes on; its root was not captured)") }
            return result
        }

        // -- parts -----------------------------------------------------------------------------------------------

        private struct Group {
            var culprit: Frame?
            var causeText: String
            var server: String
            var count = 0
            var total = 0.0
            var worst: (ReportProcess, ReportStall)
            var blame: String { culprit.map(FrameText.short) ?? "no function of yours on the stack" }
        }

        /// Stalls of one culprit and one cause together, the costliest first.
        private func groups(of stalls: [(ReportProcess, ReportStall)]) -> [Group] {
            var groups: [Group] = []
            var places: [String: Int] = [:]
            for (process, stall) in stalls {
                let cause = [stall.cause.rawValue, stall.syscall].compactMap { $0 }.joined(separator: " ")
                let name = serverName(
                    command: process.command, executable: process.executable, runtime: process.runtime?.name)
                // Lines differ within a function from stall to stall; the function is who is to blame.
                let key = [stall.culprit?.function, stall.culprit?.file, stall.culprit?.module, cause, name]
                    .map { $0 ?? "" }.joined(separator: "\u{0}")
                let place = places[key] ?? groups.count
                if place == groups.count {
                    places[key] = place
                    groups.append(
                        Group(culprit: stall.culprit, causeText: cause, server: name, worst: (process, stall)))
                }
                groups[place].count += 1
                groups[place].total += Double(max(0, stall.durationNS))
                if stall.durationNS > groups[place].worst.1.durationNS {
                    groups[place].worst = (process, stall)
                    groups[place].culprit = stall.culprit
                }
            }
            return groups.sorted { ($0.total, $0.count) > ($1.total, $1.count) }
        }

        private func loopName(_ loop: ReportLoop, in process: ReportProcess) -> String {
            LoopLagDiagnosis.loopName(tid: loop.tid, main: process.pid, threadName: loop.threadName)
        }

        private func duration(_ nanoseconds: Int64) -> String { PlainText.duration(nanoseconds: nanoseconds) }

        private func duration(_ nanoseconds: Double) -> String {
            PlainText.duration(nanoseconds: Int64(min(9e18, max(0, nanoseconds))))
        }

        /// "2026-03-01 12:03:22.410 UTC" of the report's own form; anything else as it stands.
        private func moment(_ timestamp: String, fraction: Bool = true) -> String {
            let parts = timestamp.split(separator: "T")
            guard parts.count == 2, parts[0].count == 10, parts[1].hasSuffix("Z") else { return timestamp }
            return "\(parts[0]) \(parts[1].dropLast().prefix(fraction ? 12 : 8)) UTC"
        }

        private func known(_ nanoseconds: Int64?) -> String { nanoseconds.map(duration) ?? "-" }
    }
}
