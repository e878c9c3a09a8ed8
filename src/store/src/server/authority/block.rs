//! A header block of HPACK's (RFC 7541): finding a literal by its name's place in the static table, and replacing its value.
//! Nothing here needs the dynamic table.

use std::ops::Range;

/// The most octets that an integer of a header block may go on for; longer ones are h2's to refuse.
const MAX_MORE_OCTETS: u32 = 3;
/// A string in Huffman's code has this bit set in its first octet (RFC 7541 §5.2).
const HUFFMAN: u8 = 0x80;

/// A literal's value in a block.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Literal {
    /// The value with its length.
    string: Range<usize>,
    /// The value's octets.
    octets: Range<usize>,
    huffman: bool,
}

/// The first literal whose name is the one at `name` of the static table. `None` if there is none, or the block is not
/// well-formed up to it.
pub(super) fn literal(block: &[u8], name: usize) -> Option<Literal> {
    let mut at = 0;
    while let Some(&first) = block.get(at) {
        // RFC 7541 §6: how many bits of the first octet belong to the number.
        let (bits, has_value) = match first {
            0x80.. => (7, false),
            0x40..=0x7f => (6, true),
            0x20..=0x3f => (5, false),
            _ => (4, true),
        };
        let (number, next) = integer(block, at, bits)?;
        at = next;
        if !has_value {
            continue;
        }
        if number == 0 {
            at = string(block, at)?.string.end;
        }
        let value = string(block, at)?;
        if number == name {
            return Some(value);
        }
        at = value.string.end;
    }
    None
}

impl Literal {
    /// The value; `None` if it is badly coded or has characters that no URL has.
    pub(super) fn decoded(&self, block: &[u8]) -> Option<Vec<u8>> {
        let octets = block.get(self.octets.clone())?;
        if self.huffman {
            huffman_decoded(octets)
        } else {
            Some(octets.to_vec())
        }
    }

    /// The block with another value.
    pub(super) fn replaced(&self, block: &[u8], value: &[u8]) -> Option<Vec<u8>> {
        let mut out = block.get(..self.string.start)?.to_vec();
        // RFC 7541 §5.1, with a prefix of seven bits.
        match u8::try_from(value.len()) {
            Ok(length @ ..0x7f) => out.push(length),
            _ => {
                out.push(0x7f);
                let mut rest = value.len() - 0x7f;
                while rest >= 0x80 {
                    out.push(0x80 | (rest & 0x7f) as u8);
                    rest >>= 7;
                }
                out.push((rest & 0x7f) as u8);
            }
        }
        out.extend_from_slice(value);
        out.extend_from_slice(block.get(self.string.end..)?);
        Some(out)
    }
}

/// RFC 7541 §5.1: a number whose first `bits` bits are at `at`, and where the next thing is.
fn integer(block: &[u8], at: usize, bits: u32) -> Option<(usize, usize)> {
    let mask = (1_usize << bits) - 1;
    let mut number = usize::from(*block.get(at)?) & mask;
    let mut next = at + 1;
    if number < mask {
        return Some((number, next));
    }
    for more in 0..MAX_MORE_OCTETS {
        let octet = usize::from(*block.get(next)?);
        next += 1;
        number += (octet & 0x7f) << (7 * more);
        if octet & 0x80 == 0 {
            return Some((number, next));
        }
    }
    None
}

/// RFC 7541 §5.2: the string at `at`.
fn string(block: &[u8], at: usize) -> Option<Literal> {
    let huffman = block.get(at)? & HUFFMAN != 0;
    let (length, start) = integer(block, at, 7)?;
    let end = start.checked_add(length)?;
    block.get(start..end)?;
    Some(Literal {
        string: at..end,
        octets: start..end,
        huffman,
    })
}

