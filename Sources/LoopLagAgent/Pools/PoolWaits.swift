/// How long items wait in a first-in-first-out queue, from looks at the queue and at those who have taken from it: an item
/// is seen when it has come and is missed when it has gone. Exact to about half the time between two looks. What came and
/// went between two looks is known by its holder, and counts as not having waited; what nobody holds any more at the
/// second look is not seen at all.
///
/// Watchdog only; fixed memory.

import CLoopLag

struct PoolWaits {
    private struct Item {
        var address: UInt64
        var since: UInt64
        var position: Int
        /// Gone at the last look; kept for one more, in which it may still find its holder.
        var hasEnded: Bool
    }

    private static let itemLimit = 64
    private static let waitLimit = 256
    static let holderLimit = 128
    /// What is looked at of a queue.
    static let longestQueue = 1024
    static let bytes: Int = itemLimit &* MemoryLayout<Item>.stride &+ (waitLimit &* 2 &+ holderLimit) &* 8

    private let items: UnsafeMutablePointer<Item>
    private let waits: UnsafeMutablePointer<UInt64>
    private let sorted: UnsafeMutablePointer<UInt64>
    private let known: UnsafeMutablePointer<UInt64>
    private var itemCount = 0
    private var holders = 0
    private(set) var count: UInt64 = 0
    private(set) var longest: UInt64 = 0
    private var lastLook: UInt64 = 0
    /// The end of the queue at the look before: what lies behind it has come since.
    private var end: (address: UInt64, position: Int) = (0, 0)
    /// Something lay in the queue that is not followed: whoever holds something new may have waited.
    private var hasUnfollowed = true

    init(_ memory: UnsafeMutableRawPointer) {
        items = memory.bindMemory(to: Item.self, capacity: Self.itemLimit)
        let rest = memory + Self.itemLimit &* MemoryLayout<Item>.stride
        waits = rest.bindMemory(to: UInt64.self, capacity: Self.waitLimit)
        sorted = (rest + Self.waitLimit &* 8).bindMemory(to: UInt64.self, capacity: Self.waitLimit)
        known = (rest + Self.waitLimit &* 16).bindMemory(to: UInt64.self, capacity: Self.holderLimit)
    }

    /// Forgets everything: the memory belongs to another queue now.
    /// - Parameter since: when that queue was surely empty; 0 = not known, and so are the waits of what lies in it.
    mutating func clear(since: UInt64) {
        itemCount = 0
        holders = 0
        count = 0
        longest = 0
        lastLook = since
        end = (0, 0)
        hasUnfollowed = since == 0
    }

    /// - Parameters:
    ///   - queue: what waits now, the next to be served first; at most `longestQueue` of it.
    ///   - holding: the `held` that have been taken out and are being worked on; nil where that cannot be seen.
    ///   - arrival: when what was not there at the look before is likely to have come; 0 = half-way.
    ///   - isWhole: false where the queue goes on behind what is given.
    mutating func look(
        _ queue: UnsafePointer<UInt64>, count queued: Int, holding: UnsafePointer<UInt64>? = nil, held: Int = 0,
        now: UInt64, arrival: UInt64 = 0, isWhole: Bool = true
    ) {
        let isFirst = lastLook == 0
        let middle = isFirst ? now : lastLook &+ (now &- lastLook) / 2
        lastLook = now
        take(holding, held < Self.holderLimit ? held : Self.holderLimit, isFirst: isFirst)
        var i = 0
        while i < itemCount {
            let position = index(of: items[i].address, queue, queued)
            // In such a queue nothing moves back: the memory of one that has gone holds another one now.
            if !items[i].hasEnded, position >= 0, position <= items[i].position {
                items[i].position = position
                i &+= 1
                continue
            }
            if !items[i].hasEnded {
                record(middle > items[i].since ? middle &- items[i].since : 0)
                items[i].hasEnded = true
                i &+= 1
                continue
            }
            itemCount &-= 1
            items[i] = items[itemCount]
        }
        // When it came before the first look is not known.
        if !isFirst { follow(queue, queued, since: arrival != 0 ? arrival : middle) }
        end = queued > 0 ? (queue[queued &- 1], queued &- 1) : (0, 0)
        hasUnfollowed = !isWhole || followed < queued
    }

    private var followed: Int {
        var count = 0
        var i = 0
        while i < itemCount {
            if !items[i].hasEnded { count &+= 1 }
            i &+= 1
        }
        return count
    }

    /// Whoever holds what was neither in the queue nor held before has hardly waited.
    private mutating func take(_ holding: UnsafePointer<UInt64>?, _ count: Int, isFirst: Bool) {
        guard let holding else { return }
        if !isFirst, !hasUnfollowed, holders < Self.holderLimit {
            var i = 0
            while i < count {
                if !wasHeld(holding[i]), !isKnown(holding[i], orEnded: true) { record(0) }
                i &+= 1
            }
        }
        var i = 0
        while i < count {
            known[i] = holding[i]
            i &+= 1
        }
        holders = count
    }

    private func wasHeld(_ address: UInt64) -> Bool {
        var i = 0
        while i < holders {
            if known[i] == address { return true }
            i &+= 1
        }
        return false
    }

    /// Of those that have come since, the last ones: they will have waited longest.
    private mutating func follow(_ queue: UnsafePointer<UInt64>, _ queued: Int, since: UInt64) {
        var position = queued
        while position > 0, itemCount < Self.itemLimit {
            position &-= 1
            let address = queue[position]
            if (address == end.address && position <= end.position) || isKnown(address, orEnded: false) { break }
            items[itemCount] = Item(address: address, since: since, position: position, hasEnded: false)
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

    private func isKnown(_ address: UInt64, orEnded: Bool) -> Bool {
        var i = 0
        while i < itemCount {
            if items[i].address == address, orEnded || !items[i].hasEnded { return true }
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
