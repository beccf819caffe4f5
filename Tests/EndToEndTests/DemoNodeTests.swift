/// The demo's Node.js server, shown on a pipe.

import Foundation
import Testing

extension EndToEnd {
    @Suite("The demo's node server")
    struct DemoNodeTests {
        @Test("demo --host node shows the functions that block, and says what is missing where node is not")
        func demo() throws {
            let node = try Tools.installed("NODE")
            let result = try LoopLagTool.run(
                ["demo", "--host", "node", "--duration", "7s"], environment: ["LOOPLAG_NODE": node],
                within: .seconds(60))
            #expect(result.status == .exited(0), "\(result.errors)")
            #expect(
                ["renderReport", "checkPassword", "findProducts", "convertImage", "loadCatalogue"].contains {
                    result.output.contains($0)
                },
                "\(result.output)")
            let list = try LoopLagTool.run(["demo", "--host", "node", "--list"], environment: ["LOOPLAG_NODE": node])
            #expect(list.output.contains("/uploads"), "\(list.errors)")
            let missing = try LoopLagTool.run(
                ["demo", "--host", "node"], environment: ["LOOPLAG_NODE": "/nowhere/node"])
            #expect(missing.status == .exited(1))
            #expect(missing.errors.contains("cannot run /nowhere/node"), "\(missing.errors)")
        }
    }
}
