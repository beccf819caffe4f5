/// `looplag report FILE`: a recorded report for reading, or as JSON again.
///
/// Main thread. The file may come from anywhere: it is checked before anything is printed, and what cannot be read is
/// one line that says why.

import ArgumentParser
import Foundation
import Glibc
import LoopLagModel
import LoopLagReport

struct ReportVerb: ParsableCommand {
    enum Format: String, CaseIterable, ExpressibleByArgument { case text, json }

    static let configuration = CommandConfiguration(
        commandName: "report", abstract: "Show a recorded report, or write it in another format.")

    @Argument(help: ArgumentHelp("A report that run or record wrote; - is standard input.", valueName: "file"))
    var file: String

    @Option(name: .shortAndLong, help: ArgumentHelp("text or json.", valueName: "format"))
    var format: Format = .text

    @Option(name: .shortAndLong, help: ArgumentHelp("Write to a file instead of standard output.", valueName: "file"))
    var output: String?

    /// More than any recording makes; a wrong file must not fill the memory.
    private static let limit = 512 << 20

    func run() throws {
        let data = try read()
        let report: Report
        do throws(ReportError) {
            report = try ReportCoding.decode(data)
        } catch {
            throw Failure("cannot read \(name): \(error.message)")
        }
        let file = OutputFile(path: output ?? "-")
        try file.check()
        switch format {
        case .text: try file.write(Array(TextReport.render(report).utf8))
        case .json: try file.write(report: report)
        }
    }

    private var name: String { file == "-" ? "standard input" : file }

    private func read() throws(Failure) -> Data {
        let descriptor = file == "-" ? dup(STDIN_FILENO) : open(file, O_RDONLY | O_CLOEXEC | O_NOCTTY)
        guard descriptor >= 0 else {
            let hint = errno == ENOENT ? "; 'looplag record' and 'looplag run -o' write reports" : ""
            throw Failure("cannot read \(name): \(Console.reason(errno))\(hint)")
        }
        defer { close(descriptor) }
        var content = Data()
        var chunk = [UInt8](repeating: 0, count: 256 << 10)
        while true {
            let count = Glibc.read(descriptor, &chunk, chunk.count)
            if count < 0 && errno == EINTR { continue }
            if count < 0 { throw Failure("cannot read \(name): \(Console.reason(errno))") }
            if count == 0 { return content }
            content.append(contentsOf: chunk.prefix(count))
            if content.count > Self.limit { throw Failure("cannot read \(name): it is larger than any report") }
        }
    }
}

extension OutputFile {
    func write(report: Report) throws(Failure) {
        let data: Data
        do throws(ReportError) {
            data = try ReportCoding.encode(report)
        } catch {
            throw Failure(error.message)
        }
        try write(Array(data))
    }
}
