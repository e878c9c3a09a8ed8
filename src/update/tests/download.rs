//! Downloads from a server that breaks off, over the loopback device.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use orlop_update::apply::apply;
use orlop_update::channel::{self, Latest};
use orlop_update::fetch::{Download, Patience, get};
use orlop_update::payload::Payload;
use orlop_update::signature::{Keyring, SecretKey};
use orlop_update::slots::Options;
use orlop_update::url::Url;

use crate::simulation::boots;
use crate::world::{Machine, Release};

const PATIENCE: Patience = Patience {
    timeout: Duration::from_secs(20),
    attempts: 4,
    pause: Duration::ZERO,
};

/// How a server behaves.
#[derive(Debug, Clone, Default)]
struct Manners {
    /// Bytes of a body after which the connection is closed; 0: all of them.
    breaks_after: usize,
    /// Answers to the first requests, in place of the file.
    first: Vec<&'static str>,
    /// Whether it knows ranges.
    has_ranges: bool,
    /// The version of the file changes with each request.
    changes: bool,
    is_chunked: bool,
    /// What it has for names that end so, in place of the file.
    other: Option<(&'static str, Vec<u8>)>,
}

struct Server {
    url: Url,
    requests: Arc<AtomicUsize>,
}

/// Serves `file` for every path until the test ends.
fn serve(file: Vec<u8>, manners: Manners) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/dir/file", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let number = count.fetch_add(1, Ordering::SeqCst);
            let _ = answer(stream.unwrap(), &file, &manners, number);
        }
    });
    Server { url, requests }
}

fn answer(
    mut stream: TcpStream,
    file: &[u8],
    manners: &Manners,
    number: usize,
) -> std::io::Result<()> {
    let mut start = None;
    let mut file = file;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim();
        if let (Some(path), Some((suffix, other))) = (line.strip_prefix("GET "), &manners.other)
            && path
                .split(' ')
                .next()
                .is_some_and(|path| path.ends_with(suffix))
        {
            file = other;
        }
        if let Some(range) = line.strip_prefix("Range: bytes=") {
            start = range.trim_end_matches('-').parse().ok();
        }
        if line.is_empty() {
            break;
        }
    }
    if let Some(answer) = manners.first.get(number) {
        return stream.write_all(answer.as_bytes());
    }
    let tag = if manners.changes { number } else { 0 };
    let start: usize = start
        .filter(|_| manners.has_ranges && !manners.changes)
        .unwrap_or(0);
    let body = &file[start..];
    let (status, range) = match start {
        0 => ("200 OK", String::new()),
        _ => (
            "206 Partial Content",
            format!(
                "Content-Range: bytes {start}-{}/{}\r\n",
                file.len() - 1,
                file.len()
            ),
        ),
    };
    let most = if manners.breaks_after == 0 {
        body.len()
    } else {
        manners.breaks_after
    };
    if manners.is_chunked {
        write!(
            stream,
            "HTTP/1.1 {status}\r\nETag: \"{tag}\"\r\nTransfer-Encoding: chunked\r\n\r\n"
        )?;
        for chunk in body.chunks(1000) {
            write!(stream, "{:x};x=y\r\n", chunk.len())?;
            stream.write_all(chunk)?;
            write!(stream, "\r\n")?;
        }
        return write!(stream, "0\r\n\r\n");
    }
    write!(
        stream,
        "HTTP/1.1 {status}\r\nETag: \"{tag}\"\r\nContent-Length: {}\r\n{range}\r\n",
        body.len()
    )?;
    stream.write_all(&body[..body.len().min(most)])
}

fn file() -> Vec<u8> {
    (0..100_000_u32).flat_map(|n| n.to_le_bytes()).collect()
}

fn read(server: &Server) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    Download::open(&server.url, PATIENCE)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[test]
fn a_download_goes_on_where_it_broke_off() {
    let server = serve(
        file(),
        Manners {
            breaks_after: 90_000,
            has_ranges: true,
            ..Manners::default()
        },
    );
    assert!(read(&server).unwrap() == file());
    assert_eq!(server.requests.load(Ordering::SeqCst), 5);
}

#[test]
fn without_ranges_it_skips_what_it_has_until_patience_ends() {
    let server = serve(
        file(),
        Manners {
            breaks_after: 90_000,
            ..Manners::default()
        },
    );
    let error = read(&server).unwrap_err().to_string();
    assert!(error.contains("broke off at byte 90000"), "{error}");
    let whole = serve(
        file(),
        Manners {
            first: vec!["HTTP/1.1 200 OK\r\nETag: \"0\"\r\nContent-Length: 400000\r\n\r\n\0\0\0"],
            ..Manners::default()
        },
    );
    assert!(read(&whole).unwrap() == file());
}

#[test]
fn a_server_that_is_busy_is_asked_again_and_one_that_says_no_is_not() {
    let busy = "HTTP/1.1 503 Busy\r\n\r\n";
    let server = serve(
        file(),
        Manners {
            first: vec![busy, busy, ""],
            ..Manners::default()
        },
    );
    assert!(read(&server).unwrap() == file());
    let server = serve(
        file(),
        Manners {
            first: vec!["HTTP/1.1 404 Not Found\r\n\r\n"],
            ..Manners::default()
        },
    );
    let error = read(&server).unwrap_err().to_string();
    assert!(error.ends_with("the server says 404 Not Found"), "{error}");
    assert_eq!(server.requests.load(Ordering::SeqCst), 1);
}

