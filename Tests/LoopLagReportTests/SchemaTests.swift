import Foundation
import LoopLagModel
import LoopLagReport
import Testing

@Suite("The report's JSON Schema")
struct SchemaTests {
    private static let url = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        .appendingPathComponent("Sources/LoopLagReport/looplag.report.schema.json")

    private static func schema() throws -> [String: Any] {
        try #require(try JSONSerialization.jsonObject(with: Data(contentsOf: url)) as? [String: Any])
    }

    private static let environment = ProcessInfo.processInfo.environment

    /// A python with jsonschema: LOOPLAG_TEST_PYTHON, else the one that Tests/setup.sh made.
    private static let python: String? = {
        if let named = environment["LOOPLAG_TEST_PYTHON"], !named.isEmpty { return named }
        let cache = environment["XDG_CACHE_HOME"].flatMap { $0.isEmpty ? nil : $0 } ?? NSHomeDirectory() + "/.cache"
        let text = try? String(contentsOfFile: cache + "/looplag-tests/env", encoding: .utf8)
        let line = text?.split(separator: "\n").last { $0.hasPrefix("PYTHON=") }
        return line.map { String($0.dropFirst("PYTHON=".count)) }
    }()

    /// In CI a missing validator is a failure, elsewhere the test is skipped.
    private static let isRequired = !(environment["CI"] ?? "").isEmpty

    @Test("It is a schema of the 2020-12 draft, closed over its own references")
    func wellFormed() throws {
        let schema = try Self.schema()
        #expect(schema["$schema"] as? String == "https://json-schema.org/draft/2020-12/schema")
        let definitions = try #require(schema["$defs"] as? [String: Any])
        var used: Set<String> = []
        func walk(_ value: Any) {
            if let object = value as? [String: Any] {
                if let reference = object["$ref"] as? String { used.insert(reference) }
                object.values.forEach(walk)
            } else if let array = value as? [Any] {
                array.forEach(walk)
            }
        }
        walk(schema)
        #expect(used == Set(definitions.keys.map { "#/$defs/\($0)" }))
    }

    @Test("Its enumerations are the model's")
    func enumerations() throws {
        let definitions = try #require(try Self.schema()["$defs"] as? [String: [String: Any]])
        func values(_ definition: String, _ property: String) throws -> Set<String> {
            let properties = try #require(definitions[definition]?["properties"] as? [String: [String: Any]])
            return Set(try #require(properties[property]?["enum"] as? [String]))
        }
        #expect(try values("stall", "cause") == Set(Cause.allCases.map(\.rawValue)))
        #expect(try values("loop", "role") == ["server", "helper"])
        let kinds: [FrameKind] = [.native, .swift, .python, .javascript, .kernel]
        #expect(try values("frame", "kind") == Set(kinds.map(\.rawValue)))
        let methods: [CaptureMethod] = [.signal, .passive, .interrupt, .ptrace, .passiveReconstructed]
        #expect(try values("sample", "method") == Set(methods.map(\.rawValue)))
    }

    @Test("Every key that a report is written with is in the schema")
    func keysAreKnown() throws {
        let schema = try Self.schema()
        var known: Set<String> = []
        func walk(_ value: Any) {
            if let object = value as? [String: Any] {
                if let properties = object["properties"] as? [String: Any] { known.formUnion(properties.keys) }
                object.values.forEach(walk)
            } else if let array = value as? [Any] {
                array.forEach(walk)
            }
        }
        walk(schema)
        let report = try JSONSerialization.jsonObject(with: try ReportCoding.encode(SampleReport.everything))
        var used: Set<String> = []
        func collect(_ value: Any) {
            if let object = value as? [String: Any] {
                for (key, inner) in object {
                    used.insert(key)
                    // The names of evidence are open.
                    if key != "evidence" { collect(inner) }
                }
            } else if let array = value as? [Any] {
                array.forEach(collect)
            }
        }
        collect(report)
        #expect(used.subtracting(known).isEmpty)
    }

    @Test("Reports validate against it, and broken ones do not", .enabled(if: python != nil || isRequired))
    func validates() throws {
        let python = try #require(Self.python, "run Tests/setup.sh, or set LOOPLAG_TEST_PYTHON")
        let bare = ReportBuilder.build(SampleReport.input([]))
        #expect(try Self.validate(SampleReport.everything, with: python) == 0)
        #expect(try Self.validate(bare, with: python) == 0)
        var broken = SampleReport.everything
        broken.processes[0].loops[0].utilization = 1.5
        #expect(try Self.validate(broken, with: python) == 1)
        broken = SampleReport.everything
        broken.recorded.start = "yesterday"
        #expect(try Self.validate(broken, with: python) == 1)
    }

    /// 0 valid, 1 invalid, 2 when the validator itself failed.
    private static func validate(_ report: Report, with python: String) throws -> Int32 {
        let folder = FileManager.default.temporaryDirectory
            .appendingPathComponent("looplag-schema-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let file = folder.appendingPathComponent("report.json")
        try ReportCoding.encode(report).write(to: file)
        let program = """
            import json, sys
            try:
                import jsonschema
                schema = json.load(open(sys.argv[1]))
                jsonschema.Draft202012Validator.check_schema(schema)
                report = json.load(open(sys.argv[2]))
                errors = list(jsonschema.Draft202012Validator(schema).iter_errors(report))
            except Exception as error:
                print(error, file=sys.stderr)
                sys.exit(2)
            for error in errors: print(error.json_path, error.message)
            sys.exit(1 if errors else 0)
            """
        let process = Process()
        process.executableURL = URL(fileURLWithPath: python)
        process.arguments = ["-c", program, url.path, file.path]
        try process.run()
        process.waitUntilExit()
        return process.terminationStatus
    }
}
