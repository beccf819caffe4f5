/// What the inspector's way in reads and writes as text: procfs's table of sockets, the inspector's answers, JavaScript.

import Testing

@testable import LoopLagAttach

@Suite("Inspector, as text")
struct InspectorParsingTests {
    @Test("Listening sockets are read with the address to connect to, wildcards as the loopback")
    func listeners() {
        let table = """
              sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
               0: 0100007F:240D 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 205865 1 0 100
               1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1 0 100
               2: 0100007F:240E 0100007F:9000 01 00000000:00000000 00:00000000 00000000     0        0 8 1 0 100
               3: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 9 1
               4: 00000000000000000000000001000000:0051 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 10 1
               5: 0000000000000000FFFF00000100007F:0052 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 11 1
               6: nonsense
            """
        #expect(
            Listener.parse(Array(table.utf8)) == [
                Listener(inode: 205865, port: 9229, host: "127.0.0.1"),
                Listener(inode: 7, port: 8080, host: "127.0.0.1"), Listener(inode: 9, port: 80, host: "::1"),
                Listener(inode: 10, port: 81, host: "0:0:0:0:0:0:0:1"),
                Listener(inode: 11, port: 82, host: "127.0.0.1"),
            ])
    }

    @Test("An answer is its text, or the first line of what was thrown; anything else is no inspector")
    func answers() throws {
        let value = #"{"id":1,"result":{"result":{"type":"string","value":"yes"}}}"#
        #expect(try InspectorClient.value(value) == "yes")
        let thrown = """
            {"id":1,"result":{"result":{"type":"object"},"exceptionDetails":{"text":"Uncaught",
            "exception":{"description":"Error: no such object\\n    at file.js:1"}}}}
            """
        #expect(throws: InspectorError.threw("Error: no such object")) { try InspectorClient.value(thrown) }
        #expect(throws: InspectorError.threw("no method")) {
            try InspectorClient.value(#"{"id":1,"error":{"code":-32601,"message":"no method"}}"#)
        }
        for text in ["", "[]", "{}", #"{"result":{"result":{"value":7}}}"#, "HTTP/1.1 200 OK"] {
            #expect(throws: InspectorError.self, "\(text)") { try InspectorClient.value(text) }
        }
    }

    @Test("A text becomes a JavaScript literal that nothing in it can end")
    func literals() {
        #expect(NodeProgram.literal("/a b/c.so") == #""/a b/c.so""#)
        #expect(NodeProgram.literal("\"\\\n\0é\u{2028}") == #""\u0022\u005c\u000a\u0000\u00e9\u2028""#)
    }

    @Test("Modules that a source loads by a relative path are found, packages are not")
    func relativeNames() {
        let source = #"const a = require('./a'), b = require("pkg"); import c from "../lib/c.mjs"; await import(`./d`)"#
        #expect(NodeProcess.relativeNames(Array(source.utf8)) == ["./a", "../lib/c.mjs", "./d"])
    }
}
