import Testing

@testable import LoopLagSymbols

@Suite struct NameTests {
    @Test(
        "Swift names are what a person wrote",
        arguments: [
            (
                "static App.Menu.price(of: Swift.String, _: Swift.Int) async throws -> Swift.Double",
                "static App.Menu.price(of:_:)"
            ),
            (
                "closure #1 (Swift.Int) throws -> Swift.Int in App.Menu.total([Swift.String]) -> Swift.Int",
                "closure #1 in App.Menu.total(_:)"
            ),
            (
                "closure #1 @Sendable () async -> () in closure #2 () -> () in App.main() -> ()",
                "closure #1 in closure #2 in App.main()"
            ),
            ("inner #1 (x: Swift.Int) -> () in App.outer() -> ()", "inner(x:) #1 in App.outer()"),
            (
                "(extension in App):Swift.Array< where A == App.Dish>.serve(App.Menu) -> [Swift.Int]",
                "App.Array.serve(_:)"
            ),
            ("App.(helper in _0123456789ABCDEF)(x: Swift.Int) -> ()", "App.helper(x:)"),
            (
                "generic specialization <Swift.Int, [Swift.String]> of App.run<A, B>(A, with: B) -> ()",
                "App.run(_:with:)"
            ),
            ("function signature specialization <Arg[0] = Owned To Guaranteed> of App.f(A) -> ()", "App.f(_:)"),
            (
                "(1) await resume partial function for App.handle(App.Request) async -> App.Response",
                "App.handle(_:)"
            ),
            (
                "(2) suspend resume partial function for closure #1 () async -> () in App.main() -> ()",
                "closure #1 in App.main()"
            ),
            (
                "partial apply forwarder for closure #1 () -> () in App.main() -> ()",
                "partial apply for closure #1 in App.main()"
            ),
            ("App.Menu.title.getter : Swift.String", "App.Menu.title.getter"),
            ("App.Menu.subscript.getter : (Swift.Int) -> Swift.String", "App.Menu.subscript.getter"),
            ("static App.Menu.== infix(App.Menu, App.Menu) -> Swift.Bool", "static App.Menu.==(_:_:)"),
            ("static App.Menu.< infix(App.Menu, App.Menu) -> Swift.Bool", "static App.Menu.<(_:_:)"),
            ("App.Menu.__allocating_init(name: Swift.String) -> App.Menu", "App.Menu.init(name:)"),
            ("App.Soup.__deallocating_deinit", "App.Soup.deinit"),
            (
                "protocol witness for App.Dish.cook(App.Menu) throws -> Swift.Int in conformance App.Soup : App.Dish in App",
                "protocol witness for App.Dish.cook(_:) in App.Soup"
            ),
            ("App.each<A where A: Swift.Sequence>(A, do: (A.Element) -> ()) -> ()", "App.each(_:do:)"),
            (
                "App.f(_: (Swift.Int, x: Swift.Int) -> Swift.Dictionary<Swift.String, Swift.Int>, last: ()) -> ()",
                "App.f(_:last:)"
            ),
            (
                "reabstraction thunk helper from @escaping @callee_guaranteed () -> () to @escaping () -> (@out ())",
                "reabstraction thunk"
            ),
            ("type metadata accessor for Swift.Array<Swift.Int>", "type metadata accessor for Array<Int>"),
            ("main", "main"), ("", ""), ("App.f(", "App.f"), (">>>(((", ">>>"),
        ])
    func swiftNames(full: String, expected: String) {
        #expect(SwiftName.simplify(full) == expected)
    }

    @Test(
        "C++ and Rust names are qualified names",
        arguments: [
            ("void ns::Pool<int>::run(std::string const&) const", "ns::Pool<int>::run"),
            (
                "v8::internal::(anonymous namespace)::Invoke(v8::internal::Isolate*, int)",
                "v8::internal::(anonymous namespace)::Invoke"
            ),
            ("std::function<int (long)>::operator()(long) const", "std::function<int (long)>::operator()"),
            ("ns::Value::operator bool() const", "ns::Value::operator bool"),
            ("std::ostream& operator<< <char>(std::ostream&, char)", "operator<< <char>"),
            ("node::Start(int)::{lambda(void*)#1}::_FUN(void*)", "node::Start::{lambda(void*)#1}::_FUN"),
            ("non-virtual thunk to ns::A::f(int)", "non-virtual thunk to ns::A::f"),
            ("vtable for ns::A", "vtable for ns::A"),
            ("core::ops::function::FnOnce::call_once::h0123456789abcdef", "core::ops::function::FnOnce::call_once"),
            (
                "_$LT$alloc..vec..Vec$LT$T$GT$$u20$as$u20$core..ops..Drop$GT$::drop::h0123456789abcdef",
                "_<alloc::vec::Vec<T> as core::ops::Drop>::drop"
            ),
            ("f", "f"), ("", ""), ("(", ""), ("a<b(c", "a<b(c"),
        ])
    func cxxNames(full: String, expected: String) {
        #expect(CxxName.simplify(full) == expected)
    }

    @Test("Mangled names are demangled by their own language, plain ones and broken ones kept")
    func demangling() {
        #expect(Demangler.demangle("$s5block4MenuV5price2of_SiSS_SitF").name == "block.Menu.price(of:_:)")
        #expect(Demangler.demangle("$s5block4MenuV5price2of_SiSS_SitF").isSwift)
        #expect(
            Demangler.demangle("$s5block4MenuV5price2of_SiSS_SitFTf4nnd_n.resume.0").name == "block.Menu.price(of:_:)")
        #expect(Demangler.demangle("_ZN2ns4PoolIiE3runEv").name == "ns::Pool<int>::run")
        #expect(Demangler.demangle("_ZN2ns3fooEi.isra.0").name == "ns::foo")
        #expect(Demangler.demangle("parse_options.constprop.0").name == "parse_options")
        #expect(Demangler.demangle("lshift.part.1.cold").name == "lshift")
        #expect(Demangler.demangle("poll@plt").name == "poll@plt")
        #expect(Demangler.demangle("name.with.dots").name == "name.with.dots")
        #expect(Demangler.demangle("_Z") == .init(name: "_Z", isSwift: false))
        #expect(Demangler.demangle("$sBroken") == .init(name: "$sBroken", isSwift: true))
        let long = "$s" + String(repeating: "S", count: 100_000)
        #expect(Demangler.demangle(long).name == long)
    }

    @Test("Source paths lose their detours")
    func sourcePaths() {
        #expect(SourcePath.normalized("/a/./b/../c.c") == "/a/c.c")
        #expect(SourcePath.normalized("./misc/../sysdeps/x.c") == "sysdeps/x.c")
        #expect(SourcePath.normalized("../../x.c") == "../../x.c")
        #expect(SourcePath.normalized("/a/b.c") == "/a/b.c")
        #expect(SourcePath.normalized("") == "")
    }
}
