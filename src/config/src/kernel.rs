//! The kernel command line: `orlop.data.disk=/dev/vdb`, and NoCloud's `ds=nocloud;h=NAME;i=ID`.

use crate::field::Field;
use crate::machine::Machine;
use crate::node::{Form, Node, Reader, Scalar, Value};

/// Words below `orlop.` that the initramfs stage and PID 1 read themselves: they have no place in a [`Machine`].
const READ_ELSEWHERE: &[&str] = &["config", "crash", "live", "rescue", "reset", "shell"];

/// Applies the words of `line` that are meant for this machine's configuration.
pub(crate) fn apply(line: &str, machine: &mut Machine, reader: &mut Reader<'_>) {
    for word in words(line) {
        // What stands behind `--` is for init (Documentation/admin-guide/kernel-parameters.rst).
        if word.text == "--" {
            break;
        }
        if let Some(seed) = word.text.strip_prefix("ds=nocloud") {
            no_cloud(seed, word.column, machine, reader);
        }
        let Some(assignment) = word.text.strip_prefix("orlop.") else {
            continue;
        };
        let (path, value) = assignment.split_once('=').unwrap_or((assignment, ""));
        let path: Vec<&str> = path.split('.').collect();
        if path
            .first()
            .is_some_and(|first| READ_ELSEWHERE.contains(first))
        {
            continue;
        }
        machine.take_at(&path, &leaf(value, word.column), reader);
    }
}

fn no_cloud(seed: &str, column: u32, machine: &mut Machine, reader: &mut Reader<'_>) {
    for (key, value) in seed.split(';').filter_map(|pair| pair.split_once('=')) {
        let path: &[&str] = match key {
            "h" | "local-hostname" => &["hostname"],
            "i" | "instance-id" => &["instance_id"],
            _ => continue,
        };
        machine.take_at(path, &leaf(value, column), reader);
    }
}

fn leaf(value: &str, column: u32) -> Node {
    Node {
        line: 1,
        column,
        value: Value::Scalar(Scalar {
            text: value.to_owned(),
            form: Form::Word,
        }),
    }
}

struct Word {
    text: String,
    column: u32,
}

/// Splits at white space outside double quotes, and drops the quotes, as the kernel's `next_arg` does (lib/cmdline.c).
fn words(line: &str) -> Vec<Word> {
    let mut words: Vec<Word> = Vec::new();
    let mut current: Option<Word> = None;
    let mut quoted = false;
    for (column, c) in (1_u32..).zip(line.chars()) {
        if c.is_whitespace() && !quoted {
            words.extend(current.take());
            continue;
        }
        let word = current.get_or_insert_with(|| Word {
            text: String::new(),
            column,
        });
        if c == '"' {
            quoted = !quoted;
        } else {
            word.text.push(c);
        }
    }
    words.extend(current);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_value_keeps_its_spaces() {
        let words = words("quiet  orlop.sysctl.net.ipv4.ip_local_port_range=\"1024 65000\" x");
        let texts: Vec<_> = words.iter().map(|w| w.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "quiet",
                "orlop.sysctl.net.ipv4.ip_local_port_range=1024 65000",
                "x"
            ]
        );
        assert_eq!(words[1].column, 8);
    }
}
