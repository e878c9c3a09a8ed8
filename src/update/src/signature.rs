//! Signatures in minisign's form (<https://jedisct1.github.io/minisign/#signature-format>), so that its users' tools and keys work.
//!
//! Only the prehashed form, `ED`: Ed25519 over the message's BLAKE2b-512. The legacy form `Ed` is refused, as minisign itself
//! does without `-l` since 0.10.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use blake2::digest::consts::U32;
use blake2::{Blake2b, Blake2b512, Digest as _};
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use thiserror::Error;

/// The most signatures that a payload carries: enough for a rotation of keys.
pub const MOST_SIGNATURES: usize = 8;

/// The longest file of a key, in bytes.
const LONGEST_KEY: u64 = 4096;

/// How the files of public keys end.
const KEY_EXTENSION: &str = "pub";

/// The number by which a key is known.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; 8]);

impl fmt::Display for KeyId {
    /// As minisign prints it: the bytes as a little-endian number, without leading zeros.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}", u64::from_le_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// Why a key is of no use.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The file or directory can not be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// No key in minisign's form.
    #[error("no minisign key")]
    Form,
    /// The secret key has a password.
    #[error("the secret key has a password; sign with minisign itself, or make a key without one")]
    HasPassword,
    /// The secret key's sum is wrong.
    #[error("the secret key is damaged")]
    Damaged,
    /// A key in a keyring's directory is of no use.
    #[error("{0} is no public key")]
    InRing(PathBuf, #[source] Box<KeyError>),
    /// There is no randomness.
    #[error("cannot read random bytes")]
    Random(#[source] io::Error),
}

/// Why a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// Not in minisign's form.
    #[error("the signature is not in minisign's form")]
    Form,
    /// Made without the hash.
    #[error(
        "the signature is of minisign's legacy form; sign with minisign 0.10 or later, or with -H"
    )]
    Legacy,
    /// By a key that is not trusted.
    #[error("it is signed with the key {} alone, which this machine does not trust (it trusts {trusted})", list(.signers))]
    Untrusted {
        /// Whose signatures there are.
        signers: Vec<KeyId>,
        /// The keys that would have counted, for people.
        trusted: String,
    },
    /// By a trusted key's number, but not by the key, or not for this message.
    #[error(
        "the signature by {0} is wrong: the payload was changed after it was signed, or the key is another one"
    )]
    Wrong(KeyId),
    /// There is no signature.
    #[error("it is not signed")]
    Missing,
}

fn list(keys: &[KeyId]) -> String {
    let keys: Vec<String> = keys.iter().map(KeyId::to_string).collect();
    if keys.is_empty() {
        "none".to_owned()
    } else {
        keys.join(", ")
    }
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// Its number.
    pub id: KeyId,
    key: VerifyingKey,
}

impl PublicKey {
    /// Reads minisign's `.pub` file, or its second line alone.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let line = text
            .lines()
            .map(str::trim)
            .find(|line| !line.is_empty() && !line.starts_with("untrusted comment:"));
        let bytes = line
            .and_then(|line| BASE64_STANDARD.decode(line).ok())
            .ok_or(KeyError::Form)?;
        let (algorithm, rest) = bytes.split_first_chunk::<2>().ok_or(KeyError::Form)?;
        let (id, key) = rest.split_first_chunk::<8>().ok_or(KeyError::Form)?;
        let key: &[u8; 32] = key.try_into().map_err(|_| KeyError::Form)?;
        if algorithm != b"Ed" {
            return Err(KeyError::Form);
        }
        let key = VerifyingKey::from_bytes(key).map_err(|_| KeyError::Form)?;
        Ok(Self {
            id: KeyId(*id),
            key,
        })
    }

    /// The `.pub` file's text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let bytes = [b"Ed".as_slice(), &self.id.0, self.key.as_bytes()].concat();
        format!(
            "untrusted comment: minisign public key {}\n{}\n",
            self.id,
            BASE64_STANDARD.encode(bytes)
        )
    }
}

/// The keys that a machine trusts.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    keys: Vec<PublicKey>,
}

impl Keyring {
    /// A keyring of these keys.
    #[must_use]
    pub fn new(keys: Vec<PublicKey>) -> Self {
        Self { keys }
    }

