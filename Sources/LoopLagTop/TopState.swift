/// What the person has chosen: selection, sort, filter, pause, threshold, which pane has the keys.
///
/// Owned by the live view, on its thread; changed by `TopKeys` only. A plain value: screens are functions of it and of
/// the picture.

import LoopLagModel

public enum Pane: Int, Sendable, CaseIterable { case loops, stalls, stack }

/// What the table of loops goes by; ties and `.found` keep the order in which processes were found.
public enum SortOrder: String, Sendable, CaseIterable {
    case found = "order found", busy, p99, max, stalls
}

public struct TopState: Sendable {
    public var focus: Pane = .stalls
    /// Row of the table; nil is the first.
    public var selectedRow: String?
    /// Stall in the list; nil follows the first, which is the longest open one or the latest.
    public var selectedStall: String?
    /// First line of the stack that is shown.
    public var stackTop = 0
    public var sort: SortOrder = .found
    public var filter = ""
    /// The filter is being typed.
    public var isTyping = false
    public var isPaused = false
    /// The stack has the whole screen.
    public var isExpanded = false
    public var showsHelp = false
    public var helpTop = 0
    /// Only this loop's stalls are listed.
    public var onlyLoop: String?
    public var threshold: Duration
    /// The last thing that was done, until the next key.
    public var message: String?

    public init(threshold: Duration) { self.threshold = threshold }
}

public enum Key: Hashable, Sendable {
    case character(Character)
    case up, down, pageUp, pageDown, home, end, enter, escape, tab, backTab, backspace, interrupt
}

/// What a key asks of the world outside the screen.
public enum Effect: Hashable, Sendable {
    case none
    case quit
    case threshold(Duration)
    /// The stall as JSON into the terminal's clipboard.
    case copy(stall: String)
    /// The stall as JSON into a file.
    case save(stall: String)
    /// Draw everything anew.
    case redraw
}
