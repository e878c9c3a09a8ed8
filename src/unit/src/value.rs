//! The simple values of directives: booleans, time spans, sizes, signals, exit statuses.

use std::fmt;

mod span;

pub use span::{Span, format_distance, format_span, parse_span, parse_span_in};

/// A signal's number on Linux x86-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Signal(pub i32);

impl Signal {
    /// SIGHUP
    pub const HUP: Self = Self(1);
    /// SIGINT
    pub const INT: Self = Self(2);
    /// SIGABRT
    pub const ABRT: Self = Self(6);
    /// SIGKILL
    pub const KILL: Self = Self(9);
    /// SIGPIPE
    pub const PIPE: Self = Self(13);
    /// SIGTERM
    pub const TERM: Self = Self(15);
    /// SIGCONT
    pub const CONT: Self = Self(18);

    /// The first real-time signal a program can use, after those that libc keeps.
    const RTMIN: i32 = 34;
    const RTMAX: i32 = 64;

    const NAMES: &[(&'static str, i32)] = &[
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ILL", 4),
        ("TRAP", 5),
        ("ABRT", 6),
        ("BUS", 7),
        ("FPE", 8),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("STKFLT", 16),
        ("CHLD", 17),
        ("CONT", 18),
        ("STOP", 19),
        ("TSTP", 20),
        ("TTIN", 21),
        ("TTOU", 22),
        ("URG", 23),
        ("XCPU", 24),
        ("XFSZ", 25),
        ("VTALRM", 26),
        ("PROF", 27),
        ("WINCH", 28),
        ("IO", 29),
        ("PWR", 30),
        ("SYS", 31),
        ("POLL", 29),
        ("CLD", 17),
        ("IOT", 6),
    ];

    /// Reads `SIGTERM`, `TERM`, `15`, `RTMIN+3`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse::<i32>() {
            return (1..=Self::RTMAX).contains(&number).then_some(Self(number));
        }
        let name = text.strip_prefix("SIG").unwrap_or(text);
        let real_time = |rest: &str, base: i32, sign: char| {
            let distance = match rest.strip_prefix(sign) {
                Some(digits) => digits.parse::<u8>().ok()?,
                None if rest.is_empty() => 0,
                None => return None,
            };
            let distance = i32::from(distance);
            let number = if sign == '+' {
                base.checked_add(distance)
            } else {
                base.checked_sub(distance)
            };
            number
                .filter(|n| (Self::RTMIN..=Self::RTMAX).contains(n))
                .map(Self)
        };
        if let Some(rest) = name.strip_prefix("RTMIN") {
            return real_time(rest, Self::RTMIN, '+');
        }
        if let Some(rest) = name.strip_prefix("RTMAX") {
            return real_time(rest, Self::RTMAX, '-');
        }
        Self::NAMES
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, number)| Self(*number))
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => write!(f, "SIG{name}"),
            None if self.0 >= Self::RTMIN => {
                write!(f, "SIGRTMIN+{}", self.0.saturating_sub(Self::RTMIN))
            }
            None => write!(f, "signal {}", self.0),
        }
    }
}

/// An amount of something that may also be a share of all there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// This many (bytes, tasks).
    Value(u64),
    /// This share, in 1/10000.
    Share {
        /// 10000 is all.
        permyriad: u32,
    },
    /// No limit.
    Infinity,
}

impl Limit {
    /// The number to write to a cgroup file, given the `total`; `None` stands for `max`.
    #[must_use]
    pub fn resolve(self, total: u64) -> Option<u64> {
        match self {
            Self::Value(value) => Some(value),
            Self::Share { permyriad } => {
                let share = u128::from(total).saturating_mul(u128::from(permyriad)) / 10_000;
                Some(u64::try_from(share).unwrap_or(u64::MAX))
            }
            Self::Infinity => None,
        }
    }
}

/// `1 yes true on y t` and `0 no false off n f`, in any case.
#[must_use]
pub fn parse_bool(text: &str) -> Option<bool> {
    const YES: [&str; 6] = ["1", "yes", "y", "true", "t", "on"];
    const NO: [&str; 6] = ["0", "no", "n", "false", "f", "off"];
    let is = |list: [&str; 6]| list.iter().any(|word| word.eq_ignore_ascii_case(text));
    if is(YES) {
        Some(true)
    } else if is(NO) {
        Some(false)
    } else {
        None
    }
}

