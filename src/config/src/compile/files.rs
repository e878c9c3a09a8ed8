//! The files of the machine's name, and `write_files`.

use super::users::Accounts;
use super::{Plan, PlannedFile};
use crate::encoding;
use crate::machine::{Machine, WriteFile};
use crate::problem::{Problem, Source, quoted};
use crate::scalar::{Content, Encoding};

/// Where nothing can be written: the verified root (and the links into it), and the kernel's own trees, which
/// `sysctl` is for.
const REFUSED: &[(&str, &str)] = &[
    ("/usr", "the root image is read-only"),
    ("/bin", "the root image is read-only"),
    ("/sbin", "the root image is read-only"),
    ("/lib", "the root image is read-only"),
    ("/lib64", "the root image is read-only"),
    ("/proc", "kernel parameters are set under sysctl"),
    ("/sys", "the kernel's own files are not configuration"),
];

/// `/etc/hostname` and `/etc/hosts`.
pub(super) fn identity(machine: &Machine, plan: &mut Plan) {
    let Some(hostname) = &machine.hostname else {
        return;
    };
    let name = hostname.value.as_str();
    let short = name.split('.').next().unwrap_or(name);
    let names = match short == name {
        true => name.to_owned(),
        false => format!("{name} {short}"),
    };
    let hosts = format!(
        "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 {names}\n"
    );
    plan.file(
        "/etc/hostname",
        format!("{name}\n"),
        0o644,
        &hostname.source,
    );
    plan.file("/etc/hosts", hosts, 0o644, &hostname.source);
}

pub(super) fn compile(machine: &Machine, accounts: &Accounts, plan: &mut Plan) {
    for file in &machine.write_files {
        match planned(file, accounts, plan) {
            Ok(planned) => plan.files.push(planned),
            Err(problem) => plan.problems.push(problem),
        }
    }
}

fn planned(file: &WriteFile, accounts: &Accounts, plan: &mut Plan) -> Result<PlannedFile, Problem> {
    let Some(path) = &file.path else {
        return Err(Problem::error(&Source::default(), "a file without a path"));
    };
    let target = target(&path.value).map_err(|why| {
        let message = format!("{} is not written: {why}", quoted(&path.value));
        Problem::error(&path.source, message)
    })?;
    let content = match &file.content {
        None => Vec::new(),
        Some(content) => {
            decode(&content.value, file.encoding.as_ref().map(|e| e.value)).map_err(|e| {
                let message = format!(
                    "the content of {} is {e}; it is not written",
                    quoted(&path.value)
                );
                Problem::error(&content.source, message)
            })?
        }
    };
    let owner = match &file.owner {
        None => super::Owner::default(),
        Some(owner) => accounts.owner(&owner.value).unwrap_or_else(|unknown| {
            let message = format!(
                "the owner of {} is not known: {unknown}; it is root's",
                quoted(&path.value)
            );
            plan.problems.push(Problem::error(&owner.source, message));
            super::Owner::default()
        }),
    };
    Ok(PlannedFile {
        path: target,
        content,
        mode: file.permissions.as_ref().map_or(0o644, |mode| mode.value.0),
        owner,
        append: file.append.as_ref().is_some_and(|append| append.value),
        source: path.source.clone(),
    })
}

/// The bytes that a content stands for.
pub(super) fn decode(
    content: &Content,
    encoding: Option<Encoding>,
) -> Result<Vec<u8>, encoding::Error> {
    let raw = match content.binary {
        true => encoding::base64(&content.text)?,
        false => content.text.clone().into_bytes(),
    };
    match encoding.unwrap_or(Encoding::Plain) {
        Encoding::Plain => Ok(raw),
        // What `!!binary` decoded once, people who mark the text twice do not mean to decode again.
        Encoding::Base64 if content.binary => Ok(raw),
        Encoding::Base64 => encoding::base64(&content.text),
        Encoding::Gzip => encoding::gunzip(&raw),
        Encoding::GzipBase64 if content.binary => encoding::gunzip(&raw),
        Encoding::GzipBase64 => encoding::gunzip(&encoding::base64(&content.text)?),
    }
}

/// The path without empty parts, or why it can not be written.
fn target(path: &str) -> Result<String, &'static str> {
    if !path.starts_with('/') {
        return Err("the path is not absolute");
    }
    if path.contains(char::is_control) {
        return Err("the path holds a control character");
    }
    if path.ends_with('/') {
        return Err("the path names a directory");
    }
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    if parts.contains(&"..") {
        return Err("the path holds `..`");
    }
    if path.len() > 4095 || parts.iter().any(|part| part.len() > 255) {
        return Err("the path is too long");
    }
    let normal = format!("/{}", parts.join("/"));
    let is_below = |tree: &str| {
        normal
            .strip_prefix(tree)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    match REFUSED.iter().find(|(tree, _)| is_below(tree)) {
        Some((_, why)) => Err(why),
        None if parts.is_empty() => Err("the path names a directory"),
        None => Ok(normal),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn files_of_the_image_and_the_kernel_are_refused_however_they_are_spelt() {
        for path in [
            "/usr/bin/x",
            "//usr/x",
            "/./usr/x",
            "/bin/sh",
            "/proc/sys/kernel/panic",
            "/sys/x",
            "/etc/../usr/x",
            "/etc/x/",
            "etc/x",
            "/",
            "/usr",
        ] {
            assert!(target(path).is_err(), "{path}");
        }
        assert_eq!(target("//etc/./x").as_deref(), Ok("/etc/x"));
        assert_eq!(target("/usrlocal/x").as_deref(), Ok("/usrlocal/x"));
    }

    proptest! {
        #[test]
        fn an_accepted_path_stays_where_it_says(path in "[/.a-z]{0,24}") {
            if let Ok(normal) = target(&path) {
                prop_assert!(normal.starts_with('/'));
                prop_assert!(!normal.split('/').skip(1).any(|part| matches!(part, "" | "." | "..")));
                prop_assert!(!normal.starts_with("/usr/") && !normal.starts_with("/proc/"));
            }
        }
    }
}
