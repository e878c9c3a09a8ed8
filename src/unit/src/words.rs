//! Splitting values into words: quotes and C escapes (`systemd.syntax(7)`, "Quoting").

use std::iter::Peekable;
use std::str::CharIndices;

/// One word of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    /// Without quotes, escapes replaced.
    pub(crate) text: String,
    /// Byte offset of its first character in the value.
    pub(crate) offset: usize,
    /// Exactly this text stood in the file: no quote and no escape.
    pub(crate) plain: bool,
}

/// What is wrong with a value's quoting; offsets are in bytes of the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WordError {
    /// A quote is not closed.
    Quote { offset: usize },
    /// An escape stands for something that no text can hold.
    Escape { offset: usize },
}

impl WordError {
    pub(crate) fn offset(&self) -> usize {
        match self {
            Self::Quote { offset } | Self::Escape { offset } => *offset,
        }
    }

    pub(crate) fn message(&self) -> &'static str {
        match self {
            Self::Quote { .. } => "quote is not closed",
            Self::Escape { .. } => "escape does not stand for valid text",
        }
    }
}

/// Iterates over the words of a value, and gathers the unknown escapes, which stay as they are.
#[derive(Debug)]
pub(crate) struct Words<'a> {
    chars: Peekable<CharIndices<'a>>,
    value: &'a str,
    pub(crate) unknown_escapes: Vec<usize>,
}

/// Replaces the C escapes of a text that is no list of words; `None` when one is broken or unknown.
pub(crate) fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut words = Words::new(text);
    let mut out = Vec::new();
    while let Some((offset, c)) = words.chars.next() {
        if c == '\\' {
            words.escape(offset, &mut out).ok()?;
        } else {
            push_char(&mut out, c);
        }
    }
    words.unknown_escapes.is_empty().then_some(out)
}

impl<'a> Words<'a> {
    pub(crate) fn new(value: &'a str) -> Self {
        Self {
            chars: value.char_indices().peekable(),
            value,
            unknown_escapes: Vec::new(),
        }
    }

    fn word(&mut self, start: usize) -> Result<Word, WordError> {
        let mut text = Vec::new();
        let mut quote: Option<(char, usize)> = None;
        let mut plain = true;
        while let Some(&(offset, c)) = self.chars.peek() {
            if quote.is_none() && is_space(c) {
                break;
            }
            self.chars.next();
            match (c, quote) {
                ('\\', _) => {
                    plain = false;
                    self.escape(offset, &mut text)?;
                }
                (_, Some((open, _))) if c == open => quote = None,
                ('"' | '\'', None) => {
                    plain = false;
                    quote = Some((c, offset));
                }
                _ => push_char(&mut text, c),
            }
        }
        if let Some((_, offset)) = quote {
            return Err(WordError::Quote { offset });
        }
        let text = String::from_utf8(text).map_err(|_| WordError::Escape { offset: start })?;
        Ok(Word {
            text,
            offset: start,
            plain,
        })
    }

    /// Handles what follows a backslash at `offset`.
    fn escape(&mut self, offset: usize, text: &mut Vec<u8>) -> Result<(), WordError> {
        let Some((_, c)) = self.chars.next() else {
            text.push(b'\\');
            return Ok(());
        };
        let simple = match c {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            's' => b' ',
            '\\' | '"' | '\'' => u8::try_from(c).unwrap_or(b'\\'),
            'x' => return self.numeric(offset, text, "", 2, 16),
            'u' => return self.numeric(offset, text, "", 4, 16),
            'U' => return self.numeric(offset, text, "", 8, 16),
            '0'..='7' => {
                let mut first = [0; 4];
                return self.numeric(offset, text, c.encode_utf8(&mut first), 3, 8);
            }
            _ => {
                self.unknown_escapes.push(offset);
                text.push(b'\\');
                push_char(text, c);
                return Ok(());
            }
        };
        text.push(simple);
        Ok(())
    }