/// Bytes: `512M`, `1.5G`; suffixes are powers of 1024.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = text.get(number.len()..)?;
    let shift = match suffix {
        "" | "B" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        "E" => 60,
        _ => return None,
    };
    let unit = 1u64.checked_shl(shift)?;
    let (whole, fraction) = number
        .trim_end()
        .split_once('.')
        .unwrap_or((number.trim_end(), ""));
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !plain(whole) || !plain(fraction) || fraction.len() > 9 {
        return None;
    }
    let mut bytes = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    if !fraction.is_empty() {
        let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let part = fraction
            .parse::<u128>()
            .ok()?
            .checked_mul(u128::from(unit))?
            .checked_div(scale)?;
        bytes = bytes.checked_add(u64::try_from(part).ok()?)?;
    }
    Some(bytes)
}

/// A percentage with up to two decimals, in 1/10000.
#[must_use]
pub fn parse_permyriad(text: &str) -> Option<u64> {
    let number = text.strip_suffix('%')?.trim_end();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 2
        || whole.is_empty()
        || !number.bytes().all(|b| b.is_ascii_digit() || b == b'.')
    {
        return None;
    }
    let hundredths: u64 = match fraction.len() {
        0 => 0,
        1 => fraction.parse::<u64>().ok()?.checked_mul(10)?,
        _ => fraction.parse().ok()?,
    };
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(100)?
        .checked_add(hundredths)
}

/// Bytes, a share of the memory, or `infinity`.
#[must_use]
pub fn parse_memory_limit(text: &str) -> Option<Limit> {
    parse_limit(text, parse_bytes)
}

/// A number of tasks, a share, or `infinity`.
#[must_use]
pub fn parse_count_limit(text: &str) -> Option<Limit> {
    parse_limit(text, |t| t.parse().ok())
}

fn parse_limit(text: &str, value: impl Fn(&str) -> Option<u64>) -> Option<Limit> {
    if text == "infinity" {
        return Some(Limit::Infinity);
    }
    if text.ends_with('%') {
        let permyriad = u32::try_from(parse_permyriad(text)?)
            .ok()
            .filter(|p| *p <= 10_000)?;
        return Some(Limit::Share { permyriad });
    }
    value(text).map(Limit::Value)
}

/// Octal permission bits.
#[must_use]
pub fn parse_mode(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777 && !text.starts_with('+'))
}

/// The names of exit codes (`systemd.exec(5)`, "Process Exit Codes"; LSB and BSD's `sysexits.h`).
const EXIT_CODES: &[(&str, u8)] = &[
    ("SUCCESS", 0),
    ("FAILURE", 1),
    ("INVALIDARGUMENT", 2),
    ("NOTIMPLEMENTED", 3),
    ("NOPERMISSION", 4),
    ("NOTINSTALLED", 5),
    ("NOTCONFIGURED", 6),
    ("NOTRUNNING", 7),
    ("USAGE", 64),
    ("DATAERR", 65),
    ("NOINPUT", 66),
    ("NOUSER", 67),
    ("NOHOST", 68),
    ("UNAVAILABLE", 69),
    ("SOFTWARE", 70),
    ("OSERR", 71),
    ("OSFILE", 72),
    ("CANTCREAT", 73),
    ("IOERR", 74),
    ("TEMPFAIL", 75),
    ("PROTOCOL", 76),
    ("NOPERM", 77),
    ("CONFIG", 78),
    ("CHDIR", 200),
    ("NICE", 201),
    ("FDS", 202),
    ("EXEC", 203),
    ("MEMORY", 204),
    ("LIMITS", 205),
    ("OOM_ADJUST", 206),
    ("SIGNAL_MASK", 207),
    ("STDIN", 208),
    ("STDOUT", 209),
    ("CHROOT", 210),
    ("IOPRIO", 211),
    ("TIMERSLACK", 212),
    ("SECUREBITS", 213),
    ("SETSCHEDULER", 214),
    ("CPUAFFINITY", 215),
    ("GROUP", 216),
    ("USER", 217),
    ("CAPABILITIES", 218),
    ("CGROUP", 219),
    ("SETSID", 220),
    ("CONFIRM", 221),
    ("STDERR", 222),
    ("PAM", 224),
    ("NETWORK", 225),
    ("NAMESPACE", 226),
    ("NO_NEW_PRIVILEGES", 227),
    ("SECCOMP", 228),
    ("SELINUX_CONTEXT", 229),
    ("PERSONALITY", 230),
    ("APPARMOR", 231),
    ("ADDRESS_FAMILIES", 232),
    ("RUNTIME_DIRECTORY", 233),
    ("CHOWN", 235),
    ("SMACK_PROCESS_LABEL", 236),
    ("KEYRING", 237),
    ("STATE_DIRECTORY", 238),
    ("CACHE_DIRECTORY", 239),
    ("LOGS_DIRECTORY", 240),
    ("CONFIGURATION_DIRECTORY", 241),
    ("NUMA_POLICY", 242),
    ("CREDENTIALS", 243),
    ("BPF", 244),
    ("EXCEPTION", 255),
];

