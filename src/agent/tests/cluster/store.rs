//! The store's process, and a way to it that can be cut.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Where a child process of the test finds what to serve.
const DATA_DIR: &str = "ORLOP_AGENT_TEST_DATA_DIR";
const ADDRESS: &str = "ORLOP_AGENT_TEST_ADDRESS";
const PATIENCE: Duration = Duration::from_secs(30);

/// Our member itself, when this binary is started by one of the tests; else nothing.
#[test]
fn member_process() {
    let (Some(data_dir), Ok(address)) = (std::env::var_os(DATA_DIR), std::env::var(ADDRESS)) else {
        return;
    };
    let settings = orlop_store::server::Settings {
        name: "one".into(),
        data_dir: data_dir.into(),
        listen: vec![address.parse().expect("an address")],
        client_urls: vec![format!("http://{address}")],
        peer_listen: Vec::new(),
        peer_urls: vec!["http://localhost:2380".into()],
        bootstrap: orlop_store::server::Bootstrap::Alone,
        tls: orlop_store::server::Tls::default(),
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
    directory: tempfile::TempDir,
    address: SocketAddr,
    process: Child,
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("loopback has a free port")
}

fn spawn(kind: Kind, directory: &Path, address: SocketAddr) -> Child {
    let mut command = match kind {
        Kind::Ours => {
            let mut command = Command::new(std::env::current_exe().expect("the test is a file"));
            command
                .args(["store::member_process", "--exact", "--nocapture"])
                .env(DATA_DIR, directory)
                .env(ADDRESS, address.to_string());
            command
        }
        Kind::Etcd => {
            let url = format!("http://{address}");
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
                .arg(directory);
            command
        }
    };
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .stdin(Stdio::null());
    command.spawn().unwrap_or_else(|err| {
        panic!("start {kind:?} (Debian's package etcd-server is needed): {err}")
    })
}

impl Store {
    pub(crate) fn new(kind: Kind) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let address = free_address();
        let process = spawn(kind, directory.path(), address);
        let store = Self {
            kind,
            directory,
            address,
            process,
        };
        store.wait();
        store
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn wait(&self) {
        let until = Instant::now() + PATIENCE;
        while !self.is_healthy() {
            assert!(Instant::now() < until, "{:?} does not get ready", self.kind);
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn is_healthy(&self) -> bool {
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

    /// As by SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("kill the store");
        self.process.wait().expect("wait for the store");
    }

    pub(crate) fn restart(&mut self) {
        self.process = spawn(self.kind, self.directory.path(), self.address);
        self.wait();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.process.kill();
        let _ = self.process.wait();
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

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
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