    fn numeric(
        &mut self,
        offset: usize,
        text: &mut Vec<u8>,
        first: &str,
        digits: usize,
        radix: u32,
    ) -> Result<(), WordError> {
        let mut number = first.to_owned();
        while number.len() < digits {
            match self.chars.next() {
                Some((_, c)) if c.is_digit(radix) => number.push(c),
                _ => return Err(WordError::Escape { offset }),
            }
        }
        let error = WordError::Escape { offset };
        let value = u32::from_str_radix(&number, radix).map_err(|_| error.clone())?;
        if value == 0 {
            return Err(error);
        }
        if digits > 3 {
            push_char(text, char::from_u32(value).ok_or(error)?);
        } else {
            text.push(u8::try_from(value).map_err(|_| error)?);
        }
        Ok(())
    }

    /// What has not been split yet, from its first character that is not white space.
    pub(crate) fn rest(&mut self) -> &'a str {
        while self.chars.next_if(|(_, c)| is_space(*c)).is_some() {}
        let offset = self
            .chars
            .peek()
            .map_or(self.value.len(), |(offset, _)| *offset);
        self.value.get(offset..).unwrap_or_default()
    }

    /// Passes over `count` characters as they stand.
    pub(crate) fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.chars.next();
        }
    }
}

impl Iterator for Words<'_> {
    type Item = Result<Word, WordError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.chars.next_if(|(_, c)| is_space(*c)).is_some() {}
        let (start, _) = *self.chars.peek()?;
        let word = self.word(start);
        if word.is_err() {
            // Nothing after an error can be trusted.
            self.chars = "".char_indices().peekable();
        }
        Some(word)
    }
}

pub(crate) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

fn push_char(text: &mut Vec<u8>, c: char) {
    let mut buffer = [0; 4];
    text.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes());
}

/// Splits the value of a variable at run time: quotes hold words together, a broken quote ends with the value, and a
/// backslash protects the next character.
pub(crate) fn split_relaxed(value: &str, out: &mut Vec<String>) {
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (_, None) if is_space(c) => out.extend(word.take()),
            ('\\', _) => word
                .get_or_insert_default()
                .push(chars.next().unwrap_or('\\')),
            (_, Some(open)) if c == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            _ => word.get_or_insert_default().push(c),
        }
    }
    out.extend(word);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(value: &str) -> Vec<String> {
        Words::new(value).map(|w| w.unwrap().text).collect()
    }

    #[test]
    fn quotes_wrap_items_and_vanish() {
        assert_eq!(
            split(r#"a "b c" 'd  e' f"g h"i """#),
            ["a", "b c", "d  e", "fg hi", ""]
        );
    }

    #[test]
    fn escapes_are_those_of_c() {
        assert_eq!(
            split(r#"\x41\102\u00e9\U0001F600 a\sb "\t\"" \xc3\xa9"#),
            ["ABé😀", "a b", "\t\"", "é"]
        );
    }

    #[test]
    fn an_unknown_escape_stays_and_is_told() {
        let mut words = Words::new(r"a\qb");
        assert_eq!(words.next().unwrap().unwrap().text, r"a\qb");
        assert_eq!(words.unknown_escapes, [1]);
    }

    #[test]
    fn broken_quoting_is_an_error_with_its_place() {
        let last = |v: &str| Words::new(v).last().unwrap().unwrap_err().offset();
        assert_eq!(last("abc 'def"), 4);
        assert_eq!(last(r"ab \x4"), 3);
        assert_eq!(last(r"ab \x00"), 3);
        assert_eq!(last(r"ab \777"), 3);
        assert_eq!(last(r"ab \ud800"), 3);
        assert_eq!(last(r"ab \xff"), 3);
    }

    proptest::proptest! {
        #[test]
        fn no_value_panics(value in "\\PC{0,60}") {
            let _ = Words::new(&value).count();
            split_relaxed(&value, &mut Vec::new());
        }

        #[test]
        fn double_quoted_text_comes_back(text in "[^\\\\\"\u{0}]{1,40}") {
            proptest::prop_assert_eq!(split(&format!("\"{text}\"")), [text]);
        }
    }
}
