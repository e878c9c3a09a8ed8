//! The original minisign as the judge of ours, where the machine has it.

use std::fs;
use std::path::Path;
use std::process::Command;

use orlop_update::signature::{Keyring, PublicKey, SecretKey};

fn minisign(directory: &Path, arguments: &[&str]) -> Option<(bool, String)> {
    let output = match Command::new("minisign")
        .args(arguments)
        .current_dir(directory)
        .output()
    {
        Ok(output) => output,
        Err(e) => {
            eprintln!("skipped: minisign cannot be run: {e}");
            return None;
        }
    };
    let said = [output.stdout, output.stderr].concat();
    Some((
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

#[test]
fn what_minisign_signs_counts_here() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let Some(made) = minisign(at, &["-G", "-W", "-p", "key.pub", "-s", "key.sec"]) else {
        return;
    };
    assert!(made.0, "{}", made.1);
    fs::write(at.join("manifest"), "a manifest").unwrap();
    let signed = minisign(
        at,
        &[
            "-S",
            "-W",
            "-s",
            "key.sec",
            "-m",
            "manifest",
            "-t",
            "orlop 1.2.3",
        ],
    )
    .unwrap();
    assert!(signed.0, "{}", signed.1);
    let read = |name: &str| fs::read_to_string(at.join(name)).unwrap();
    let ring = Keyring::new(vec![PublicKey::parse(&read("key.pub")).unwrap()]);
    let signed = ring
        .verify(b"a manifest", &read("manifest.minisig"))
        .unwrap();
    assert_eq!(signed.comment, "orlop 1.2.3");
    assert!(read("key.pub").contains(&signed.key.to_string()));

    // Its secret key signs here too.
    let secret = SecretKey::parse(&read("key.sec")).unwrap();
    ring.verify(b"a manifest", &secret.sign(b"a manifest", ""))
        .unwrap();
}

#[test]
fn what_is_signed_here_counts_for_minisign() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let secret = SecretKey::generate().unwrap();
    fs::write(at.join("key.pub"), secret.public().to_text()).unwrap();
    fs::write(at.join("key.sec"), secret.to_text()).unwrap();
    fs::write(at.join("manifest"), "a manifest").unwrap();
    fs::write(
        at.join("manifest.minisig"),
        secret.sign(b"a manifest", "orlop 1.2.3"),
    )
    .unwrap();
    let Some(verified) = minisign(at, &["-V", "-p", "key.pub", "-m", "manifest"]) else {
        return;
    };
    assert!(
        verified.0 && verified.1.contains("orlop 1.2.3"),
        "{}",
        verified.1
    );

    // minisign takes the secret key, and refuses what was changed.
    let signed = minisign(
        at,
        &["-S", "-W", "-s", "key.sec", "-m", "manifest", "-x", "again"],
    )
    .unwrap();
    assert!(signed.0, "{}", signed.1);
    fs::write(at.join("manifest"), "another manifest").unwrap();
    assert!(
        !minisign(at, &["-V", "-p", "key.pub", "-m", "manifest"])
            .unwrap()
            .0
    );
}
