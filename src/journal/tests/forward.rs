//! Forwarding to servers that are slow, away, or do not want it.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use orlop_journal::clock::Moment;
use orlop_journal::entry::{Entry, Id, Transport};
use orlop_journal::forward::{self, Destination, Protocol, Settings, Tls};
use orlop_journal::store::{Options, Store};
use orlop_testing::Authority;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;
use tempfile::TempDir;

const BOOT: Id = Id([1; 16]);
/// No message within this is a failure, not slowness.
const PATIENCE: Duration = Duration::from_secs(60);

fn store(directory: &Path, budget_bytes: u64) -> Store {
    Store::new(Options {
        directory: directory.to_owned(),
        budget_bytes: Some(budget_bytes),
        machine: Id([9; 16]),
        boot: BOOT,
    })
}

fn log(store: &mut Store, priority: u8, text: &str) {
    let mut entry = Entry::new(priority, Transport::Stdout, text.as_bytes().to_vec());
    entry.unit = Some("web.service".to_owned());
    entry.identifier = Some("web".to_owned());
    entry.realtime_us = 1_795_237_801_000_042;
    store.push(entry, Moment::now());
    store.flush(Moment::now());
    assert!(store.take_failure().is_none());
}

/// Starts the role in a thread, which ends with this process.
fn forward(work: &TempDir, protocol: Protocol, port: u16) {
    forward_with(work, protocol, port, None);
}

fn forward_with(work: &TempDir, protocol: Protocol, port: u16, tls: Option<Tls>) {
    let settings = Settings {
        directory: work.path().join("journal"),
        cursors: work.path().join("cursors"),
        hostname: "deck".to_owned(),
        boot: BOOT,
        retry_min: Duration::from_millis(20),
        retry_max: Duration::from_millis(200),
        resolve: |name| match name {
            "logs.test" => Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]),
            other => Err(format!("no such host: {other}")),
        },
    };
    let destination = Destination {
        name: "test".to_owned(),
        protocol,
        host: "logs.test".to_owned(),
        port,
        path: String::new(),
        tls,
        priority_max: 6,
    };
    std::thread::spawn(move || forward::run(&settings, &[destination]));
}

fn saved(work: &TempDir) -> Option<String> {
    std::fs::read_to_string(work.path().join("cursors/test.cursor")).ok()
}