/// An exit code by name or number.
#[must_use]
pub fn parse_exit_code(text: &str) -> Option<u8> {
    text.parse().ok().or_else(|| {
        EXIT_CODES
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, code)| *code)
    })
}

/// The name of an exit code, for status lines.
#[must_use]
pub fn exit_code_name(code: u8) -> Option<&'static str> {
    EXIT_CODES
        .iter()
        .find(|(_, c)| *c == code)
        .map(|(name, _)| *name)
}

/// What a text in Base64 (RFC 4648 §4) stands for; white space between its characters means nothing.
pub(crate) fn base64(text: &str) -> Option<Vec<u8>> {
    let text: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let mut out = Vec::new();
    let mut groups = text.chunks(4).peekable();
    while let Some(group) = groups.next() {
        let is_last = groups.peek().is_none();
        let padding = group.iter().rev().take_while(|b| **b == b'=').count();
        if group.len() != 4 || padding > 2 || (padding > 0 && !is_last) {
            return None;
        }
        let mut bits = 0_u32;
        for byte in group {
            let value = match byte {
                b'A'..=b'Z' => byte.checked_sub(b'A')?,
                b'a'..=b'z' => byte.checked_sub(b'a')?.checked_add(26)?,
                b'0'..=b'9' => byte.checked_sub(b'0')?.checked_add(52)?,
                b'+' => 62,
                b'/' => 63,
                b'=' => 0,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        // `=` in front of other characters is none of the padding, and counts as a wrong character.
        let data = group.len().checked_sub(padding)?;
        if group.get(..data)?.contains(&b'=') {
            return None;
        }
        let [_, bytes @ ..] = bits.to_be_bytes();
        out.extend(bytes.iter().take(3_usize.checked_sub(padding)?));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_bytes("1K"), Some(1024));
        assert_eq!(parse_bytes("1.5G"), Some(1536 << 20));
        assert_eq!(parse_bytes("0"), Some(0));
        for bad in ["", "K", "1Q", "-1", "1.M.", "16E", "+1", "1.x"] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
        assert_eq!(
            parse_memory_limit("50%"),
            Some(Limit::Share { permyriad: 5000 })
        );
        assert_eq!(parse_memory_limit("101%"), None);
        assert_eq!(Limit::Share { permyriad: 2500 }.resolve(4096), Some(1024));
        assert_eq!(parse_permyriad("150%"), Some(15_000));
        assert_eq!(parse_permyriad("0.5%"), Some(50));
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        // RFC 4648 §10
        for (text, data) in [
            ("", Some("")),
            ("Zg==", Some("f")),
            ("Zm8=", Some("fo")),
            ("Zm 9v", Some("foo")),
            ("Zm9vYg==", Some("foob")),
            ("Zm9v=A==", None),
            ("Zg=", None),
            ("Z===", None),
            ("Zg==Zg==", None),
            ("Z=g=", None),
            ("Zm9-", None),
        ] {
            assert_eq!(base64(text), data.map(|d| d.as_bytes().to_vec()), "{text}");
        }
        assert_eq!(base64("+/+/"), Some(vec![0xfb, 0xff, 0xbf]));
    }

    #[test]
    fn signals_have_names_numbers_and_real_time() {
        assert_eq!(Signal::parse("SIGTERM"), Some(Signal::TERM));
        assert_eq!(Signal::parse("TERM"), Some(Signal::TERM));
        assert_eq!(Signal::parse("SIGRTMIN+3"), Some(Signal(37)));
        assert_eq!(Signal::parse("RTMAX-1"), Some(Signal(63)));
        for bad in ["0", "65", "SIGFOO", "RTMIN+31", "RTMINx", ""] {
            assert_eq!(Signal::parse(bad), None, "{bad}");
        }
        assert_eq!(Signal(37).to_string(), "SIGRTMIN+3");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,30}") {
            let _ = (parse_span(&text), parse_bytes(&text), parse_memory_limit(&text), parse_mode(&text));
            let _ = (Signal::parse(&text), parse_bool(&text), parse_exit_code(&text), base64(&text));
        }

        #[test]
        fn no_number_panics(text in "[0-9.]{0,25}[a-zA-Z%]{0,3}") {
            let _ = (parse_span(&text), parse_bytes(&text), parse_memory_limit(&text), parse_permyriad(&text));
        }
    }
}
