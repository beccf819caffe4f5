// A release build full of inlining, closures and generics, that ends in a sleep. Compiled by the tests.

#if canImport(Glibc)
    import Glibc
#endif

protocol Dish {
    var name: String { get }
    func cook(_ menu: Menu) throws -> Int
}

struct Menu {
    var prices: [String: Int]

    @inline(never)
    func price(of name: String, _ portions: Int) -> Int {
        if portions == 3 { nap() }
        return (prices[name] ?? 0) * portions
    }

    @inline(__always)
    func total(_ names: [String]) -> Int { names.enumerated().map { price(of: $1, $0) }.reduce(0, +) }

    @inline(__always)
    private func nap() {
        var duration = timespec(tv_sec: 1000, tv_nsec: 0)
        print("ready")
        fflush(nil)
        nanosleep(&duration, nil)
    }
}

final class Soup: Dish {
    let name = "soup"
    func cook(_ menu: Menu) throws -> Int { menu.total([name, "bread", "salt", "water", "basil"]) }
}

struct Plate<Element: Comparable> {
    var elements: [Element]
    func best() -> Element? { elements.filter { $0 > elements[0] }.sorted().last ?? elements.max() }
}

extension Array where Element == any Dish {
    @inline(never)
    func serve(_ menu: Menu) -> [Int] { compactMap { try? $0.cook(menu) } }
}

let menu = Menu(prices: ["soup": 4, "bread": 1])
let dishes: [any Dish] = [Soup()]
let numbers = dishes.serve(menu)
print(Plate(elements: numbers).best() ?? 0, Plate(elements: dishes.map(\.name)).best() ?? "")
