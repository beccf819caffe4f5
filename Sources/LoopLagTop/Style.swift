/// Lines with meaning: text in spans, each with a style that the terminal turns into colours or attributes.
///
/// Used by every part of the screen, on any thread. Pure. A style never says anything that the text does not say too.

import LoopLagDiagnosis

public enum Style: Sendable, Hashable {
    case plain, bold, dim
    /// Delays and states: well, worth a look, too long.
    case good, fair, bad
}

public struct Span: Sendable, Hashable {
    public var text: String
    public var style: Style

    public init(_ text: String, _ style: Style = .plain) {
        self.text = text
        self.style = style
    }
}

public struct StyledLine: Sendable, Hashable {
    public var spans: [Span]
    /// Shown in reverse: the selection of the pane that has the keys.
    public var isReversed: Bool

    public init(_ spans: [Span] = [], isReversed: Bool = false) {
        self.spans = spans
        self.isReversed = isReversed
    }

    public init(_ text: String, _ style: Style = .plain) { self.init([Span(text, style)]) }

    public var text: String { spans.map(\.text).joined() }

    static func + (line: StyledLine, span: Span) -> StyledLine {
        StyledLine(line.spans + [span], isReversed: line.isReversed)
    }

    /// At most `columns` wide, without blanks at its end (but a reversed one goes to the edge).
    func fitted(_ columns: Int, _ glyphs: Glyphs) -> StyledLine {
        var room = columns
        var result: [Span] = []
        for span in spans {
            let width = glyphs.width(span.text)
            if width <= room {
                result.append(span)
                room -= width
                continue
            }
            let rest = glyphs.clip(span.text, room)
            if !rest.isEmpty {
                result.append(Span(rest, span.style))
                room -= glyphs.width(rest)
            }
            break
        }
        if isReversed {
            if room > 0 { result.append(Span(String(repeating: " ", count: room))) }
        } else {
            while var last = result.popLast() {
                while last.text.last == " " { last.text.removeLast() }
                guard last.text.isEmpty else {
                    result.append(last)
                    break
                }
            }
        }
        return StyledLine(result, isReversed: isReversed)
    }
}