    /// All `*.pub` files of a directory. A directory that is not there holds none; a file that is no key is an error, since
    /// who put it there relies on it.
    pub fn load(directory: &Path) -> Result<Self, KeyError> {
        let read_error = |e| KeyError::Read(directory.to_owned(), e);
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(read_error(e)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(read_error)?.path();
            if path.extension().is_some_and(|e| e == KEY_EXTENSION) {
                paths.push(path);
            }
        }
        paths.sort();
        let key = |path: PathBuf| {
            let text = read_bounded(&path)?;
            PublicKey::parse(&text).map_err(|e| KeyError::InRing(path, Box::new(e)))
        };
        Ok(Self {
            keys: paths.into_iter().map(key).collect::<Result<_, _>>()?,
        })
    }

    /// Whether no key is trusted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The numbers of the keys.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.keys.iter().map(|key| key.id)
    }

    /// The first of the signatures in `text` (minisign files, one behind another) that is a trusted key's for `message`.
    ///
    /// A wrong signature by a trusted key is an error even when another one would be right.
    pub fn verify(&self, message: &[u8], text: &str) -> Result<Signed, SignatureError> {
        let signatures = Signature::parse_all(text)?;
        if signatures.is_empty() {
            return Err(SignatureError::Missing);
        }
        let hash = Blake2b512::digest(message);
        let mut signed = None;
        for signature in &signatures {
            // Two keys may have one number, by mistake or on purpose: any that fits counts.
            let mut keys = self
                .keys
                .iter()
                .filter(|key| key.id == signature.key)
                .peekable();
            if keys.peek().is_none() {
                continue;
            }
            if !keys.any(|key| signature.is_by(key, &hash)) {
                return Err(SignatureError::Wrong(signature.key));
            }
            signed.get_or_insert_with(|| Signed {
                key: signature.key,
                comment: signature.comment.clone(),
            });
        }
        signed.ok_or_else(|| SignatureError::Untrusted {
            signers: signatures.iter().map(|signature| signature.key).collect(),
            trusted: list(&self.ids().collect::<Vec<_>>()),
        })
    }
}

/// A signature that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// By which key.
    pub key: KeyId,
    /// The trusted comment, which is signed too.
    pub comment: String,
}

#[derive(Debug)]
struct Signature {
    key: KeyId,
    signature: [u8; 64],
    comment: String,
    comment_signature: [u8; 64],
}

impl Signature {
    fn parse_all(text: &str) -> Result<Vec<Self>, SignatureError> {
        let lines: Vec<&str> = text
            .lines()
            .map(|line| line.trim_end_matches('\r'))
            .filter(|line| !line.is_empty())
            .collect();
        if lines.len() > MOST_SIGNATURES * 4 {
            return Err(SignatureError::Form);
        }
        lines.chunks(4).map(Self::parse).collect()
    }

    fn parse(lines: &[&str]) -> Result<Self, SignatureError> {
        let [untrusted, signature, trusted, comment_signature] = lines else {
            return Err(SignatureError::Form);
        };
        if !untrusted.starts_with("untrusted comment:") {
            return Err(SignatureError::Form);
        }
        let comment = trusted
            .strip_prefix("trusted comment: ")
            .ok_or(SignatureError::Form)?;
        let decode = |line: &str| {
            BASE64_STANDARD
                .decode(line)
                .map_err(|_| SignatureError::Form)
        };
        let bytes = decode(signature)?;
        let (algorithm, rest) = bytes.split_first_chunk::<2>().ok_or(SignatureError::Form)?;
        let (id, signature) = rest.split_first_chunk::<8>().ok_or(SignatureError::Form)?;
        match algorithm {
            b"ED" => {}
            b"Ed" => return Err(SignatureError::Legacy),
            _ => return Err(SignatureError::Form),
        }
        Ok(Self {
            key: KeyId(*id),
            signature: signature.try_into().map_err(|_| SignatureError::Form)?,
            comment: comment.to_owned(),
            comment_signature: decode(comment_signature)?
                .try_into()
                .map_err(|_| SignatureError::Form)?,
        })
    }

