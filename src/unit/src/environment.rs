//! The files that `EnvironmentFile=` names (`systemd.exec(5)`).

use crate::directive::exec::environment_name;

/// The largest number of assignments taken from one file.
const MAX_ASSIGNMENTS: usize = 4096;

/// Reads the assignments of a file, in order. Lines that are none are passed over, as a shell-like file may hold them.
///
/// `#` and `;` start comments; a backslash at a line's end joins it with the next; single quotes keep everything,
/// double quotes keep all but `\` before `" \ $` and a backquote; outside of quotes a backslash protects one character
/// and white space around the value goes.
#[must_use]
pub fn parse_environment_file(text: &str) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut chars = text
        .strip_prefix('\u{feff}')
        .unwrap_or(text)
        .chars()
        .peekable();
    while chars.peek().is_some() && out.len() < MAX_ASSIGNMENTS {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.next_if(|c| matches!(c, '#' | ';')).is_some() {
            // A comment, too, goes on after a backslash.
            let mut escaped = false;
            for c in chars.by_ref() {
                match c {
                    '\n' if !escaped => break,
                    '\\' => escaped = !escaped,
                    _ => escaped = false,
                }
            }
            continue;
        }
        let mut name = String::new();
        while let Some(c) = chars.next_if(|c| !matches!(c, '=' | '\n')) {
            name.push(c);
        }
        if chars.next() != Some('=') {
            continue;
        }
        let name = name.trim();
        let name = name.strip_prefix("export ").map_or(name, str::trim_start);
        let value = value(&mut chars);
        if environment_name(name) {
            out.push((name.to_owned(), value));
        }
    }
    out
}

fn value(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> String {
    while chars.next_if(|c| matches!(c, ' ' | '\t' | '\r')).is_some() {}
    let mut value = String::new();
    // Up to where trailing white space must stay because it was quoted.
    let mut kept = 0;
    let mut quote = None;
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\n', None) => break,
            ('\'', Some('\'')) | ('"', Some('"')) => {
                quote = None;
                kept = value.len();
            }
            (c, Some('\'')) => value.push(c),
            ('\\', Some(_)) => match chars.next() {
                Some('\n') | None => {}
                Some(c @ ('"' | '\\' | '`' | '$')) => value.push(c),
                Some(c) => {
                    value.push('\\');
                    value.push(c);
                }
            },
            (c, Some(_)) => value.push(c),
            ('\\', None) => match chars.next() {
                Some('\n') | None => {}
                Some(c) => {
                    value.push(c);
                    kept = value.len();
                }
            },
            ('\'' | '"', None) => quote = Some(c),
            (c, None) => value.push(c),
        }
    }
    while value.len() > kept && value.ends_with([' ', '\t', '\r']) {
        value.pop();
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        parse_environment_file(text)
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|&(n, v)| (n.into(), v.into())).collect()
    }

    #[test]
    fn plain_quoted_and_continued_values() {
        let text = "# c\nA=1\n; c\nB = two words  \nC=\"x y \" \nD='$no\\'\nE=a\\\nb\nF=\"l1\nl2\"\nexport G=g\n\nH=\nI=a\"b c\"d\n";
        assert_eq!(
            read(text),
            pairs(&[
                ("A", "1"),
                ("B", "two words"),
                ("C", "x y "),
                ("D", "$no\\"),
                ("E", "ab"),
                ("F", "l1\nl2"),
                ("G", "g"),
                ("H", ""),
                ("I", "ab cd"),
            ])
        );
    }

    #[test]
    fn the_environment_file_of_coreos_is_read() {
        let text = "COREOS_PUBLIC_IPV4=203.0.113.5\r\nCOREOS_PRIVATE_IPV4=10.0.0.5\r\n";
        assert_eq!(
            read(text),
            pairs(&[
                ("COREOS_PUBLIC_IPV4", "203.0.113.5"),
                ("COREOS_PRIVATE_IPV4", "10.0.0.5")
            ])
        );
    }

    #[test]
    fn lines_that_assign_nothing_are_passed_over() {
        assert_eq!(
            read("nonsense\n1A=x\nA B=x\n=x\nOK=1"),
            pairs(&[("OK", "1")])
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "([=\\\\\n\"'# a-cä])*") {
            read(&text);
        }
    }
}
