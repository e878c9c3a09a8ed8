//! The kernel's command line, as far as the boot stage and modprobe read it.

use std::io;
use std::path::Path;

/// A parsed command line. Words are split as the kernel splits them: at blanks outside of double quotes
/// (`next_arg` in `lib/cmdline.c`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommandLine {
    /// Keys and values; a word without `=` has none.
    words: Vec<(String, Option<String>)>,
}

impl CommandLine {
    /// Reads `/proc/cmdline`; bytes that are not UTF-8 are replaced.
    ///
    /// # Errors
    /// What reading gives: `/proc` is not mounted.
    pub fn read() -> io::Result<Self> {
        let bytes = std::fs::read(Path::new("/proc/cmdline"))?;
        Ok(Self::parse(&String::from_utf8_lossy(&bytes)))
    }

    /// Splits `text`. Total; what follows `--` is meant for init and is left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut quoted = false;
        let words = text
            .split(|c: char| {
                quoted ^= c == '"';
                c.is_ascii_whitespace() && !quoted
            })
            .filter(|word| !word.is_empty())
            .take_while(|word| *word != "--")
            .map(|word| match word.split_once('=') {
                Some((key, value)) => (unquoted(key), Some(unquoted(value))),
                None => (unquoted(word), None),
            })
            .collect();
        Self { words }
    }

    /// Whether the word is there, with or without a value.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.words.iter().any(|(k, _)| k == key)
    }

    /// The value of the last `key=value`.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.words
            .iter()
            .rev()
            .find(|(k, value)| k == key && value.is_some())?
            .1
            .as_deref()
    }

    /// The values of all `key=value`, in their order.
    pub fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.words
            .iter()
            .filter(move |(k, _)| k == key)
            .filter_map(|(_, value)| value.as_deref())
    }

    /// The arguments for a module, as `finit_module` takes them: from `NAME.PARAMETER[=VALUE]`, hyphen and underscore
    /// being the same. The kernel applies these itself only to what it contains.
    #[must_use]
    pub fn module_arguments(&self, module: &str) -> String {
        let mut arguments = String::new();
        for (key, value) in &self.words {
            let Some((name, parameter)) = key.split_once('.') else {
                continue;
            };
            if parameter.is_empty() || crate::index::normalise(name) != module {
                continue;
            }
            if !arguments.is_empty() {
                arguments.push(' ');
            }
            arguments.push_str(parameter);
            if let Some(value) = value {
                arguments.push('=');
                if value.contains(|c: char| c.is_ascii_whitespace()) {
                    arguments.push('"');
                    arguments.push_str(value);
                    arguments.push('"');
                } else {
                    arguments.push_str(value);
                }
            }
        }
        arguments
    }

    /// Whether `modprobe.blacklist=` or `module_blacklist=` (which the kernel enforces as well) names the module.
    #[must_use]
    pub fn is_blacklisted(&self, module: &str) -> bool {
        self.words
            .iter()
            .filter(|(key, _)| key == "modprobe.blacklist" || key == "module_blacklist")
            .filter_map(|(_, value)| value.as_deref())
            .flat_map(|list| list.split(','))
            .any(|name| crate::index::normalise(name) == module)
    }
}

fn unquoted(word: &str) -> String {
    word.replace('"', "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn module_parameters_go_to_their_module_alone() {
        let line = CommandLine::parse(
            "console=ttyS0 nf-conntrack.hashsize=4096 loop.max_loop=3 loop.x \"loop.y=a b\" loopy.z=1\n",
        );
        assert_eq!(line.module_arguments("loop"), "max_loop=3 x y=\"a b\"");
        assert_eq!(line.module_arguments("nf_conntrack"), "hashsize=4096");
        assert_eq!(line.module_arguments("erofs"), "");
    }

    #[test]
    fn the_last_value_wins_and_inits_words_are_not_ours() {
        let line = CommandLine::parse("panic=5 panic=7 panic -- orlop.rescue");
        assert_eq!(line.value("panic"), Some("7"));
        assert!(line.has("panic"));
        assert!(!line.has("orlop.rescue"));
    }

    #[test]
    fn a_blacklist_knows_names_with_hyphens() {
        let line =
            CommandLine::parse("modprobe.blacklist=virtio-net,button modprobe.blacklist=evdev");
        for name in ["virtio_net", "button", "evdev"] {
            assert!(line.is_blacklisted(name), "{name}");
        }
        assert!(!line.is_blacklisted("virtio"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in any::<String>(), module in "[a-z_]{0,5}") {
            let line = CommandLine::parse(&text);
            let _ = (line.module_arguments(&module), line.is_blacklisted(&module), line.value("panic"));
        }
    }
}
