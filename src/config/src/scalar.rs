//! The types of single values: each says what it wants, and takes nothing that could not be applied.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::field::{Scalar, Wrong};
use crate::node::{Form, Scalar as Written};
use crate::problem::quoted;

/// Makes a type that is written as text of a value that checks its text, for serde and for the configuration.
macro_rules! text_value {
    ($type:ty, $wants:literal) => {
        impl TryFrom<String> for $type {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }

        impl Scalar for $type {
            const WANTS: &'static str = $wants;

            fn read(written: &Written) -> Result<Self, Wrong> {
                text(written)?.parse().map_err(Wrong::Value)
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    };
}

mod logging;

pub use logging::{LogPriority, LogScheme, LogTarget};

/// The text of a scalar where text is wanted. In YAML `hostname: 123` is meant as text; in TOML a number is a number.
fn text(written: &Written) -> Result<&str, Wrong> {
    match written.form {
        Form::Plain | Form::Quoted | Form::Word => Ok(&written.text),
        _ => Err(Wrong::Type),
    }
}

impl Scalar for String {
    const WANTS: &'static str = "a string";

    fn read(written: &Written) -> Result<Self, Wrong> {
        let text = text(written)?;
        if text.contains('\0') {
            return Err(Wrong::Value("holds a NUL character".to_owned()));
        }
        Ok(text.to_owned())
    }

    fn show(&self) -> String {
        self.clone()
    }
}

impl Scalar for bool {
    const WANTS: &'static str = "true or false";

    fn read(written: &Written) -> Result<Self, Wrong> {
        let lower = written.text.to_ascii_lowercase();
        match (written.form, lower.as_str()) {
            // YAML 1.1's other spellings are what people who write `enable: yes` mean.
            (Form::Plain | Form::Boolean | Form::Word, "true" | "yes" | "on") => Ok(true),
            (Form::Plain | Form::Boolean | Form::Word, "false" | "no" | "off") => Ok(false),
            (Form::Word, "1" | "") => Ok(true),
            (Form::Word, "0") => Ok(false),
            (Form::Quoted, "true" | "false") => Err(Wrong::Value(
                "wants true or false without quotes".to_owned(),
            )),
            _ => Err(Wrong::Type),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Scalar for u32 {
    const WANTS: &'static str = "a whole number from 0";

    fn read(written: &Written) -> Result<Self, Wrong> {
        let number = match written.form {
            Form::Plain | Form::Word => written.text.parse(),
            Form::Integer { radix } => Self::from_str_radix(&written.text, radix),
            _ => return Err(Wrong::Type),
        };
        match number {
            Ok(number) => Ok(number),
            Err(_)
                if written
                    .text
                    .trim_start_matches('-')
                    .bytes()
                    .all(|b| b.is_ascii_digit()) =>
            {
                Err(Wrong::Value(format!(
                    "{} is not between 0 and {}",
                    quoted(&written.text),
                    Self::MAX
                )))
            }
            Err(_) => Err(Wrong::Type),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Scalar for IpAddr {
    const WANTS: &'static str = "an IP address";

    fn read(written: &Written) -> Result<Self, Wrong> {
        let text = text(written)?;
        text.parse()
            .map_err(|_| Wrong::Value(format!("{} is not an IP address", quoted(text))))
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// What a machine says of itself: `KEY=VALUE`, with commas between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Metadata(String);

impl FromStr for Metadata {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        for pair in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let good = pair.split_once('=').is_some_and(|(key, value)| {
                !key.is_empty() && !value.is_empty() && !value.contains('=')
            });
            if !good || pair.contains(char::is_control) {
                return Err(format!("{} is not KEY=VALUE", quoted(pair)));
            }
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_value!(Metadata, "KEY=VALUE,…");

/// A host's name: RFC 1123 labels, at most 64 characters (`HOST_NAME_MAX`, include/uapi/linux/utsname.h `__NEW_UTS_LEN`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hostname(String);

impl Hostname {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Hostname {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.len() <= 64 && text.split('.').all(is_label) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "{} is not a host name (letters, digits, `-` and `.`, at most 64)",
                quoted(text)
            ))
        }
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_value!(Hostname, "a host name");

/// A whole disk, as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DiskName {
    /// A path below `/dev`.
    Path(String),
    /// The serial number that the disk reports.
    Serial(String),
    /// The model that the disk reports, in any case; a `*` at the end stands for anything.
    Model(String),
    /// Its size, `20GiB` or `500GB` to within a hundredth, or `largest` or `smallest`.
    Size(String),
}

impl FromStr for DiskName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = text
            .split_once('=')
            .filter(|(_, value)| !value.is_empty() && !value.contains(char::is_control));
        match named {
            Some(("serial", serial)) => Ok(Self::Serial(serial.to_owned())),
            Some(("model", model)) => Ok(Self::Model(model.to_owned())),
            Some(("size", size)) if is_size(size) => Ok(Self::Size(size.to_owned())),
            None if text
                .strip_prefix("/dev/")
                .is_some_and(|rest| !rest.is_empty())
                && !text.contains("/..") =>
            {
                Ok(Self::Path(text.to_owned()))
            }
            _ => Err(format!(
                "{} is none of /dev/…, serial=…, model=… and size=…",
                quoted(text)
            )),
        }
    }
}

/// A number of bytes with a unit, or a superlative.
fn is_size(text: &str) -> bool {
    const UNITS: [&str; 11] = [
        "", "B", "MB", "GB", "TB", "M", "G", "T", "MiB", "GiB", "TiB",
    ];
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let has_number = unit.len() < text.len() && !text.starts_with('0');
    matches!(text, "largest" | "smallest") || (has_number && UNITS.contains(&unit))
}

impl fmt::Display for DiskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Serial(serial) => write!(f, "serial={serial}"),
            Self::Model(model) => write!(f, "model={model}"),
            Self::Size(size) => write!(f, "size={size}"),
        }
    }
}

text_value!(DiskName, "a disk (/dev/…, serial=…, model=… or size=…)");

/// A filesystem that a data volume can have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Filesystem {
    /// The one there is.
    #[default]
    Ext4,
}

impl FromStr for Filesystem {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ext4" => Ok(Self::Ext4),
            _ => Err(format!(
                "{} is no filesystem that can be made; there is ext4",
                quoted(text)
            )),
        }
    }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ext4")
    }
}

