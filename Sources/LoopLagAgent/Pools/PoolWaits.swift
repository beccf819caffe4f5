/// How long items wait in a first-in-first-out queue, from looks at the queue: an item is seen when it has come and is
/// missed when it has gone. Exact to about half the time between two looks; what comes and goes between two looks is not
/// seen at all.
///
/// Watchdog only; fixed memory.

import CLoopLag

struct PoolWaits {
    private struct Item {
        var address: UInt64
        var since: UInt64
        var position: Int
    }

    private static let itemLimit = 64
    private static let waitLimit = 256
    static let bytes = itemLimit &* MemoryLayout<Item>.stride &+ waitLimit &* 16

    private let items: UnsafeMutablePointer<Item>
    private let waits: UnsafeMutablePointer<UInt64>
    private let sorted: UnsafeMutablePointer<UInt64>
    private var itemCount = 0
    private(set) var count: UInt64 = 0
    private(set) var longest: UInt64 = 0
    private var lastLook: UInt64 = 0

    init(_ memory: UnsafeMutableRawPointer) {
        items = memory.bindMemory(to: Item.self, capacity: Self.itemLimit)
        let rest = memory + Self.itemLimit &* MemoryLayout<Item>.stride
        waits = rest.bindMemory(to: UInt64.self, capacity: Self.waitLimit)
        sorted = (rest + Self.waitLimit &* 8).bindMemory(to: UInt64.self, capacity: Self.waitLimit)
    }

    /// - Parameter queue: what waits now, the next to be served first.
    mutating func look(_ queue: UnsafePointer<UInt64>, count queued: Int, now: UInt64) {
        let middle = lastLook == 0 ? now : lastLook &+ (now &- lastLook) / 2
        lastLook = now
        var i = 0
        while i < itemCount {
            let position = index(of: items[i].address, queue, queued)
            // In such a queue nothing moves back: the memory of one that has gone holds another one now.
            if position >= 0, position <= items[i].position {
                items[i].position = position
                i &+= 1
                continue
            }
            record(middle > items[i].since ? middle &- items[i].since : 0)
            itemCount &-= 1
            items[i] = items[itemCount]
        }
        // Of those that have come since, the last ones: they will have waited longest.
        var position = queued
        while position > 0, itemCount < Self.itemLimit {
            position &-= 1
            guard !isKnown(queue[position]) else { break }
            items[itemCount] = Item(address: queue[position], since: middle, position: position)
            itemCount &+= 1
        }
    }

    private func index(of address: UInt64, _ queue: UnsafePointer<UInt64>, _ queued: Int) -> Int {
        var i = 0
        while i < queued {
            if queue[i] == address { return i }
            i &+= 1
        }
        return -1
    }

    private func isKnown(_ address: UInt64) -> Bool {
        var i = 0
        while i < itemCount {
            if items[i].address == address { return true }
            i &+= 1
        }
        return false
    }

    /// A wait that was measured, by the looks or by a probe.
    mutating func record(_ wait: UInt64) {
        waits[Int(truncatingIfNeeded: count % UInt64(Self.waitLimit))] = wait
        count &+= 1
        if wait > longest { longest = wait }
    }

    /// Of the last few hundred waits; 0 without any.
    mutating func percentiles() -> (median: UInt64, p99: UInt64) {
        let known = count < UInt64(Self.waitLimit) ? Int(truncatingIfNeeded: count) : Self.waitLimit
        guard known > 0 else { return (0, 0) }
        var i = 0
        while i < known {
            let value = waits[i]
            var place = i
            while place > 0, sorted[place &- 1] > value {
                sorted[place] = sorted[place &- 1]
                place &-= 1
            }
            sorted[place] = value
            i &+= 1
        }
        return (sorted[known / 2], sorted[(known &* 99) / 100])
    }
}
