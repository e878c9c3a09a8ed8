//! The store's process, and a way to it that can be cut.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use orlop_agent::client::Client;
use orlop_agent::connect::TlsFlags;
use orlop_store::server::{Tls, TlsFiles};
use orlop_testing::{Process, free_address, write_certificates};

/// Where a child process of the test finds what to serve.
const DATA_DIR: &str = "ORLOP_AGENT_TEST_DATA_DIR";
const ADDRESS: &str = "ORLOP_AGENT_TEST_ADDRESS";
/// Where it finds its certificates, if it speaks TLS.
const CERTIFICATES: &str = "ORLOP_AGENT_TEST_CERTIFICATES";
const PATIENCE: Duration = Duration::from_secs(30);

/// Our member itself, when this binary is started by one of the tests; else nothing.
#[test]
fn member_process() {
    let (Some(data_dir), Ok(address)) = (std::env::var_os(DATA_DIR), std::env::var(ADDRESS)) else {
        return;
    };
    let files = std::env::var_os(CERTIFICATES).map(PathBuf::from);
    let address: SocketAddr = address.parse().expect("an address");
    let (listen, tls) = match files {
        None => (vec![address], Tls::default()),
        Some(files) => {
            let tls = Tls {
                listen: vec![address],
                clients: Some(TlsFiles {
                    certificate: files.join("crt"),
                    key: files.join("key"),
                    authority: Some(files.join("ca")),
                }),
                peers: None,
            };
            (Vec::new(), tls)
        }
    };
    let settings = orlop_store::server::Settings {
        name: "one".into(),
        data_dir: data_dir.into(),
        listen,
        client_urls: vec![format!("http://{address}")],
        peer_listen: Vec::new(),
        peer_urls: vec!["http://localhost:2380".into()],
        bootstrap: orlop_store::server::Bootstrap::Alone,
        tls,
        options: orlop_store::node::Options::default(),
    };
    orlop_store::server::run(&settings, |_| {}).expect("the member serves");
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Ours,
    Etcd,
}

pub(crate) struct Store {
    kind: Kind,
    /// It takes only clients with a certificate then.
    tls: bool,
    address: SocketAddr,
    // In this order: what it said is in the directory.
    process: Process,
    directory: tempfile::TempDir,
}

fn spawn(kind: Kind, directory: &Path, address: SocketAddr, tls: bool) -> Process {
    let data_dir = directory.join("data");
    let [ca, crt, key] = ["ca", "crt", "key"].map(|name| directory.join(name));
    let mut command = match kind {
        Kind::Ours => {
            let mut command = Command::new(std::env::current_exe().expect("the test is a file"));
            command
                .args(["store::member_process", "--exact", "--nocapture"])
                .env(DATA_DIR, data_dir)
                .env(ADDRESS, address.to_string());
            if tls {
                command.env(CERTIFICATES, directory);
            }
            command
        }
        Kind::Etcd => {
            let url = format!("{}://{address}", if tls { "https" } else { "http" });
            let peer = format!("http://{}", free_address());
            let mut command = Command::new("etcd");
            command
                .args(["--name", "one", "--logger", "zap", "--log-level", "error"])
                .args([
                    "--listen-client-urls",
                    &url,
                    "--advertise-client-urls",
                    &url,
                ])
                .args(["--listen-peer-urls", &peer])
                .args(["--initial-advertise-peer-urls", "http://localhost:2380"])
                .args(["--initial-cluster", "one=http://localhost:2380"])
                .arg("--data-dir")
                .arg(data_dir);
            if tls {
                command.args(["--cert-file".as_ref(), crt.as_os_str()]);
                command.args(["--key-file".as_ref(), key.as_os_str()]);
                command.args(["--trusted-ca-file".as_ref(), ca.as_os_str()]);
                command.arg("--client-cert-auth");
            }
            command
        }
    };
    Process::spawn(command.stdin(Stdio::null()), &directory.join("log")).unwrap_or_else(|err| {
        panic!("start {kind:?} (Debian's package etcd-server is needed): {err}")
    })
}

impl Store {
    pub(crate) fn new(kind: Kind, tls: bool) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        if tls {
            write_certificates(directory.path());
        }
        let address = free_address();
        let process = spawn(kind, directory.path(), address, tls);
        let store = Self {
            kind,
            tls,
            address,
            process,
            directory,
        };
        store.wait();
        store
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of the store when it is reached at an address.
    pub(crate) fn url(&self, address: SocketAddr) -> String {
        format!("{}://{address}", if self.tls { "https" } else { "http" })
    }

    /// What its clients need.
    pub(crate) fn certificates(&self) -> TlsFlags {
        let file = |name| Some(self.directory.path().join(name)).filter(|_| self.tls);
        TlsFlags {
            authority: file("ca"),
            certificate: file("crt"),
            key: file("key"),
            unverified: false,
        }
    }

    fn wait(&self) {
        let until = Instant::now() + PATIENCE;
        while !self.is_healthy() {
            assert!(Instant::now() < until, "{:?} does not get ready", self.kind);
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn is_healthy(&self) -> bool {
        if self.tls {
            return self.answers();
        }
        let ask = || {
            let mut stream = TcpStream::connect(self.address)?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok::<_, std::io::Error>(text)
        };
        ask().is_ok_and(|text| text.contains("\"true\""))
    }

    fn answers(&self) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let client = Client::new(&[self.url(self.address)], &self.certificates());
            client.expect("a client").read_all("/").await.is_ok()
        })
    }

    /// As by SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    pub(crate) fn restart(&mut self) {
        self.process = spawn(self.kind, self.directory.path(), self.address, self.tls);
        self.wait();
    }
}

/// A way to the store that passes everything on until it is cut.
#[derive(Clone)]
pub(crate) struct Way {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Way {
    pub(crate) fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let way = Self {
            address: listener.local_addr().expect("an address"),
            cut: Arc::default(),
            open: Arc::default(),
        };
        let inner = way.clone();
        // Ends with the process.
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if inner.cut.load(Ordering::SeqCst) {
                    continue;
                }
                if let Ok(far) = TcpStream::connect(to) {
                    inner.join(&near, &far);
                    inner.join(&far, &near);
                }
            }
        });
        way
    }

    fn join(&self, from: &TcpStream, to: &TcpStream) {
        let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else {
            return;
        };
        if let (Ok(copy), Ok(mut open)) = (from.try_clone(), self.open.lock()) {
            open.push(copy);
        }
        thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        for stream in self.open.lock().expect("the list").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn mend(&self) {
        self.cut.store(false, Ordering::SeqCst);
    }
}
