//! Who the machine is: machine-id(5) and its name.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use orlop_config::Owner;
use sha2::{Digest as _, Sha256};

use super::Setup;
use super::replace::replace;

const MACHINE_ID: &str = "/etc/machine-id";
const KEPT: &str = "/var/lib/orlop/machine-id";
const DMI: &str = "/sys/class/dmi/id/product_uuid";

/// What the hardware's number is hashed with, so that the machine's public name does not give it away.
const APPLICATION: &[u8] = b"orlop machine-id 1";

/// Gives the machine the number that the command line says, or else that it had before, that its hardware has, or a random one.
pub(super) fn machine_id(setup: &mut Setup) {
    let given = setup
        .command_line
        .value("systemd.machine_id")
        .and_then(parse);
    let read = |path: &str| parse(&fs::read_to_string(setup.path(path)).ok()?);
    let id = given
        .or_else(|| read(KEPT))
        .or_else(|| {
            parse(&fs::read_to_string(setup.path(DMI)).ok()?)
                .filter(|id| is_unique(id))
                .map(|uuid| hashed(&uuid))
        })
        .map_or_else(random, Ok);
    let id = match id {
        Ok(id) => id,
        Err(error) => return setup.fail(format!("cannot make a machine-id: {error}")),
    };
    for (path, mode) in [(KEPT, 0o444), (MACHINE_ID, 0o444)] {
        if let Err(error) = replace(
            &setup.path(path),
            format!("{id}\n").as_bytes(),
            mode,
            Owner::default(),
        ) {
            setup.fail(format!("cannot write {path}: {error}"));
        }
    }
}

/// 32 hexadecimal digits in lower case from those of `text`, which may be written as a UUID; not all zeros.
fn parse(text: &str) -> Option<String> {
    let id: String = text
        .trim()
        .chars()
        .filter(|c| *c != '-')
        .map(|c| c.to_ascii_lowercase())
        .collect();
    let is_id = id.len() == 32
        && id.bytes().all(|b| b.is_ascii_hexdigit())
        && id.bytes().any(|b| b != b'0');
    is_id.then_some(id)
}

/// Boards without a number of their own carry one of these.
fn is_unique(uuid: &str) -> bool {
    const SHARED: [&str; 2] = [
        "03000200040005000006000700080009",
        "ffffffffffffffffffffffffffffffff",
    ];
    !SHARED.contains(&uuid)
}

fn hashed(uuid: &str) -> String {
    let digest = Sha256::new()
        .chain_update(APPLICATION)
        .chain_update(uuid)
        .finalize();
    uuid_4(digest.first_chunk().copied().unwrap_or_default())
}

fn random() -> io::Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(uuid_4(bytes))
}

/// The bytes as a UUID of version 4 (RFC 9562 §5.4), as machine-id(5) wants them.
fn uuid_4(bytes: [u8; 16]) -> String {
    let number = u128::from_be_bytes(bytes);
    let number = number & !(0xF << 76) | 4 << 76;
    let number = number & !(0b11 << 62) | 0b10 << 62;
    format!("{number:032x}")
}

/// Sets the machine's name: the configured one, or `orlop-` and the start of its number.
pub(super) fn hostname(setup: &mut Setup) {
    let configured = setup
        .plan
        .hostname
        .as_ref()
        .map(|name| name.value.as_str().to_owned());
    let name = configured.unwrap_or_else(|| {
        let id = fs::read_to_string(setup.path(MACHINE_ID)).unwrap_or_default();
        let name = id
            .get(..8)
            .map_or_else(|| "orlop".to_owned(), |start| format!("orlop-{start}"));
        write_name(setup, &name);
        name
    });
    let is_set = nix::unistd::gethostname().is_ok_and(|current| current == name.as_str());
    if setup.is_machine
        && !is_set
        && let Err(error) = nix::unistd::sethostname(&name)
    {
        setup.fail(format!("cannot set the hostname {name}: {}", error.desc()));
    }
}

/// The file that the plan has for a configured name.
fn write_name(setup: &mut Setup, name: &str) {
    let path = setup.path("/etc/hostname");
    if path.parent().is_some_and(Path::is_dir)
        && let Err(error) = replace(
            &path,
            format!("{name}\n").as_bytes(),
            0o644,
            Owner::default(),
        )
    {
        setup.fail(format!("cannot write /etc/hostname: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_taken_as_uuids_and_as_plain_digits_alike() {
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(
            parse("01234567-89AB-CDEF-0123-456789ABCDEF\n").as_deref(),
            Some(id)
        );
        assert_eq!(parse(id).as_deref(), Some(id));
        assert_eq!(parse("00000000-0000-0000-0000-000000000000"), None);
        assert_eq!(parse("uninitialized"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn the_number_does_not_show_the_hardwares() {
        let uuid = "4c4c45440042351080395ac04f565331";
        let id = hashed(uuid);
        assert_ne!(id, uuid);
        assert_eq!(id, hashed(uuid));
        assert_eq!(&id[12..13], "4");
        assert!(matches!(&id[16..17], "8" | "9" | "a" | "b"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in any::<String>()) {
            let _ = parse(&text);
        }
    }
}
