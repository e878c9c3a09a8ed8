//! The secret that lets a machine into a cluster, and the proof of it without a word of it on the wire
//! (`docs/store-peers.md`, "Proof").

use std::io;

use hmac::{Hmac, Mac};
use sha2::Sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::peers::{frame, read_frame};

/// Random bytes that each side adds, so that no proof fits twice.
const NONCE_BYTES: usize = 32;
const PROOF_BYTES: usize = 32;
/// What the two sides' proofs begin with, so that one is never taken for the other.
const ASKS: &[u8] = b"orlop store: a machine asks";
const ANSWERS: &[u8] = b"orlop store: a member answers";

/// The secret of a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// `None` for one that is empty.
    pub fn new(text: String) -> Option<Self> {
        (!text.is_empty()).then_some(Self(text))
    }

    fn mac(&self, label: &[u8], kind: u8, nonces: [&[u8]; 2], body: &[u8]) -> Hmac<Sha256> {
        // HMAC takes keys of any length, so this is never `None`'s default.
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_bytes())
            .unwrap_or_else(|_| Hmac::new(&Default::default()));
        mac.update(label);
        mac.update(&[kind]);
        for nonce in nonces {
            mac.update(nonce);
        }
        mac.update(body);
        mac
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Random bytes of the kernel's.
///
/// # Errors
/// `getrandom(2)` fails.
fn nonce() -> io::Result<[u8; NONCE_BYTES]> {
    let mut bytes = [0; NONCE_BYTES];
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = bytes.get_mut(filled..).unwrap_or_default();
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

/// Says `body` after a hello of `kind`, proves the token, and returns what the member that was called answers, which has
/// proved it too.
///
/// # Errors
/// The connection breaks, which it also does when the other side has another token, or the answer's proof does not fit.
pub(super) async fn ask(
    stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
    token: &Token,
    kind: u8,
    body: &[u8],
) -> io::Result<Vec<u8>> {
    let mut theirs = [0; NONCE_BYTES];
    stream.read_exact(&mut theirs).await?;
    let ours = nonce()?;
    let proof = token.mac(ASKS, kind, [&theirs, &ours], body).finalize();
    let mut said = ours.to_vec();
    said.extend_from_slice(&proof.into_bytes());
    said.extend_from_slice(body);
    stream.write_all(&frame(&said)).await?;
    stream.flush().await?;
    let answer = read_frame(stream).await?;
    let (proof, body) = answer
        .split_first_chunk::<PROOF_BYTES>()
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    token
        .mac(ANSWERS, kind, [&theirs, &ours], body)
        .verify_slice(proof)
        .map_err(|_| io::Error::other("the other side does not know the token"))?;
    Ok(body.to_vec())
}

/// A question whose asker has proved the token.
#[derive(Debug)]
pub(super) struct Asked {
    kind: u8,
    nonces: [[u8; NONCE_BYTES]; 2],
    /// What is asked.
    pub(super) body: Vec<u8>,
}

/// Takes a question of `kind`.
///
/// # Errors
/// The connection breaks, or the asker has another token.
pub(super) async fn take(
    stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
    token: &Token,
    kind: u8,
) -> io::Result<Asked> {
    let ours = nonce()?;
    stream.write_all(&ours).await?;
    stream.flush().await?;
    let said = read_frame(stream).await?;
    let short = io::ErrorKind::UnexpectedEof;
    let (theirs, rest) = said.split_first_chunk::<NONCE_BYTES>().ok_or(short)?;
    let (proof, body) = rest.split_first_chunk::<PROOF_BYTES>().ok_or(short)?;
    token
        .mac(ASKS, kind, [&ours, theirs], body)
        .verify_slice(proof)
        .map_err(|_| io::Error::new(io::ErrorKind::PermissionDenied, "it has another token"))?;
    Ok(Asked {
        kind,
        nonces: [ours, *theirs],
        body: body.to_vec(),
    })
}

impl Asked {
    /// Answers.
    ///
    /// # Errors
    /// The connection breaks.
    pub(super) async fn answer(
        &self,
        stream: &mut (impl AsyncWriteExt + Unpin),
        token: &Token,
        body: &[u8],
    ) -> io::Result<()> {
        let [ours, theirs] = &self.nonces;
        let proof = token
            .mac(ANSWERS, self.kind, [ours, theirs], body)
            .finalize();
        let mut said = proof.into_bytes().to_vec();
        said.extend_from_slice(body);
        stream.write_all(&frame(&said)).await?;
        stream.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Token {
        Token::new(text.into()).expect("it is not empty")
    }

    async fn talk(asker: &Token, member: &Token) -> (io::Result<Vec<u8>>, io::Result<Vec<u8>>) {
        let (mut here, mut there) = tokio::io::duplex(4096);
        // Each end goes with its side, so that the other one sees it go.
        let asks = async move { ask(&mut here, asker, 3, b"let me in").await };
        let answers = async move {
            let asked = take(&mut there, member, 3).await?;
            asked.answer(&mut there, member, b"come").await?;
            Ok(asked.body)
        };
        tokio::join!(asks, answers)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn both_sides_prove_the_token() {
        let (answer, body) = talk(&token("secret"), &token("secret")).await;
        assert_eq!(answer.expect("the tokens are the same"), b"come");
        assert_eq!(body.expect("the tokens are the same"), b"let me in");
        let (answer, body) = talk(&token("guess"), &token("secret")).await;
        assert!(answer.is_err() && body.is_err());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_asker_is_not_taken_in_by_an_echo() {
        // One that does not know the token sends back what it gets.
        let (mut here, mut there) = tokio::io::duplex(4096);
        let liar = async move {
            there.write_all(&[7; NONCE_BYTES]).await?;
            let said = read_frame(&mut there).await?;
            there
                .write_all(&frame(said.get(NONCE_BYTES..).unwrap_or_default()))
                .await
        };
        let secret = token("secret");
        let (answer, lied) = tokio::join!(ask(&mut here, &secret, 3, b"x"), liar);
        assert!(answer.is_err());
        lied.expect("it spoke");
    }
}
