//! Payloads: what is refused, and with which words.

use std::fs;

use orlop_update::apply::check;
use orlop_update::pack::{Compressor, PackError, add_signature, manifest_text, pack};
use orlop_update::payload::{Payload, PayloadError};
use orlop_update::signature::{Keyring, SecretKey};

use crate::world::{LOADER, Release, open};

fn error(payload: &[u8], key: &SecretKey) -> String {
    let ring = Keyring::new(vec![key.public()]);
    let result = Payload::open(payload, &ring).and_then(|payload| check(payload, &mut |_| {}));
    result.unwrap_err().to_string()
}

#[test]
fn a_payload_gives_back_what_was_packed() {
    let key = SecretKey::generate().unwrap();
    let release = Release::new("1.2.3");
    let bytes = release.payload(&key);
    let mut payload = open(&bytes, &key);
    assert_eq!(
        payload.signed().unwrap().comment,
        "orlop 1.2.3 x86_64 stable"
    );
    for expected in [
        &release.uki,
        &release.root,
        &release.verity,
        &LOADER.to_vec(),
    ] {
        let mut part: Vec<u8> = Vec::new();
        payload
            .next_part::<PayloadError>(&mut |bytes| {
                part.extend(bytes);
                Ok(())
            })
            .unwrap()
            .unwrap();
        assert!(part == *expected);
    }
    assert!(
        payload
            .next_part::<PayloadError>(&mut |_| Ok(()))
            .unwrap()
            .is_none()
    );
}

#[test]
fn the_program_zstd_packs_too() {
    let key = SecretKey::generate().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("payload");
    let contents = Release::new("1.2.3").contents(directory.path());
    let packed = pack(
        &contents,
        &Compressor::Zstd { level: 19 },
        Some(&key),
        &path,
    );
    match packed {
        Err(PackError::Zstd(_, why)) if why.contains("os error 2") => {
            return eprintln!("skipped: no zstd: {why}");
        }
        other => other.unwrap(),
    };
    let bytes = fs::read(&path).unwrap();
    check(open(&bytes, &key), &mut |_| {}).unwrap();
    assert!(bytes.len() < 90_000, "{}", bytes.len());
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        5,
        "no file is left over"
    );
}

#[test]
fn each_damage_has_its_own_message() {
    let key = SecretKey::generate().unwrap();
    let bytes = Release::new("1.2.3").payload(&key);
    let manifest_at = 32 + 4096;
    let flipped = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        error(&bytes, &key)
    };
    assert_eq!(flipped(0), "it is no update payload");
    assert_eq!(
        flipped(8),
        "its header has version 0; this version of Orlop knows 1"
    );
    assert_eq!(flipped(30), "its header is damaged");
    assert!(flipped(manifest_at + 20).contains("was changed after it was signed"));
    assert!(flipped(32 + 100).contains("signature"));
    let last = flipped(bytes.len() - 1000);
    assert!(last.starts_with("verity is damaged"), "{last}");
    let cut = error(&bytes[..bytes.len() - 9], &key);
    assert!(
        cut.contains("ends early") || cut.contains("verity is damaged"),
        "{cut}"
    );
    assert_eq!(
        error(&bytes[..10], &key),
        "the payload ends early, in its header"
    );
    assert_eq!(
        error(&bytes[..100], &key),
        "the payload ends early, in its signature"
    );
    assert_eq!(
        error(&bytes[..manifest_at + 9], &key),
        "the payload ends early, in its manifest"
    );
    assert_eq!(error(b"<!DOCTYPE html>", &key), "it is no update payload");
}

#[test]
fn a_stranger_s_signature_or_none_is_refused() {
    let (key, stranger) = (
        SecretKey::generate().unwrap(),
        SecretKey::generate().unwrap(),
    );
    let release = Release::new("1.2.3");
    let bytes = release.payload(&stranger);
    let said = error(&bytes, &key);
    assert!(
        said.contains(&stranger.public().id.to_string()) && said.contains("does not trust"),
        "{said}"
    );

    // Unsigned, and then signed twice: by a key that goes and by one that comes.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("payload");
    pack(
        &release.contents(directory.path()),
        &Compressor::BuiltIn,
        None,
        &path,
    )
    .unwrap();
    assert_eq!(error(&fs::read(&path).unwrap(), &key), "it is not signed");
    let text = manifest_text(&path).unwrap();
    for signer in [&stranger, &key] {
        add_signature(&path, &signer.sign(&text, "")).unwrap();
    }
    let bytes = fs::read(&path).unwrap();
    check(open(&bytes, &key), &mut |_| {}).unwrap();
    check(open(&bytes, &stranger), &mut |_| {}).unwrap();
    assert!(matches!(
        add_signature(&path, "no signature"),
        Err(PackError::Signature(..))
    ));
}

#[test]
fn an_image_that_boots_another_root_is_not_packed() {
    let directory = tempfile::tempdir().unwrap();
    let mut release = Release::new("1.2.3");
    release.uki = Release::new("1.2.4").uki;
    let path = directory.path().join("payload");
    let error = pack(
        &release.contents(directory.path()),
        &Compressor::BuiltIn,
        None,
        &path,
    )
    .unwrap_err();
    assert!(matches!(error, PackError::RootHash { .. }), "{error}");
    assert!(!path.exists());
}
