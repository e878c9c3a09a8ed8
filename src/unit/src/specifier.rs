//! `%`-specifiers (`systemd.unit(5)`, "Specifiers").

use std::borrow::Cow;

use crate::name::{UnitName, unescape};

/// What specifiers say about the machine; facts about the unit come from its name and file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecifierContext {
    /// `%a`, such as `x86-64`.
    pub architecture: String,
    /// `%A`, `IMAGE_VERSION` of os-release.
    pub image_version: String,
    /// `%b`, 32 hexadecimal digits.
    pub boot_id: String,
    /// `%B`, `BUILD_ID` of os-release.
    pub build_id: String,
    /// `%H`; `%l` is what stands before its first dot.
    pub hostname: String,
    /// `%m`, 32 hexadecimal digits.
    pub machine_id: String,
    /// `%M`, `IMAGE_ID` of os-release.
    pub image_id: String,
    /// `%o`, `ID` of os-release.
    pub os_id: String,
    /// `%q`; the hostname when empty.
    pub pretty_hostname: String,
    /// `%v`, as `uname -r`.
    pub kernel_release: String,
    /// `%w`, `VERSION_ID` of os-release.
    pub version_id: String,
    /// `%W`, `VARIANT_ID` of os-release.
    pub variant_id: String,
}

/// A specifier that means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnknownSpecifier {
    /// Byte offset of the `%`.
    pub(crate) offset: usize,
    /// The character after it.
    pub(crate) letter: char,
}

/// The unit whose file is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expander<'a> {
    pub(crate) name: &'a UnitName,
    /// The path of the main file.
    pub(crate) fragment: &'a str,
    pub(crate) context: &'a SpecifierContext,
}

impl Expander<'_> {
    /// Replaces every specifier; a `%` at the end stays.
    pub(crate) fn expand<'t>(&self, text: &'t str) -> Result<Cow<'t, str>, UnknownSpecifier> {
        if !text.contains('%') {
            return Ok(Cow::Borrowed(text));
        }
        let mut out = String::with_capacity(text.len().saturating_add(16));
        let mut chars = text.char_indices();
        while let Some((offset, c)) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            match chars.next() {
                None => out.push('%'),
                Some((_, letter)) => match self.value(letter) {
                    Some(value) => out.push_str(&value),
                    None => return Err(UnknownSpecifier { offset, letter }),
                },
            }
        }
        Ok(Cow::Owned(out))
    }

    fn value(&self, letter: char) -> Option<Cow<'_, str>> {
        let name = self.name;
        let context = self.context;
        let unescaped = |text: &str| {
            Cow::<'static, str>::Owned(unescape(text).unwrap_or_else(|| text.to_owned()))
        };
        let instance = name.instance().unwrap_or_default();
        let last = name.prefix().rsplit('-').next().unwrap_or_default();
        Some(match letter {
            'a' => Cow::Borrowed(&*context.architecture),
            'A' => Cow::Borrowed(&*context.image_version),
            'b' => Cow::Borrowed(&*context.boot_id),
            'B' => Cow::Borrowed(&*context.build_id),
            'C' => "/var/cache".into(),
            'd' => format!("/run/credentials/{name}").into(),
            'D' => "/usr/share".into(),
            'E' => "/etc".into(),
            'f' => {
                let source = if instance.is_empty() {
                    name.prefix()
                } else {
                    instance
                };
                format!("/{}", unescaped(source).trim_start_matches('/')).into()
            }
            'g' | 'u' => "root".into(),
            'G' | 'U' => "0".into(),
            'h' => "/root".into(),
            'H' => Cow::Borrowed(&*context.hostname),
            'i' => instance.into(),
            'I' => unescaped(instance),
            'j' => last.into(),
            'J' => unescaped(last),
            'l' => context
                .hostname
                .split('.')
                .next()
                .unwrap_or_default()
                .into(),
            'L' => "/var/log".into(),
            'm' => Cow::Borrowed(&*context.machine_id),
            'M' => Cow::Borrowed(&*context.image_id),
            'n' => name.as_str().into(),
            'N' => name.stem().into(),
            'o' => Cow::Borrowed(&*context.os_id),
            'p' => name.prefix().into(),
            'P' => unescaped(name.prefix()),
            'q' if context.pretty_hostname.is_empty() => Cow::Borrowed(&*context.hostname),
            'q' => Cow::Borrowed(&*context.pretty_hostname),
            's' => "/bin/sh".into(),
            'S' => "/var/lib".into(),
            't' => "/run".into(),
            'T' => "/tmp".into(),
            'v' => Cow::Borrowed(&*context.kernel_release),
            'V' => "/var/tmp".into(),
            'w' => Cow::Borrowed(&*context.version_id),
            'W' => Cow::Borrowed(&*context.variant_id),
            'y' => self.fragment.into(),
            'Y' => self
                .fragment
                .rsplit_once('/')
                .map_or("", |(directory, _)| directory)
                .into(),
            '%' => "%".into(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_specifier_has_its_value() {
        let context = SpecifierContext {
            hostname: "node1.example.com".into(),
            machine_id: "0123".into(),
            ..SpecifierContext::default()
        };
        let name = UnitName::parse(r"web-front\x2dend@srv-data\x20x.service").unwrap();
        let expander = Expander {
            name: &name,
            fragment: "/etc/systemd/system/web@.service",
            context: &context,
        };
        for (text, value) in [
            ("%p|%P", r"web-front\x2dend|web/front-end"),
            ("%i|%I|%f", r"srv-data\x20x|srv/data x|/srv/data x"),
            ("%j|%J", r"front\x2dend|front-end"),
            ("%n", r"web-front\x2dend@srv-data\x20x.service"),
            ("%N", r"web-front\x2dend@srv-data\x20x"),
            (
                "%H %l %q %m",
                "node1.example.com node1 node1.example.com 0123",
            ),
            (
                "%y %Y",
                "/etc/systemd/system/web@.service /etc/systemd/system",
            ),
            (
                "%t %S %C %L %E %T %V %h %u %U %s",
                "/run /var/lib /var/cache /var/log /etc /tmp /var/tmp /root root 0 /bin/sh",
            ),
            ("100%%", "100%"),
            ("100%", "100%"),
        ] {
            assert_eq!(expander.expand(text).unwrap(), value, "{text}");
        }
        assert_eq!(
            expander.expand("ab%z").unwrap_err(),
            UnknownSpecifier {
                offset: 2,
                letter: 'z'
            }
        );
    }
}
