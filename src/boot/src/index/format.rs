//! The index as text; `docs/module-index.md` describes it line by line.

use std::fmt::Write as _;

use thiserror::Error;

use super::{Index, Module, Node, Step};

const HEADER: &str = "orlop-modules 1";

/// A file of more bytes is refused; Debian's 4,000 modules would need a tenth.
const MAX_BYTES: usize = 32 << 20;

/// Why text is no index.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The first line is not this version's.
    #[error("the first line is not {HEADER:?}")]
    Header,
    /// More than 32 MiB.
    #[error("longer than {MAX_BYTES} bytes")]
    TooLong,
    /// A line that does not follow the format.
    #[error("line {line}: {reason}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Index {
    /// Writes the index as text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = format!("{HEADER}\n");
        for module in &self.modules {
            let _ = write!(text, "m {} {}", module.name, module.path);
            steps(&mut text, &module.before);
            if !module.after.is_empty() {
                text.push_str(" /");
                steps(&mut text, &module.after);
            }
            text.push('\n');
        }
        for (pattern, module) in &self.aliases {
            let _ = writeln!(text, "a {pattern} {module}");
        }
        for node in &self.nodes {
            let kind = if node.block { 'b' } else { 'c' };
            let _ = writeln!(text, "n {} {kind} {} {}", node.path, node.major, node.minor);
        }
        for name in &self.builtin {
            let _ = writeln!(text, "b {name}");
        }
        text
    }

    /// Reads an index. Total: no input makes it panic, and a decoded index holds no number that points nowhere.
    ///
    /// # Errors
    /// Names the first line that does not follow the format.
    pub fn decode(text: &str) -> Result<Self, DecodeError> {
        if text.len() > MAX_BYTES {
            return Err(DecodeError::TooLong);
        }
        let mut lines = text.lines().enumerate();
        if lines.next().is_none_or(|(_, first)| first != HEADER) {
            return Err(DecodeError::Header);
        }
        let mut index = Self::default();
        // Load lists may name modules of later lines.
        let mut highest: Option<(usize, usize)> = None;
        for (number, line) in lines {
            let fail = |reason| DecodeError::Line {
                line: number + 1,
                reason,
            };
            let mut fields = line.split(' ');
            match fields.next() {
                Some("m") => {
                    let module = module(&mut fields).map_err(fail)?;
                    let steps = module.before.iter().chain(&module.after);
                    if let Some(step) = steps.map(|s| s.module).max()
                        && highest.is_none_or(|(_, module)| step > module)
                    {
                        highest = Some((number + 1, step));
                    }
                    index.modules.push(module);
                }
                Some("a") => {
                    let pattern = fields
                        .next()
                        .filter(|p| !p.is_empty())
                        .ok_or(fail("no pattern"))?;
                    let module: usize = number_in(fields.next()).ok_or(fail("no module number"))?;
                    if module >= index.modules.len() {
                        return Err(fail("no module of that number"));
                    }
                    index.aliases.push((pattern.to_owned(), module));
                }
                Some("n") => index.nodes.push(node(&mut fields).map_err(fail)?),
                Some("b") => {
                    let name = fields
                        .next()
                        .filter(|n| !n.is_empty())
                        .ok_or(fail("no name"))?;
                    if index
                        .builtin
                        .last()
                        .is_some_and(|last| last.as_str() >= name)
                    {
                        return Err(fail("builtin modules are not sorted"));
                    }
                    index.builtin.push(name.to_owned());
                }
                _ => return Err(fail("unknown kind of line")),
            }
            if fields.next().is_some() {
                return Err(fail("too many fields"));
            }
        }
        match highest {
            Some((line, module)) if module >= index.modules.len() => Err(DecodeError::Line {
                line,
                reason: "no module of that number",
            }),
            _ => Ok(index),
        }
    }
}

fn steps(text: &mut String, steps: &[Step]) {
    for step in steps {
        let mark = if step.soft { "~" } else { "" };
        let _ = write!(text, " {mark}{}", step.module);
    }
}