#[test]
fn a_file_that_is_replaced_meanwhile_is_not_glued_together() {
    let server = serve(
        file(),
        Manners {
            breaks_after: 90_000,
            has_ranges: true,
            changes: true,
            ..Manners::default()
        },
    );
    let error = read(&server).unwrap_err().to_string();
    assert!(error.contains("was replaced on the server"), "{error}");
}

#[test]
fn redirects_and_chunks_are_followed_and_a_long_answer_is_cut() {
    let server = serve(
        file(),
        Manners {
            first: vec!["HTTP/1.1 302 Found\r\nLocation: other\r\n\r\n"],
            is_chunked: true,
            ..Manners::default()
        },
    );
    assert!(read(&server).unwrap() == file());
    assert!(
        get(&server.url, 1000, PATIENCE)
            .unwrap_err()
            .to_string()
            .contains("longer than 1000 bytes")
    );
    for strange in [
        "SSH-2.0-x\r\n\r\n",
        "HTTP/1.1 x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    ] {
        let server = serve(
            file(),
            Manners {
                first: vec![strange],
                ..Manners::default()
            },
        );
        let error = read(&server).unwrap_err().to_string();
        assert!(error.contains("not understood"), "{strange:?}: {error}");
    }
    let forever = "HTTP/1.1 302 Found\r\nLocation: file\r\n\r\n";
    let server = serve(
        file(),
        Manners {
            first: vec![forever; 9],
            ..Manners::default()
        },
    );
    assert!(
        read(&server)
            .unwrap_err()
            .to_string()
            .contains("redirected too often")
    );
}

#[test]
fn an_update_is_applied_from_a_server_that_breaks_off() {
    let key = SecretKey::generate().unwrap();
    let (old, new) = (Release::new("1.0"), Release::new("1.1"));
    let server = serve(
        new.payload(&key),
        Manners {
            breaks_after: 20_000,
            has_ranges: true,
            ..Manners::default()
        },
    );
    let mut machine = Machine::new(&old);
    let download = Download::open(&server.url, PATIENCE).unwrap();
    let payload = Payload::open(download, &Keyring::new(vec![key.public()])).unwrap();
    apply(
        payload,
        &mut machine.disk,
        &mut machine.esp,
        &machine.running,
        Options::default(),
        &mut |_| {},
    )
    .unwrap();
    assert_eq!(
        boots(&machine.disk, &machine.esp, &[&old, &new]).unwrap(),
        "1.1"
    );
    assert!(server.requests.load(Ordering::SeqCst) > 2);
}

#[test]
fn a_channel_offers_its_newest_version() {
    let key = SecretKey::generate().unwrap();
    let directory = tempfile::tempdir().unwrap();
    for version in ["1.9", "1.10", "1.2"] {
        fs::write(
            directory.path().join(format!("orlop-{version}.update")),
            Release::new(version).payload(&key),
        )
        .unwrap();
    }
    fs::write(directory.path().join("README"), "no payload").unwrap();
    let payloads = channel::payloads(directory.path()).unwrap();
    let mut latest = Latest::of(&payloads).unwrap();
    latest.expires_s = Some(1000);
    latest.write(directory.path(), Some(&key)).unwrap();
    let read = |name: &str| fs::read(directory.path().join(name)).unwrap();
    let text = read(channel::FILE);
    let serve_signed = |text: Vec<u8>, signature: Vec<u8>| {
        let other = Some((channel::SIGNATURE, signature));
        serve(
            text,
            Manners {
                other,
                ..Manners::default()
            },
        )
    };
    let server = serve_signed(text.clone(), read(channel::SIGNATURE));
    let keys = Keyring::new(vec![key.public()]);
    let check = |server: &Server, channel: &str, keys: &Keyring, now_s: u64| {
        channel::check(&server.url, channel, "x86_64", keys, now_s, PATIENCE)
    };
    let (offer, payload) = check(&server, "stable", &keys, 999).unwrap();
    assert_eq!(offer.version.as_str(), "1.10");
    assert_eq!(
        payload,
        server.url.as_directory().join("orlop-1.10.update").unwrap()
    );
    let refused = |server: &Server, channel: &str, keys: &Keyring, now_s: u64, why: &str| {
        use std::error::Error as _;
        let error = check(server, channel, keys, now_s).unwrap_err();
        let source = error.source().map(ToString::to_string).unwrap_or_default();
        let error = format!("{error}: {source}");
        assert!(error.contains(why), "{error}");
    };
    let no_channel = "has no channel beta for x86_64; it has stable for x86_64";
    refused(&server, "beta", &keys, 999, no_channel);
    refused(
        &server,
        "stable",
        &keys,
        1007,
        "counts no more since 7 s ago",
    );
    let strangers = Keyring::new(vec![SecretKey::generate().unwrap().public()]);
    refused(&server, "stable", &strangers, 999, "does not trust");
    // A server that hides the newest version, or offers another one in its place.
    let older = String::from_utf8(text.clone())
        .unwrap()
        .replace("1.10", "1.9");
    let server = serve_signed(older.into_bytes(), read(channel::SIGNATURE));
    refused(
        &server,
        "stable",
        &keys,
        999,
        "was changed after it was signed",
    );
    let server = serve(
        text,
        Manners {
            first: vec!["HTTP/1.1 404 Not Found\r\n\r\n"],
            ..Manners::default()
        },
    );
    refused(&server, "stable", &keys, 999, "there is no signature of");
}