    /// Whether the key made both signatures: that of the message and the one that binds the trusted comment to it.
    fn is_by(&self, key: &PublicKey, hash: &[u8]) -> bool {
        let verify = |message: &[u8], signature: &[u8; 64]| {
            key.key
                .verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature))
                .is_ok()
        };
        let commented = [self.signature.as_slice(), self.comment.as_bytes()].concat();
        verify(hash, &self.signature) && verify(&commented, &self.comment_signature)
    }
}

/// A secret key without a password, for build machines that keep it safe by other means.
#[derive(Debug)]
pub struct SecretKey {
    id: KeyId,
    key: SigningKey,
}

/// minisign's secret key without its comment: algorithm, no key derivation, checksum algorithm, 48 unused bytes for the derivation,
/// and then number, key (64 bytes, the public half second) and sum.
const SECRET_BYTES: usize = 2 + 2 + 2 + 48 + 8 + 64 + 32;

impl SecretKey {
    /// A new key.
    pub fn generate() -> Result<Self, KeyError> {
        let mut random = [0_u8; 40];
        let source = fs::File::open("/dev/urandom");
        source
            .and_then(|mut file| io::Read::read_exact(&mut file, &mut random))
            .map_err(KeyError::Random)?;
        let (id, seed) = random.split_first_chunk::<8>().ok_or(KeyError::Form)?;
        let seed: &[u8; 32] = seed.try_into().map_err(|_| KeyError::Form)?;
        Ok(Self {
            id: KeyId(*id),
            key: SigningKey::from_bytes(seed),
        })
    }

    /// Reads a key that `minisign -G -W` or [`Self::to_text`] made.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let line = text
            .lines()
            .map(str::trim)
            .find(|line| !line.is_empty() && !line.starts_with("untrusted comment:"));
        let bytes = line
            .and_then(|line| BASE64_STANDARD.decode(line).ok())
            .ok_or(KeyError::Form)?;
        let bytes: &[u8; SECRET_BYTES] = bytes.as_slice().try_into().map_err(|_| KeyError::Form)?;
        let (head, rest) = bytes.split_at(54);
        match head {
            [b'E', b'd', 0, 0, b'B', b'2', ..] => {}
            [b'E', b'd', b'S', b'c', b'B', b'2', ..] => return Err(KeyError::HasPassword),
            _ => return Err(KeyError::Form),
        }
        let (id, rest) = rest.split_first_chunk::<8>().ok_or(KeyError::Form)?;
        let (pair, sum) = rest.split_first_chunk::<64>().ok_or(KeyError::Form)?;
        // minisign writes the sum only into keys that have a password, and zeros into others.
        if sum != [0; 32] && sum != Self::sum(id, pair).as_slice() {
            return Err(KeyError::Damaged);
        }
        let key = SigningKey::from_keypair_bytes(pair).map_err(|_| KeyError::Damaged)?;
        Ok(Self {
            id: KeyId(*id),
            key,
        })
    }

    /// The text of a file that minisign reads.
    #[must_use]
    pub fn to_text(&self) -> String {
        let pair = self.key.to_keypair_bytes();
        let mut bytes = b"Ed\0\0B2".to_vec();
        bytes.extend([0; 48]);
        bytes.extend(self.id.0);
        bytes.extend(pair);
        bytes.extend(Self::sum(&self.id.0, &pair));
        format!(
            "untrusted comment: minisign secret key {}\n{}\n",
            self.id,
            BASE64_STANDARD.encode(bytes)
        )
    }

    fn sum(id: &[u8; 8], pair: &[u8; 64]) -> Vec<u8> {
        Blake2b::<U32>::new()
            .chain_update(b"Ed")
            .chain_update(id)
            .chain_update(pair)
            .finalize()
            .to_vec()
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey {
            id: self.id,
            key: self.key.verifying_key(),
        }
    }

    /// The text of a signature file for `message`. `comment` is one line that is signed along.
    #[must_use]
    pub fn sign(&self, message: &[u8], comment: &str) -> String {
        let comment: String = comment.chars().filter(|c| !c.is_control()).collect();
        let signature = self.key.sign(&Blake2b512::digest(message)).to_bytes();
        let commented = [signature.as_slice(), comment.as_bytes()].concat();
        let comment_signature = self.key.sign(&commented).to_bytes();
        let bytes = [b"ED".as_slice(), &self.id.0, &signature].concat();
        format!(
            "untrusted comment: signature from orlop with the key {}\n{}\ntrusted comment: {comment}\n{}\n",
            self.id,
            BASE64_STANDARD.encode(bytes),
            BASE64_STANDARD.encode(comment_signature)
        )
    }
}

