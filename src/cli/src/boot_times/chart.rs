//! The steps of a boot as a chart, in the manner of `systemd-analyze plot`: SVG 1.1, a bar a step below an axis of time.

use super::{Step, ms};

const WIDTH: f64 = 1000.0;
/// Room for the name of a step that begins at the right edge.
const MARGIN_RIGHT: f64 = 320.0;
const MARGIN: f64 = 20.0;
const AXIS_TOP: f64 = 70.0;
const ROW: f64 = 20.0;
/// More rows than this are not drawn: they would not be seen, either.
const ROWS_MAX: usize = 5000;

/// The kinds of steps, each with a colour of its own, and what the legend says of them.
const KINDS: [(&str, &str); 3] = [
    ("boot", "boot stage"),
    ("unit", "unit"),
    ("step", "PID 1 and setup"),
];

const UNIT_TYPES: [&str; 9] = [
    "service", "target", "mount", "timer", "socket", "path", "slice", "device", "scope",
];

const STYLE: &str = "\
rect.boot{fill:#7a9cc6}rect.step{fill:#c9a66b}rect.unit{fill:#7fb285}rect.back{fill:#fff}\
line{stroke:#ddd}line.second{stroke:#aaa}\
text{font-family:sans-serif;font-size:12px;fill:#222}text.title{font-size:16px}text.axis{fill:#777}";

/// The whole document. `steps` are in the order of their starts.
pub(super) fn svg(steps: &[Step], title: &str) -> String {
    let steps = &steps[..steps.len().min(ROWS_MAX)];
    let end_ms = steps.iter().map(|step| ms(step.end_ns)).fold(1.0, f64::max);
    let scale = WIDTH / end_ms;
    let x = |at_ms: f64| MARGIN + at_ms * scale;
    let bottom = AXIS_TOP + ROW * steps.len() as f64 + 8.0;
    let (width, height) = (WIDTH + MARGIN + MARGIN_RIGHT, bottom + MARGIN);
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" version=\"1.1\" width=\"{width:.0}\" height=\"{height:.0}\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"back\" width=\"100%\" height=\"100%\"/>\n\
         <text class=\"title\" x=\"{MARGIN}\" y=\"28\">{title}: {end_ms:.1} ms</text>\n",
        title = escape(title),
    );
    for (index, (class, legend)) in KINDS.iter().enumerate() {
        let left = MARGIN + 160.0 * index as f64;
        out.push_str(&format!(
            "<rect class=\"{class}\" x=\"{left}\" y=\"38\" width=\"12\" height=\"12\"/>\
             <text x=\"{}\" y=\"49\">{legend}</text>\n",
            left + 18.0
        ));
    }
    let tick_ms = tick(end_ms);
    for index in 0..=(end_ms / tick_ms) as u32 {
        let at_ms = f64::from(index) * tick_ms;
        let class = if index % 10 == 0 { "second" } else { "minor" };
        out.push_str(&format!(
            "<line class=\"{class}\" x1=\"{x:.1}\" y1=\"{AXIS_TOP}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>\
             <text class=\"axis\" x=\"{x:.1}\" y=\"{:.1}\">{at_ms:.0}</text>\n",
            AXIS_TOP - 4.0,
            x = x(at_ms),
        ));
    }
    for (row, step) in steps.iter().enumerate() {
        let (start_ms, took_ms) = (ms(step.start_ns), ms(step.end_ns - step.start_ns));
        let top = AXIS_TOP + ROW * row as f64 + 4.0;
        let class = kind(&step.name);
        // A step too short for a pixel is still to be seen.
        let length = (took_ms * scale).max(1.0);
        out.push_str(&format!(
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{length:.1}\" height=\"14\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{} ({took_ms:.1} ms)</text>\n",
            x(start_ms),
            x(start_ms) + 4.0,
            top + 11.0,
            escape(&step.name),
        ));
    }
    out.push_str("</svg>\n");
    out
}

/// Which of [`KINDS`] a step is, by its name.
fn kind(name: &str) -> &'static str {
    let is_unit = |(_, suffix): (&str, &str)| UNIT_TYPES.contains(&suffix);
    if name.starts_with("boot.") {
        "boot"
    } else if name.rsplit_once('.').is_some_and(is_unit) {
        "unit"
    } else {
        "step"
    }
}

/// The distance of lines on the axis: 1, 2 or 5 of some power of ten, at most 25 of them.
fn tick(end_ms: f64) -> f64 {
    let mut power = 1.0;
    loop {
        for step in [1.0, 2.0, 5.0] {
            if end_ms / (step * power) <= 25.0 {
                return step * power;
            }
        }
        power *= 10.0;
    }
}