text_value!(Filesystem, "ext4");

/// An address with the length of its network's prefix, `10.0.0.5/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    /// The address.
    pub address: IpAddr,
    /// Bits of the network, 0 to 32 or 128.
    pub prefix: u8,
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{} is not ADDRESS/PREFIX", quoted(text));
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if prefix > longest {
            return Err(format!("{}: the prefix is at most {longest}", quoted(text)));
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

text_value!(Cidr, "an address with a prefix (10.0.0.5/24)");

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RouteTarget {
    /// Everywhere that has no route of its own.
    Default,
    /// A network.
    Network(Cidr),
}

impl FromStr for RouteTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "default" {
            return Ok(Self::Default);
        }
        match text.parse::<Cidr>()? {
            network if network.prefix == 0 && network.address.is_unspecified() => Ok(Self::Default),
            network => Ok(Self::Network(network)),
        }
    }
}

impl fmt::Display for RouteTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Network(network) => network.fmt(f),
        }
    }
}

text_value!(RouteTarget, "a network (10.1.0.0/16) or default");

/// The hardware address of an interface, kept in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{} is not a hardware address (52:54:00:12:34:56)",
                quoted(text)
            )
        };
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2)
                .ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        parts
            .next()
            .is_none()
            .then_some(Self(bytes))
            .ok_or_else(wrong)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

text_value!(Mac, "a hardware address");

/// One line of an `authorized_keys` file (sshd(8)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SshKey(String);

impl SshKey {
    /// The line, without its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SshKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.contains(char::is_control) {
            return Err("an SSH key is one line".to_owned());
        }
        // Options may stand before the type, so its place is not fixed.
        let has_type = text.split_ascii_whitespace().any(|word| {
            ["ssh-", "ecdsa-", "sk-"]
                .iter()
                .any(|kind| word.starts_with(kind))
        });
        if !has_type || text.split_ascii_whitespace().count() < 2 {
            return Err(format!("{} is not a public SSH key", quoted(text)));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for SshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_value!(SshKey, "a public SSH key");

/// A value that is not for people's eyes: neither `Debug` nor a message shows it. It is in the machine's JSON.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The value.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A password's hash, as crypt(5) has it.
impl Scalar for Secret {
    const WANTS: &'static str = "a password hash";

    fn read(written: &Written) -> Result<Self, Wrong> {
        let text = text(written)?;
        if text.contains(|c: char| c == ':' || c.is_control()) {
            return Err(Wrong::Value(
                "holds a character that no password hash has".to_owned(),
            ));
        }
        Ok(Self(text.to_owned()))
    }

    fn show(&self) -> String {
        "(not shown)".to_owned()
    }
}

/// A secret that machines have in common. Neither `Debug` nor a message shows it; it is in the machine's JSON.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// The value.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Scalar for Token {
    const WANTS: &'static str = "a token";

    fn read(written: &Written) -> Result<Self, Wrong> {
        let text = text(written)?;
        if text.is_empty() || text.contains(|c: char| c.is_control()) {
            return Err(Wrong::Value(
                "is empty, or holds a control character".to_owned(),
            ));
        }
        Ok(Self(text.to_owned()))
    }

    fn show(&self) -> String {
        "(not shown)".to_owned()
    }

    fn remark(written: &Written) -> Option<String> {
        (written.text.len() < 16).then(|| {
            "a token this short can be guessed; `orlop cluster new` makes a good one".to_owned()
        })
    }
}

