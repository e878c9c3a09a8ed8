//! Patterns of `Conflicts` and `Replaces`: Go's `path.Match`, as fleet used it.

/// A pattern for unit names. A pattern that is a unit's literal name matches it whatever its characters mean, so that
/// escapes such as `\x2d` need no second backslash.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern {
    text: String,
    form: Form,
}

/// Forms that need no interpreter; names hold no `/`, so that a star matches anything.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Form {
    Literal,
    /// One star, what stands before it and what behind.
    Affixes(String, String),
    Glob(Vec<char>),
}

impl Pattern {
    /// Takes any text; one that is malformed matches its own text alone.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let plain = |part: &str| !part.contains(['*', '?', '[', '\\']);
        let form = match text.split_once('*') {
            None if plain(text) => Form::Literal,
            Some((prefix, suffix)) if plain(prefix) && plain(suffix) => {
                Form::Affixes(prefix.to_owned(), suffix.to_owned())
            }
            _ => Form::Glob(text.chars().collect()),
        };
        Self {
            text: text.to_owned(),
            form,
        }
    }

    /// The pattern as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the pattern matches a unit's whole name.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match &self.form {
            Form::Literal => self.text == name,
            Form::Affixes(prefix, suffix) => name
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.ends_with(suffix.as_str())),
            Form::Glob(pattern) => {
                self.text == name || glob(pattern, &name.chars().collect::<Vec<_>>()) == Some(true)
            }
        }
    }
}

/// One element of a pattern and how many characters of the pattern it takes.
enum Element<'a> {
    Star,
    Any,
    Literal(char),
    Class {
        negated: bool,
        /// What stands between the brackets, the `^` left out.
        ranges: &'a [char],
    },
}

/// `None` for a malformed pattern. The time is bounded by the product of the lengths: of several stars only the last is
/// tried again.
fn glob(pattern: &[char], name: &[char]) -> Option<bool> {
    well_formed(pattern)?;
    let (mut p, mut n) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let step = match element(pattern, p)? {
            Some((Element::Star, length)) => {
                p += length;
                retry = Some((p, n));
                continue;
            }
            Some((element, length)) => name.get(n).filter(|c| fits(&element, **c)).map(|_| length),
            None if n == name.len() => return Some(true),
            None => None,
        };
        match (step, retry) {
            (Some(length), _) => {
                p += length;
                n += 1;
            }
            (None, Some((after, from))) if from < name.len() && name.get(from) != Some(&'/') => {
                retry = Some((after, from + 1));
                p = after;
                n = from + 1;
            }
            (None, _) => return Some(false),
        }
    }
}

fn well_formed(pattern: &[char]) -> Option<()> {
    let mut at = 0;
    while let Some((element, length)) = element(pattern, at)? {
        if let Element::Class { ranges, .. } = element {
            class_has(ranges, '\0')?;
        }
        at += length;
    }
    Some(())
}

/// The element at an offset: `Some(None)` at the end, `None` when it is malformed.
#[allow(
    clippy::option_option,
    reason = "malformed and ended are different things"
)]
fn element(pattern: &[char], at: usize) -> Option<Option<(Element<'_>, usize)>> {
    let Some(first) = pattern.get(at) else {
        return Some(None);
    };
    Some(Some(match first {
        '*' => (Element::Star, 1),
        '?' => (Element::Any, 1),
        '\\' => (Element::Literal(*pattern.get(at + 1)?), 2),
        '[' => {
            let negated = pattern.get(at + 1) == Some(&'^');
            let start = at + 1 + usize::from(negated);
            let mut end = start;
            loop {
                match pattern.get(end)? {
                    ']' if end > start => break,
                    '\\' => end += 2,
                    _ => end += 1,
                }
            }
            let ranges = pattern.get(start..end)?;
            (Element::Class { negated, ranges }, end + 1 - at)
        }
        other => (Element::Literal(*other), 1),
    }))
}

fn fits(element: &Element<'_>, c: char) -> bool {
    match element {
        Element::Star => false,
        Element::Any => c != '/',
        Element::Literal(wanted) => *wanted == c,
        Element::Class { negated, ranges } => {
            class_has(ranges, c).is_some_and(|has| has != *negated)
        }
    }
}

/// Whether a class holds a character; `None` when it is malformed (`[-x]`, `[a-]`, `[]a]`).
fn class_has(ranges: &[char], c: char) -> Option<bool> {
    let mut at = 0;
    let mut found = false;
    let one = |at: &mut usize| -> Option<char> {
        let mut c = *ranges.get(*at)?;
        if matches!(c, '-' | ']') {
            return None;
        }
        if c == '\\' {
            *at += 1;
            c = *ranges.get(*at)?;
        }
        *at += 1;
        Some(c)
    };
    while at < ranges.len() {
        let low = one(&mut at)?;
        let mut high = low;
        if ranges.get(at) == Some(&'-') {
            at += 1;
            high = one(&mut at)?;
        }
        found |= (low..=high).contains(&c);
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_go() {
        for (pattern, name, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "abc", true),
            ("a*b*c*d*e*x", "axbxcxdxexxxx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a[!x]b", "axb", true),
            ("[x-]", "x", false),
            ("[\\-x]", "-", true),
            ("[", "a", false),
            ("[a", "a", false),
            ("a{b,c}", "ab", false),
            ("web@*.service", "web@1.service", true),
            ("web@*.service", "web.service", false),
            ("*x", "xxx", true),
            ("", "", true),
        ] {
            assert_eq!(
                Pattern::new(pattern).matches(name),
                expected,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn a_literal_name_matches_itself_though_it_holds_escapes() {
        assert!(Pattern::new("a\\x2db.service").matches("a\\x2db.service"));
        assert!(Pattern::new("a\\\\x2db.service").matches("a\\x2db.service"));
    }

    proptest::proptest! {
        #[test]
        fn the_answer_is_that_of_the_plain_recursion(pattern in "[ab*?]{0,8}", name in "[ab]{0,8}") {
            fn plain(p: &[u8], n: &[u8]) -> bool {
                match (p.split_first(), n.split_first()) {
                    (None, _) => n.is_empty(),
                    (Some((b'*', rest)), _) => (0..=n.len()).any(|skip| plain(rest, &n[skip..])),
                    (Some((b'?', rest)), Some((_, tail))) => plain(rest, tail),
                    (Some((c, rest)), Some((d, tail))) => c == d && plain(rest, tail),
                    (Some(_), None) => false,
                }
            }
            proptest::prop_assert_eq!(Pattern::new(&pattern).matches(&name), plain(pattern.as_bytes(), name.as_bytes()));
        }

        #[test]
        fn no_pattern_panics(pattern in ".{0,12}", name in ".{0,12}") {
            let _ = Pattern::new(&pattern).matches(&name);
        }
    }
}