fn module<'a>(fields: &mut impl Iterator<Item = &'a str>) -> Result<Module, &'static str> {
    let name = fields.next().filter(|n| !n.is_empty()).ok_or("no name")?;
    let path = fields
        .next()
        .filter(|p| is_inside(p))
        .ok_or("no path inside of the modules' directory")?;
    let mut module = Module {
        name: name.to_owned(),
        path: path.to_owned(),
        ..Module::default()
    };
    let mut after = false;
    for field in fields {
        if field == "/" && !after {
            after = true;
            continue;
        }
        let (soft, digits) = match field.strip_prefix('~') {
            Some(digits) => (true, digits),
            None => (false, field),
        };
        let step = Step {
            module: number_in(Some(digits)).ok_or("not a module number")?,
            soft,
        };
        if after {
            &mut module.after
        } else {
            &mut module.before
        }
        .push(step);
    }
    Ok(module)
}

fn node<'a>(fields: &mut impl Iterator<Item = &'a str>) -> Result<Node, &'static str> {
    let path = fields
        .next()
        .filter(|p| is_inside(p))
        .ok_or("no path inside of /dev")?;
    let block = match fields.next() {
        Some("b") => true,
        Some("c") => false,
        _ => return Err("neither block nor character device"),
    };
    let major = number_in(fields.next()).ok_or("no major number")?;
    let minor = number_in(fields.next()).ok_or("no minor number")?;
    Ok(Node {
        path: path.to_owned(),
        block,
        major,
        minor,
    })
}

/// Digits only: `+1`, which Rust's parser takes, is none of ours.
fn number_in<T: std::str::FromStr>(field: Option<&str>) -> Option<T> {
    field
        .filter(|f| f.bytes().all(|b| b.is_ascii_digit()))?
        .parse()
        .ok()
}

/// Whether a path is relative and never leaves its directory.
fn is_inside(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn steps_of(modules: usize) -> impl Strategy<Value = Vec<Step>> {
        prop::collection::vec(
            (0..modules, any::<bool>()).prop_map(|(module, soft)| Step { module, soft }),
            0..4,
        )
    }

    fn index() -> impl Strategy<Value = Index> {
        (1_usize..6).prop_flat_map(|count| {
            let module = (
                "[a-z_]{1,8}",
                "[a-z]{1,4}/[a-z]{1,6}[.]ko",
                steps_of(count),
                steps_of(count),
            )
                .prop_map(|(name, path, before, after)| Module {
                    name,
                    path,
                    before,
                    after,
                });
            let node = ("[a-z]{1,5}", any::<bool>(), any::<u32>(), any::<u32>()).prop_map(
                |(path, block, major, minor)| Node {
                    path,
                    block,
                    major,
                    minor,
                },
            );
            (
                prop::collection::vec(module, count),
                prop::collection::vec(("[a-z0-9*:?_]{1,12}", 0..count), 0..6),
                prop::collection::vec(node, 0..3),
                prop::collection::btree_set("[a-z_]{1,8}", 0..4),
            )
                .prop_map(|(modules, aliases, nodes, builtin)| Index {
                    modules,
                    aliases,
                    nodes,
                    builtin: builtin.into_iter().collect(),
                })
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(index in index()) {
            prop_assert_eq!(Index::decode(&index.encode()), Ok(index));
        }

        #[test]
        fn no_text_makes_it_panic_or_point_nowhere(lines in prop::collection::vec("[mnab] ?[a-z/.~0-9 ]{0,16}|.{0,10}", 0..12)) {
            if let Ok(index) = Index::decode(&format!("{HEADER}\n{}", lines.join("\n"))) {
                for module in index.modules() {
                    for step in module.before.iter().chain(&module.after) {
                        prop_assert!(step.module < index.modules().len());
                    }
                }
            }
        }
    }

    #[test]
    fn an_error_names_the_line() {
        let fail = |text: &str| Index::decode(text).unwrap_err().to_string();
        assert_eq!(
            fail("orlop-modules 2\n"),
            "the first line is not \"orlop-modules 1\""
        );
        assert_eq!(
            fail("orlop-modules 1\nm a k/a.ko 7\n"),
            "line 2: no module of that number"
        );
        assert_eq!(
            fail("orlop-modules 1\nm a ../a.ko\n"),
            "line 2: no path inside of the modules' directory"
        );
        assert_eq!(
            fail("orlop-modules 1\nm a a.ko\na fs_a 1\n"),
            "line 3: no module of that number"
        );
        assert_eq!(fail("orlop-modules 1\nz\n"), "line 2: unknown kind of line");
    }
}