/// Whether `text` is signatures in minisign's form, whoever made them.
pub(crate) fn check_form(text: &str) -> Result<(), SignatureError> {
    Signature::parse_all(text).map(drop)
}

/// The text of a key's file.
pub fn read_bounded(path: &Path) -> Result<String, KeyError> {
    let error = |e| KeyError::Read(path.to_owned(), e);
    let mut text = String::new();
    let file = fs::File::open(path).map_err(error)?;
    io::Read::read_to_string(&mut io::Read::take(file, LONGEST_KEY), &mut text).map_err(error)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MESSAGE: &[u8] = b"a manifest";

    #[test]
    fn a_signature_counts_for_its_message_and_comment_alone() {
        let secret = SecretKey::generate().unwrap();
        let ring = Keyring::new(vec![secret.public()]);
        let text = secret.sign(MESSAGE, "orlop 1.2.3");
        assert_eq!(
            ring.verify(MESSAGE, &text).unwrap(),
            Signed {
                key: secret.id,
                comment: "orlop 1.2.3".to_owned()
            }
        );
        assert_eq!(
            ring.verify(b"another", &text),
            Err(SignatureError::Wrong(secret.id))
        );
        assert_eq!(
            ring.verify(MESSAGE, &text.replace("1.2.3", "1.2.4")),
            Err(SignatureError::Wrong(secret.id))
        );
        assert_eq!(ring.verify(MESSAGE, ""), Err(SignatureError::Missing));
    }

    #[test]
    fn any_trusted_key_of_several_will_do() {
        let (old, new) = (
            SecretKey::generate().unwrap(),
            SecretKey::generate().unwrap(),
        );
        let both = old.sign(MESSAGE, "") + &new.sign(MESSAGE, "");
        for ring in [
            Keyring::new(vec![old.public()]),
            Keyring::new(vec![new.public()]),
        ] {
            ring.verify(MESSAGE, &both).unwrap();
        }
        let stranger = SecretKey::generate().unwrap();
        let error = Keyring::new(vec![stranger.public()])
            .verify(MESSAGE, &both)
            .unwrap_err();
        assert_eq!(
            error,
            SignatureError::Untrusted {
                signers: vec![old.id, new.id],
                trusted: stranger.id.to_string()
            }
        );
    }

    #[test]
    fn keys_survive_being_written_down() {
        let secret = SecretKey::generate().unwrap();
        let again = SecretKey::parse(&secret.to_text()).unwrap();
        assert_eq!(
            PublicKey::parse(&secret.public().to_text()).unwrap(),
            again.public()
        );
        let damaged = secret
            .to_text()
            .replace("AAAAAAAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAAAAAAAB");
        assert!(
            SecretKey::parse(&damaged).is_ok(),
            "the derivation's bytes are not looked at"
        );
        assert!(matches!(SecretKey::parse("RWQAAEIy"), Err(KeyError::Form)));
    }

    #[test]
    fn a_keyring_is_a_directory_and_a_broken_key_in_it_is_told() {
        let directory = tempfile::tempdir().unwrap();
        assert!(
            Keyring::load(&directory.path().join("none"))
                .unwrap()
                .is_empty()
        );
        let secret = SecretKey::generate().unwrap();
        fs::write(directory.path().join("2026.pub"), secret.public().to_text()).unwrap();
        fs::write(directory.path().join("README"), "no key").unwrap();
        assert_eq!(
            Keyring::load(directory.path())
                .unwrap()
                .ids()
                .collect::<Vec<_>>(),
            [secret.id]
        );
        fs::write(directory.path().join("broken.pub"), "no key").unwrap();
        assert!(matches!(
            Keyring::load(directory.path()),
            Err(KeyError::InRing(..))
        ));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_reader_panic(text in "(untrusted comment: |trusted comment: |[A-Za-z0-9+/=\n]{0,40}){0,12}") {
            let _ = (PublicKey::parse(&text), SecretKey::parse(&text));
            prop_assert!(Keyring::default().verify(MESSAGE, &text).is_err());
        }
    }
}
