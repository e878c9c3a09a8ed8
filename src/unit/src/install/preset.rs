//! Preset files (`systemd.preset(5)`): `enable PATTERN [INSTANCE…]`, `disable PATTERN`, `ignore PATTERN`.

use crate::name::UnitName;

/// What presets say of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Enable it; of a template, these instances.
    Enable(Vec<String>),
    /// Disable it.
    Disable,
    /// Leave it alone.
    Ignore,
}

/// The lines of all preset files, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Presets(Vec<(String, Preset)>);

impl Presets {
    /// Adds a file; files are read in the order of their names. Lines that say nothing are given back, with their numbers.
    pub fn add(&mut self, text: &str) -> Vec<u32> {
        let mut unknown = Vec::new();
        for (line, number) in text.lines().zip(1u32..) {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            let mut words = line.split_whitespace();
            let (word, pattern) = (words.next(), words.next());
            let preset = match word {
                Some("enable") => Preset::Enable(words.map(str::to_owned).collect()),
                Some("disable") => Preset::Disable,
                Some("ignore") => Preset::Ignore,
                _ => {
                    unknown.push(number);
                    continue;
                }
            };
            match pattern {
                Some(pattern) => self.0.push((pattern.to_owned(), preset)),
                None => unknown.push(number),
            }
        }
        unknown
    }

    /// What the first line that fits says; a unit that no line names is enabled.
    #[must_use]
    pub fn decide(&self, name: &UnitName) -> Preset {
        let template = name.template();
        for (pattern, preset) in &self.0 {
            if fits_pattern(pattern, name.as_str()) {
                return preset.clone();
            }
            // `enable a@.service x` speaks of a@x.service too.
            if let (Some(template), Preset::Enable(instances)) = (&template, preset)
                && fits_pattern(pattern, template.as_str())
                && name
                    .instance()
                    .is_some_and(|instance| instances.iter().any(|i| i == instance))
            {
                return Preset::Enable(Vec::new());
            }
        }
        Preset::Enable(Vec::new())
    }
}

/// Whether a shell pattern (`*`, `?`, `[a-z]`, `[!a]`) fits the whole text. Takes at most pattern times text steps.
#[must_use]
pub fn fits_pattern(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    // For each number of characters of the text: whether the pattern so far fits them.
    let mut fits: Vec<bool> = std::iter::once(true)
        .chain(std::iter::repeat_n(false, text.len()))
        .collect();
    let mut rest = pattern.as_slice();
    while let Some((first, tail)) = rest.split_first() {
        if *first == '*' {
            let mut any = false;
            for fit in &mut fits {
                any |= *fit;
                *fit = any;
            }
            rest = tail;
            continue;
        }
        let class = (*first == '[').then(|| class(tail)).flatten();
        let one = |c: char| match (first, &class) {
            (_, Some((members, negated, _))) => {
                members.iter().any(|(from, to)| (*from..=*to).contains(&c)) != *negated
            }
            ('?', _) => true,
            (literal, _) => *literal == c,
        };
        let moved = fits.iter().zip(&text).map(|(fit, c)| *fit && one(*c));
        fits = std::iter::once(false).chain(moved).collect();
        rest = class.as_ref().map_or(tail, |(_, _, after)| after);
    }
    fits.last().copied().unwrap_or(false)
}

/// The ranges of a class, whether it is negated, and what follows its `]`.
type Class<'a> = (Vec<(char, char)>, bool, &'a [char]);

fn class(pattern: &[char]) -> Option<Class<'_>> {
    let (negated, mut rest) = match pattern {
        ['!' | '^', rest @ ..] => (true, rest),
        _ => (false, pattern),
    };
    let mut members = Vec::new();
    loop {
        match rest {
            [']', tail @ ..] if !members.is_empty() => return Some((members, negated, tail)),
            [from, '-', to, tail @ ..] if *to != ']' => {
                members.push((*from, *to));
                rest = tail;
            }
            [one, tail @ ..] => {
                members.push((*one, *one));
                rest = tail;
            }
            [] => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_the_shell_has_it() {
        for (pattern, text, fit) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]]x", "]x", true),
            ("[a", "[a", true),
            ("*.service", "a.timer", false),
            ("a@*.service", "a@b.service", true),
        ] {
            assert_eq!(fits_pattern(pattern, text), fit, "{pattern} {text}");
        }
    }

    #[test]
    fn the_first_line_that_fits_decides() {
        let mut presets = Presets::default();
        let unknown = presets
            .add("# x\nenable ssh.service\nenable g@.service a b\nperhaps x\ndisable\ndisable *\n");
        assert_eq!(unknown, [4, 5]);
        let decide = |name: &str| presets.decide(&UnitName::parse(name).unwrap());
        assert_eq!(decide("ssh.service"), Preset::Enable(vec![]));
        assert_eq!(
            decide("g@.service"),
            Preset::Enable(vec!["a".into(), "b".into()])
        );
        assert_eq!(decide("g@a.service"), Preset::Enable(vec![]));
        assert_eq!(decide("g@c.service"), Preset::Disable);
        let nothing = Presets::default();
        assert_eq!(
            nothing.decide(&UnitName::parse("x.service").unwrap()),
            Preset::Enable(vec![])
        );
    }

    proptest::proptest! {
        #[test]
        fn no_pattern_panics(pattern in "[a-c*?!^\\[\\]-]{0,12}", text in "[a-c\\]-]{0,8}") {
            let _ = fits_pattern(&pattern, &text);
            proptest::prop_assert!(fits_pattern(&text.replace(['[', ']'], "?"), &text));
        }
    }
}