/// Text as XML has it (XML 1.0 sections 2.2 and 2.4); characters that XML does not have are question marks.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\t' => out.push(c),
            '\u{fffe}' | '\u{ffff}' => out.push('?'),
            _ if c.is_control() => out.push('?'),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails unless the text is well-formed in what this document uses of XML: elements, attributes, five entities.
    /// Answers the elements with their attributes.
    fn well_formed(text: &str) -> Vec<(String, Vec<(String, String)>)> {
        let mut rest = text
            .strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n")
            .expect("the declaration");
        let (mut open, mut seen) = (Vec::new(), Vec::new());
        let check = |text: &str| {
            for part in text.split('&').skip(1) {
                let entity = part.split_once(';').expect("an entity ends").0;
                assert!(["amp", "lt", "gt", "quot"].contains(&entity), "{entity}");
            }
            assert!(
                !text.contains('<')
                    && !text
                        .chars()
                        .any(|c| c.is_control() && c != '\n' && c != '\t')
            );
        };
        while let Some((text, tail)) = rest.split_once('<') {
            check(text);
            assert!(
                !open.is_empty() || text.trim().is_empty(),
                "text outside: {text}"
            );
            let (tag, tail) = tail.split_once('>').expect("a tag ends");
            rest = tail;
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name));
                continue;
            }
            let (tag, is_empty) = match tag.strip_suffix('/') {
                Some(tag) => (tag, true),
                None => (tag, false),
            };
            let (name, mut attributes) = tag.split_once(' ').unwrap_or((tag, ""));
            let mut pairs: Vec<(String, String)> = Vec::new();
            while !attributes.is_empty() {
                let (key, tail) = attributes.split_once("=\"").expect("an attribute's value");
                let (value, tail) = tail.split_once('"').expect("a value ends");
                check(value);
                assert!(pairs.iter().all(|(other, _)| other != key), "{key} twice");
                pairs.push((key.to_owned(), value.to_owned()));
                attributes = tail.strip_prefix(' ').unwrap_or(tail);
            }
            seen.push((name.to_owned(), pairs));
            if !is_empty {
                open.push(name.to_owned());
            }
        }
        assert!(open.is_empty() && rest.trim().is_empty());
        seen
    }

    fn step(name: &str, start_ms: u64, end_ms: u64) -> Step {
        Step {
            start_ns: start_ms * 1_000_000,
            end_ns: end_ms * 1_000_000,
            name: name.to_owned(),
        }
    }

    #[test]
    fn each_step_is_a_bar_at_its_time_with_its_name() {
        let steps = [
            step("boot.drivers", 0, 100),
            step("setup", 100, 150),
            step("we<b>&\"\u{1}.service", 150, 200),
        ];
        let text = svg(&steps, "Orlop <1>");
        let elements = well_formed(&text);
        assert_eq!(elements[0].0, "svg");
        let bars: Vec<Vec<&str>> = elements
            .iter()
            .filter(|(name, attributes)| {
                name == "rect" && attributes.iter().any(|(_, value)| value == "14")
            })
            .map(|(_, attributes)| attributes.iter().map(|(_, value)| value.as_str()).collect())
            .collect();
        // 1000 pixels are 200 ms.
        assert_eq!(
            bars,
            [
                ["boot", "20.0", "74.0", "500.0", "14"],
                ["step", "520.0", "94.0", "250.0", "14"],
                ["unit", "770.0", "114.0", "250.0", "14"],
            ]
        );
        assert!(text.contains(">we&lt;b&gt;&amp;&quot;?.service (50.0 ms)</text>"));
        assert!(text.contains("<title>Orlop &lt;1&gt;</title>"));
    }

    #[test]
    fn the_axis_has_a_bearable_number_of_lines() {
        for (end_ms, tick_ms) in [
            (1.0, 1.0),
            (25.0, 1.0),
            (26.0, 2.0),
            (200.0, 10.0),
            (3_000.0, 200.0),
        ] {
            assert_eq!(tick(end_ms), tick_ms, "{end_ms}");
        }
        for steps in [&[][..], &[step("a", 0, 0)], &[step("a", 5, 3_600_000)]] {
            let lines = well_formed(&svg(steps, "x"));
            assert!(lines.iter().filter(|(name, _)| name == "line").count() <= 26);
        }
    }
}