/// The content of a file or unit, as it was written.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The text.
    pub text: String,
    /// Whether the text is base64 by YAML's `!!binary`, apart from any `encoding`.
    #[serde(default)]
    pub binary: bool,
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Content({} bytes)", self.text.len())
    }
}

impl Scalar for Content {
    const WANTS: &'static str = "text";

    fn read(written: &Written) -> Result<Self, Wrong> {
        let binary = written.form == Form::Binary;
        if !binary {
            text(written)?;
        }
        Ok(Self {
            text: written.text.clone(),
            binary,
        })
    }

    fn show(&self) -> String {
        format!("({} bytes)", self.text.len())
    }
}

/// The permissions of a file, 0 to 0o7777.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mode(pub u32);

impl Scalar for Mode {
    const WANTS: &'static str = "octal permissions (\"0644\")";

    fn read(written: &Written) -> Result<Self, Wrong> {
        let digits = match written.form {
            Form::Plain | Form::Quoted | Form::Word => {
                let text = written.text.trim();
                text.strip_prefix("0o").unwrap_or(text)
            }
            // TOML's 0o644 says what it is.
            Form::Integer { radix: 8 | 10 } => &written.text,
            _ => return Err(Wrong::Type),
        };
        let is_octal =
            (1..=5).contains(&digits.len()) && digits.bytes().all(|b| (b'0'..=b'7').contains(&b));
        match u32::from_str_radix(digits, 8) {
            Ok(mode) if is_octal && mode <= 0o7777 => Ok(Self(mode)),
            _ => {
                let meant = digits.parse::<u32>().ok().filter(|n| *n <= 0o777);
                let hint = meant.map(|n| format!(" (decimal {n} is {n:#05o}: write \"0{n:o}\")"));
                Err(Wrong::Value(format!(
                    "{} are not octal permissions{}",
                    quoted(&written.text),
                    hint.unwrap_or_default()
                )))
            }
        }
    }

    fn show(&self) -> String {
        format!("{:04o}", self.0)
    }

    fn remark(written: &Written) -> Option<String> {
        // A program that wrote 0644 as a YAML or TOML number wrote its decimal value, 420; read as octal, as it always
        // was, that is another mode. The common ones are worth a line.
        let is_suspect = matches!(written.form, Form::Plain | Form::Integer { radix: 10 })
            && matches!(written.text.as_str(), "420" | "256" | "416" | "436" | "511");
        is_suspect.then(|| {
            format!(
                "{} is read as octal digits; write it in quotes",
                written.text
            )
        })
    }
}

/// Words of which a key takes one.
macro_rules! words {
    ($(#[$meta:meta])* pub enum $name:ident: $wants:literal { $( #[doc = $doc:literal] $variant:ident = $first:literal $(| $other:literal)*, )* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub enum $name { $( #[doc = $doc] $variant, )* }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $( $first $(| $other)* => Ok(Self::$variant), )*
                    _ => Err(format!("{} is none of {}", quoted(text), [$($first),*].join(", "))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $( Self::$variant => $first, )* })
            }
        }

        text_value!($name, $wants);
    };
}

words! {
    /// How the content of a file is encoded.
    pub enum Encoding: "an encoding" {
        /// As it stands.
        Plain = "text/plain" | "",
        /// Base64.
        Base64 = "base64" | "b64",
        /// Gzip, which only `!!binary` can hold.
        Gzip = "gzip" | "gz",
        /// Gzip in base64.
        GzipBase64 = "gzip+base64" | "gz+base64" | "gzip+b64" | "gz+b64",
    }
}

words! {
    /// What is done with a unit when the machine starts.
    pub enum UnitCommand: "a command" {
        /// Started.
        Start = "start",
        /// Not started by this entry.
        Stop = "stop",
        /// Started: nothing runs yet.
        Restart = "restart",
        /// Nothing: nothing runs yet.
        Reload = "reload",
        /// Nothing: nothing runs yet.
        TryRestart = "try-restart",
        /// Started: nothing runs yet.
        ReloadOrRestart = "reload-or-restart",
        /// Nothing: nothing runs yet.
        ReloadOrTryRestart = "reload-or-try-restart",
    }
}