/// RFC 7541, appendix B, which is a canonical code: for each length, its first code, and the characters in order. Those of
/// more than 13 bits stand in no URL.
const CODES: [(u32, u32, &[u8]); 8] = [
    (5, 0x0, b"012aceiost"),
    (6, 0x14, b" %-./3456789=A_bdfghlmnpru"),
    (7, 0x5c, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, 0xf8, b"&*,;XZ"),
    (10, 0x3f8, b"!\"()?"),
    (11, 0x7fa, b"'+|"),
    (12, 0xffa, b"#>"),
    (13, 0x1ff8, b"\0$@[]~"),
];
/// A string's last octet is filled with at most so many ones.
const MAX_FILL_BITS: u32 = 7;

fn huffman_decoded(octets: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut code, mut length) = (0_u32, 0);
    let bits = octets
        .iter()
        .flat_map(|octet| (0..8).rev().map(move |bit| u32::from(octet >> bit & 1)));
    for bit in bits {
        code = code << 1 | bit;
        length += 1;
        let found = CODES.iter().find(|(bits, ..)| *bits == length);
        let character = found.and_then(|(_, first, characters)| {
            let place = code.checked_sub(*first)?;
            characters.get(usize::try_from(place).ok()?)
        });
        if let Some(character) = character {
            out.push(*character);
            (code, length) = (0, 0);
        } else if length > 13 {
            return None;
        }
    }
    let filled = length <= MAX_FILL_BITS && code + 1 == 1 << length;
    filled.then_some(out)
}

#[cfg(test)]
pub(super) fn huffman_encoded(text: &[u8]) -> Vec<u8> {
    let mut bits = String::new();
    for character in text {
        let (length, code) = CODES
            .iter()
            .find_map(|(length, first, characters)| {
                let place = characters.iter().position(|c| c == character)?;
                Some((*length as usize, *first as usize + place))
            })
            .expect("it stands in URLs");
        bits.push_str(&format!("{code:0length$b}"));
    }
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    let octet = |bits: &[u8]| bits.iter().fold(0, |octet, bit| octet << 1 | (bit - b'0'));
    bits.as_bytes().chunks(8).map(octet).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7541, appendices C.4 and C.6.
    #[test]
    fn the_examples_of_the_specification_are_read() {
        let coded = [
            0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
        ];
        let text = b"www.example.com";
        assert_eq!(huffman_decoded(&coded).as_deref(), Some(&text[..]));
        assert_eq!(huffman_encoded(text), coded);
        let mut block = vec![0x82, 0x86, 0x84, 0x41, 0x8c];
        block.extend_from_slice(&coded);
        let found = literal(&block, 1).expect("it is there");
        assert_eq!(found.decoded(&block).as_deref(), Some(&text[..]));
        let url = b"https://www.example.com";
        assert_eq!(
            huffman_decoded(&huffman_encoded(url)).as_deref(),
            Some(&url[..])
        );
        assert_eq!(literal(&block, 4), None);
    }

    #[test]
    fn long_values_have_their_length_in_several_octets() {
        let block = [0x41, 1, b'x', 0x82];
        let found = literal(&block, 1).expect("it is there");
        for length in [126, 127, 128, 254, 255, 300, 5000] {
            let value = vec![b'v'; length];
            let replaced = found.replaced(&block, &value).expect("it fits");
            let again = literal(&replaced, 1).expect("it is there");
            assert_eq!(again.decoded(&replaced), Some(value));
            assert_eq!(replaced.last(), Some(&0x82));
        }
    }

    #[test]
    fn bad_blocks_hold_no_literal() {
        for block in [
            &[0x41][..],
            &[0x41, 5, b'a'],
            &[0x7f, 0x80, 0x80, 0x80, 0x80, 1],
            &[0x40, 0x85, 1, 0x41, 0],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0x41, 1, b'x'],
        ] {
            assert_eq!(literal(block, 1), None, "{block:?}");
        }
        assert_eq!(huffman_decoded(&[0xff, 0xff, 0xff]), None);
        assert_eq!(
            huffman_decoded(&[0]),
            None,
            "its last octet is not filled with ones"
        );
    }
}