/// Waits until it is noted that the record of that number is sent.
fn wait_for_cursor(work: &TempDir, sequence: u64) {
    let begun = std::time::Instant::now();
    while !saved(work).is_some_and(|text| text.ends_with(&format!(" {sequence}\n"))) {
        assert!(begun.elapsed() < PATIENCE, "{:?}", saved(work));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn accept(listener: &TcpListener) -> BufReader<TcpStream> {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    BufReader::new(stream)
}

/// The next message with its length before it.
fn counted(stream: &mut impl BufRead) -> String {
    let mut length = Vec::new();
    stream.read_until(b' ', &mut length).unwrap();
    let length = String::from_utf8(length).unwrap();
    let mut message = vec![0; length.trim_end().parse().unwrap()];
    stream.read_exact(&mut message).unwrap();
    String::from_utf8(message).unwrap()
}

#[test]
fn datagrams_hold_one_message_each_and_debug_is_left_out() {
    let work = TempDir::new().unwrap();
    let mut store = store(&work.path().join("journal"), 1 << 20);
    log(&mut store, 3, "broken");
    log(&mut store, 7, "detail");
    log(&mut store, 6, "fine");
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    forward(
        &work,
        Protocol::SyslogUdp,
        server.local_addr().unwrap().port(),
    );
    let mut bytes = [0; 1024];
    for (start, end) in [
        (
            "<27>1 2026-11-21T05:10:01.000042Z deck web - - [orlop@32473 unit=\"web.service\"",
            "] broken",
        ),
        ("<30>1 ", "] fine"),
    ] {
        let length = server.recv(&mut bytes).unwrap();
        let text = std::str::from_utf8(&bytes[..length]).unwrap();
        assert!(text.starts_with(start) && text.ends_with(end), "{text}");
    }
}

#[test]
fn a_stream_comes_back_after_the_server_was_away_and_nothing_is_missing() {
    let work = TempDir::new().unwrap();
    let mut store = store(&work.path().join("journal"), 1 << 20);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    log(&mut store, 6, "first\tline");
    forward(&work, Protocol::SyslogTcp, address.port());
    let mut stream = accept(&listener);
    assert!(counted(&mut stream).ends_with("] first\tline"));
    wait_for_cursor(&work, 1);
    // The server goes, and while nobody listens more is logged; the journal's writer does not notice.
    drop((stream, listener));
    for number in 2..40 {
        log(&mut store, 6, &format!("line {number}"));
    }
    let listener = TcpListener::bind(address).unwrap();
    let mut stream = accept(&listener);
    for number in 2..40 {
        let text = counted(&mut stream);
        assert!(text.ends_with(&format!("] line {number}")), "{text}");
    }
    wait_for_cursor(&work, 39);
}

#[test]
fn what_the_journal_gave_up_meanwhile_is_counted() {
    let work = TempDir::new().unwrap();
    let directory = work.path().join("journal");
    let mut store = store(&directory, 256 << 10);
    // A first one was sent, as the cursor says.
    log(&mut store, 6, "sent");
    let id = orlop_journal::reader::Journal::open(&directory)
        .unwrap()
        .newest_id()
        .unwrap();
    std::fs::create_dir(work.path().join("cursors")).unwrap();
    std::fs::write(work.path().join("cursors/test.cursor"), format!("{id} 1\n")).unwrap();
    let long = "x".repeat(2000);
    for number in 2..=500 {
        log(&mut store, 6, &format!("{number} {long}"));
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    forward(
        &work,
        Protocol::SyslogTcp,
        listener.local_addr().unwrap().port(),
    );
    let mut stream = accept(&listener);
    let told = counted(&mut stream);
    let (_, told) = told.split_once("] ").unwrap();
    let (lost, rest) = told.split_once(' ').unwrap();
    let lost: usize = lost.parse().unwrap();
    assert!(lost > 100, "{told}");
    assert!(rest.starts_with("messages not forwarded: "), "{told}");
    for number in lost + 2..=500 {
        let text = counted(&mut stream);
        assert!(
            text.contains(&format!("] {number} x")),
            "{number}: {}",
            &text[..300]
        );
    }
}

/// Reads one request; its first line and body.
fn request(stream: &mut impl BufRead) -> (String, Value) {
    let (mut head, mut length) = (String::new(), 0);
    let mut first = String::new();
    stream.read_line(&mut first).unwrap();
    while head != "\r\n" {
        head.clear();
        stream.read_line(&mut head).unwrap();
        if let Some(value) = head.strip_prefix("Content-Length: ") {
            length = value.trim_end().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (first, serde_json::from_slice(&body).unwrap())
}

/// Answers one request; its first line and body.
fn answer(listener: &TcpListener, status: &str) -> (String, Value) {
    let mut stream = accept(listener);
    let asked = request(&mut stream);
    let mut stream = stream.into_inner();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").unwrap();
    asked
}

fn lines(body: &Value) -> Vec<&str> {
    let values = body["streams"][0]["values"].as_array().unwrap();
    values
        .iter()
        .map(|value| value[1].as_str().unwrap())
        .collect()
}

#[test]
fn loki_gets_a_batch_again_until_it_takes_it_and_a_refused_one_holds_nothing_up() {
    let work = TempDir::new().unwrap();
    let mut store = store(&work.path().join("journal"), 1 << 20);
    log(&mut store, 6, "one");
    log(&mut store, 6, "two");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    forward(&work, Protocol::Loki, listener.local_addr().unwrap().port());
    let (first, body) = answer(&listener, "503 Service Unavailable");
    assert_eq!(first, "POST /loki/api/v1/push HTTP/1.1\r\n");
    assert_eq!(body["streams"][0]["stream"]["unit"], "web.service");
    assert_eq!(body["streams"][0]["stream"]["host"], "deck");
    assert_eq!(lines(&body), ["one", "two"]);
    // A connection that ends without a word, too.
    drop(accept(&listener));
    assert_eq!(
        lines(&answer(&listener, "204 No Content").1),
        ["one", "two"]
    );
    wait_for_cursor(&work, 2);
    log(&mut store, 6, "too old");
    assert_eq!(lines(&answer(&listener, "400 Bad Request").1), ["too old"]);
    wait_for_cursor(&work, 3);
    log(&mut store, 6, "three");
    assert_eq!(lines(&answer(&listener, "204 No Content").1), ["three"]);
}

/// A server that takes clients whose certificates are the authority's.
fn server(authority: &Authority) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let der = CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap();
    let mut clients = RootCertStore::empty();
    clients.add(der).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(clients), Arc::clone(&provider));
    let signed = authority.sign(&["logs.test"]).unwrap();
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(signed.certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).unwrap(),
        );
    Arc::new(server.unwrap())
}

type Secure = BufReader<StreamOwned<ServerConnection, TcpStream>>;

/// The next connection, when both sides agree.
fn agree(listener: &TcpListener, server: &Arc<ServerConfig>) -> std::io::Result<Secure> {
    let mut socket = accept(listener).into_inner();
    let mut connection = ServerConnection::new(Arc::clone(server)).unwrap();
    while connection.is_handshaking() || connection.wants_write() {
        if let Err(err) = connection.complete_io(&mut socket) {
            // What it objects to is still to be told.
            let _ = connection.write_tls(&mut socket);
            return Err(err);
        }
    }
    Ok(BufReader::new(StreamOwned::new(connection, socket)))
}

#[test]
fn with_tls_nothing_is_sent_before_both_certificates_are_right() {
    let work = TempDir::new().unwrap();
    let mut store = store(&work.path().join("journal"), 1 << 20);
    log(&mut store, 6, "confidential");
    let (ours, other) = (Authority::new().unwrap(), Authority::new().unwrap());
    let put = |name: &str, text: &str| std::fs::write(work.path().join(name), text).unwrap();
    let signed = other.sign(&["deck"]).unwrap();
    put("ca.pem", &other.pem);
    put("cert.pem", &signed.certificate);
    put("key.pem", &signed.key);
    let server = server(&ours);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let tls = Tls {
        authority: Some(work.path().join("ca.pem")),
        certificate: Some((work.path().join("cert.pem"), work.path().join("key.pem"))),
    };
    forward_with(&work, Protocol::SyslogTcp, address.port(), Some(tls));
    // The server's authority is not known to the client.
    assert!(agree(&listener, &server).is_err());
    put("ca.pem", &ours.pem);
    // The client's authority is not known to the server, which says so after the client has done its part.
    for _ in 0..3 {
        assert!(agree(&listener, &server).is_err());
    }
    assert_eq!(saved(&work), None, "it is not taken for sent");
    let signed = ours.sign(&["deck"]).unwrap();
    put("key.pem", &signed.key);
    put("cert.pem", &signed.certificate);
    let mut stream = loop {
        // A connection may have been begun with the old files.
        if let Ok(stream) = agree(&listener, &server) {
            break stream;
        }
    };
    assert!(counted(&mut stream).ends_with("] confidential"));
    wait_for_cursor(&work, 1);
    // A server that ends the connection in order gets the next line by another one.
    stream.get_mut().conn.send_close_notify();
    stream.get_mut().flush().unwrap();
    log(&mut store, 6, "more");
    let mut next = agree(&listener, &server).unwrap();
    assert!(counted(&mut next).ends_with("] more"));
}

#[test]
fn loki_is_pushed_to_over_tls() {
    let work = TempDir::new().unwrap();
    let mut store = store(&work.path().join("journal"), 1 << 20);
    log(&mut store, 6, "one");
    let ours = Authority::new().unwrap();
    let signed = ours.sign(&["deck"]).unwrap();
    for (name, text) in [
        ("ca.pem", &ours.pem),
        ("cert.pem", &signed.certificate),
        ("key.pem", &signed.key),
    ] {
        std::fs::write(work.path().join(name), text).unwrap();
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tls = Tls {
        authority: Some(work.path().join("ca.pem")),
        certificate: Some((work.path().join("cert.pem"), work.path().join("key.pem"))),
    };
    let port = listener.local_addr().unwrap().port();
    forward_with(&work, Protocol::Loki, port, Some(tls));
    let mut stream = agree(&listener, &server(&ours)).unwrap();
    let (_, body) = request(&mut stream);
    assert_eq!(lines(&body), ["one"]);
    let stream = stream.get_mut();
    write!(stream, "HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    wait_for_cursor(&work, 1);
}
